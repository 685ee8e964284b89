# SPDX-License-Identifier: Apache-2.0
"""Networks whose batch norms are Triton's kernels, in its interpreter, beside the same ones of PyTorch's operators."""
from __future__ import annotations

import math
import os
import weakref
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton's interpreter is off", allow_module_level=True)

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from recognition.engines.interface import Computing, Updating  # noqa: E402
from recognition.engines.maps import KERNELS_FACTOR, maps_in_training  # noqa: E402
from recognition.engines.torch import engine, fusing  # noqa: E402
from recognition.engines.torch import network as torch_network  # noqa: E402
from recognition.engines.torch.network import Network  # noqa: E402
from recognition.engines.torch.triton.batch_norm import choice  # noqa: E402
from recognition.networks import sym  # noqa: E402
from recognition.networks.graph import Graph  # noqa: E402
from recognition.networks.initialise import initialise  # noqa: E402
from recognition.networks.low_precision import low_precision  # noqa: E402
from recognition.networks.maps import maps_memory  # noqa: E402
from recognition.networks.shapes import all_shapes  # noqa: E402
from recognition.processes.communicator import SingleProcess  # noqa: E402

CPU, SIDE = torch.device("cpu"), (3, 8, 8)
MADE_AGAIN = ("a_bn1", "a_relu1", "b_bn1", "b_relu1")  # norms, maybe with a PReLU, that a convolution alone reads
NORM: dict[str, Any] = {"fix_gamma": False, "eps": 1e-3, "momentum": 0.8}


def convolution(x: Any, name: str, stride: int = 1, kernel: int = 3) -> Any:
    return sym.Convolution(x, num_filter=8, kernel=(kernel, kernel), stride=(stride, stride),
                           pad=(kernel // 2, kernel // 2), no_bias=True, name=name)


def prelu(x: Any, name: str) -> Any:
    return sym.LeakyReLU(x, act_type="prelu", name=name)


def unit(x: Any, name: str, stride: int, **norm: Any) -> Any:
    """The residual unit of ArcFace, with a projection where it halves the map."""
    y = convolution(sym.BatchNorm(x, name=name + "_bn1", **NORM), name + "_conv1")
    y = prelu(sym.BatchNorm(y, name=name + "_bn2", **{**NORM, **norm}), name + "_relu1")
    y = sym.BatchNorm(convolution(y, name + "_conv2", stride), name=name + "_bn3", **NORM)
    past = sym.BatchNorm(convolution(x, name + "_conv1sc", stride, 1), name=name + "_sc", **NORM) if stride > 1 else x
    return y + past


def network() -> Graph:
    x = convolution((sym.Variable("data") - 127.5) * 0.0078125, "conv0")
    x = prelu(sym.BatchNorm(x, name="bn0", **NORM), "relu0")
    x = unit(unit(x, "a", 2), "b", 1, fix_gamma=True)
    x = sym.FullyConnected(sym.BatchNorm(x, name="bn1", **NORM), num_hidden=6, name="pre_fc1")
    return sym.BatchNorm(x, name="fc1", **NORM).graph()


def arrays_of(graph: Graph) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return tuple({name: array if name.endswith("weight") else array + random.uniform(
        -0.1, 0.1, array.shape).astype(np.float32) for name, array in arrays.items()} for arrays in initialise(
            graph, SIDE, 1))


def step(graph: Graph, low: Any = torch.float16, recompute: bool = False, **options: Any) -> dict[str, np.ndarray]:
    """Features, gradients and moving statistics of a step."""
    made = Network(graph, *arrays_of(graph), CPU, recompute=recompute, image_shape=SIDE, **options)
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (4, *SIDE)).astype(np.float32))
    with torch.autocast("cpu", low, enabled=low is not None):
        features = made(images.contiguous(memory_format=torch.channels_last), training=True)
    features.backward(torch.from_numpy(np.random.default_rng(2).standard_normal(features.shape)).float())
    found = {"features": features, **{f"d {name}": item.grad for name, item in made.arguments.items()},
             **made.auxiliary}
    return {name: tensor.detach().numpy() for name, tensor in found.items()}


def test_nodes_that_are_fused() -> None:
    """A norm with the PReLU or the sum that alone reads it, one norm a sum; those in front of other layers alone."""
    graph = network()
    found = {fused.norm.name: fused.behind.name if fused.behind else "" for fused in fusing.fused_nodes(
        graph, ()).values()}
    pairs = {name: behind for name, behind in found.items() if behind}
    assert {name: behind for name, behind in pairs.items() if "relu" in behind} == {
        "bn0": "relu0", "a_bn2": "a_relu1", "b_bn2": "b_relu1"}
    assert {name for name, behind in pairs.items() if "relu" not in behind} == {"a_bn3", "b_bn3"}
    assert set(found) - set(pairs) == {"a_bn1", "b_bn1", "a_sc", "bn1", "fc1"}
    place = next(place for place, node in enumerate(graph.nodes) if node.name == "bn0")
    assert fusing.fused_nodes(graph, {place})[place].behind is None


@pytest.mark.parametrize(("low", "most"), [(torch.float16, 3), (torch.bfloat16, 5)], ids=["float16", "bfloat16"])
def test_a_step_is_that_of_pytorchs_operators(low: Any, most: float) -> None:
    """Errors against float32, by the norms of all arrays of a kind, beside those of PyTorch's operators in 16 bits.

    A gradient jumps where an input of PReLU passes zero, so these errors vary; Triton's interpreter also cuts off what
    bfloat16 does not hold, where PyTorch and GPUs round. What was wrong in a formula would be off by 50 times as much.
    """
    graph = network()
    exact, plain, found = step(graph, None), step(graph, low), step(graph, low, fused=True)
    kinds = [["features"], [name for name in exact if name.startswith("d ")],
             [name for name in exact if "_moving_" in name]]
    for names in kinds:
        wanted = np.concatenate([exact[name].ravel() for name in names])
        errors = [np.linalg.norm(np.concatenate([arrays[name].ravel() for name in names]) - wanted)
                  for arrays in (found, plain)]
        assert errors[0] < most * errors[1], names
    assert not found["d b_bn2_gamma"].any() and {array.dtype for array in found.values()} == {np.dtype("float32")}


def test_memonger_and_a_second_run_give_the_same_bits() -> None:
    graph = network()
    runs = [step(graph, fused=True, recompute=recompute) for recompute in (False, False, True)]
    assert [name for name in runs[0] if len({run[name].tobytes() for run in runs}) > 1] == []


def test_float32_and_inference_are_pytorchs_operators() -> None:
    graph = network()
    plain, found = step(graph, None), step(graph, None, fused=True)
    assert [name for name in plain if plain[name].tobytes() != found[name].tobytes()] == []
    images = torch.ones((2, *SIDE))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        outputs = [Network(graph, *arrays_of(graph), CPU, fused=fused)(images) for fused in (False, True)]
    assert torch.equal(*outputs)


class Living(TorchDispatchMode):  # type: ignore[misc]
    """Counts the bytes of tensors that operators made and that still are there."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.storages.pop, storage._cdata, None)
        return found


def test_less_is_kept_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """No input of a PReLU behind a batch norm; and no norm that a convolution alone reads, which is computed again to
    the same bits."""
    graph, kept, steps = network(), [], []
    shapes = all_shapes(graph, (4, *SIDE))
    norms = [place for place, node in enumerate(graph.nodes) if node.name in MADE_AGAIN]
    for fused, again in ((False, False), (True, False), (True, True)):
        with monkeypatch.context() as patch:
            if not again:
                patch.setattr(torch_network, "convolutions_of_norms", lambda *_: set())
            made = Network(graph, *arrays_of(graph), CPU, fused=fused)
            with Living() as living, torch.autocast("cpu", torch.float16):
                features = made(torch.ones((4, *SIDE)).contiguous(memory_format=torch.channels_last), training=True)
            kept.append(sum(living.storages.values()))
            assert features.requires_grad
            steps.append(step(graph, fused=fused))
    assert kept[1] < 0.9 * kept[0]
    assert kept[1] - kept[2] == sum(2 * math.prod(shapes[place][0]) for place in norms)  # 2 bytes a number
    assert [name for name, array in steps[1].items() if array.tobytes() != steps[2][name].tobytes()] == []


@pytest.mark.parametrize("why", ["", "Triton is not installed"])
def test_the_engine_says_what_computes_batch_norms_on_gpus(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU stands for the GPU. Float32 says nothing."""
    monkeypatch.setattr(choice, "why_not", lambda device: why)
    monkeypatch.setattr(engine, "torch_device", lambda device: CPU)
    graph = network()

    def made(in_16_bits: bool) -> Any:
        return engine.TorchEngine().backbone(graph, arrays_of(graph), SIDE, Computing((("gpu", 0),), 4, in_16_bits),
                                             Updating(), SingleProcess())

    assert made(False).startup_line == ""
    backbone = made(True)
    assert backbone.startup_line == (
        "backbone: PyTorch's batch norm rather than Triton's kernels: Triton is not installed" if why else
        "backbone: Triton's kernels for batch norm with PReLU or a sum")
    assert any(step.fused for step in backbone.replicas[0].network._steps) == (not why)


def test_the_plan_leaves_out_what_the_kernels_do_not_keep() -> None:
    """On GPUs in 16 bits: inputs of PReLUs, and norms in front of convolutions, 2 bytes a number. Slopes: 1 %."""
    graph, shapes = network(), all_shapes(network(), (4, *SIDE))
    numbers = sum(math.prod(shapes[place][0]) * ((node.op == "LeakyReLU") + (node.name in MADE_AGAIN))
                  for place, node in enumerate(graph.nodes))
    planned = maps_in_training(graph, Computing((("gpu", 0),), 4, True), SIDE, "torch")
    with_them = KERNELS_FACTOR * maps_memory(low_precision(graph, "float16", SIDE), SIDE, 4)
    assert with_them - planned == pytest.approx(KERNELS_FACTOR * 2 * numbers, rel=1e-2)
