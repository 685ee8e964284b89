# SPDX-License-Identifier: Apache-2.0
"""The backbone of PyTorch: states to and from MXNet's, steps left out, masks of dropout, norms, 16 bits."""
from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np
import pytest

from recognition.config.options import Config
from recognition.engines.choose import choose_engine
from recognition.engines.interface import Computing, Updating
from recognition.errors import UserError
from recognition.networks import build_symbol, first_weights, sym
from recognition.networks.graph import Graph
from recognition.networks.initialise import initialise
from recognition.optim.adamw import AdamW
from recognition.optim.loss_scale import LossScale
from recognition.processes.communicator import SingleProcess

torch = pytest.importorskip("torch")
from recognition.engines.numbers import describe_numbers  # noqa: E402
from recognition.engines.torch import backbone as of_torch  # noqa: E402
from recognition.engines.torch import finite  # noqa: E402

SHAPE, BATCH, DIM = (3, 32, 32), 4, 8
CPU = torch.device("cpu")


def network(dropout: float = 0.0) -> Graph:
    """Two layers with batch norm, the second of which keeps its factor at 1."""
    x = (sym.Variable("data") - 127.5) * 0.0078125
    x = sym.Convolution(x, num_filter=8, kernel=(3, 3), stride=(2, 2), no_bias=True, name="conv0")
    x = sym.BatchNorm(x, fix_gamma=False, momentum=0.9, eps=2e-5, name="bn0")
    x = sym.LeakyReLU(x, act_type="prelu", name="relu0")
    x = sym.Dropout(x, p=dropout) if dropout else x
    x = sym.FullyConnected(x, num_hidden=DIM, no_bias=True, name="pre_fc1")
    return sym.BatchNorm(x, fix_gamma=True, momentum=0.9, eps=2e-5, name="fc1").graph()


def torch_backbone(graph: Graph | None = None, devices: int = 1, loss_scale: LossScale | None = None,
                   low: torch.dtype | None = None, fused: bool = False,
                   **updating: Any) -> of_torch.ReplicatedBackbone:
    graph = graph or network()
    return of_torch.ReplicatedBackbone(graph, *initialise(graph, SHAPE, 1), [CPU] * devices, BATCH // devices, SHAPE,
                                       SingleProcess(), loss_scale=loss_scale, low=low, fused=fused,
                                       updating=Updating(**{"mu": 0.9, "wd": 5e-4, **updating}))


def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(step)
    return random.randint(0, 256, (BATCH, *SHAPE)).astype(np.uint8), random.standard_normal((BATCH, DIM)).astype("f4")


def steps(backbone: Any, first: int, last: int) -> Any:
    for step in range(first, last):
        images, d_features = batch(step)
        backbone.forward(images)
        backbone.backward(d_features)
        backbone.step(0.05)
    return backbone.state()


def arrays(state: Any) -> dict[str, np.ndarray]:
    """All arrays of a state by kind and name."""
    groups = {"w": state.parameters, "m": state.momentum, "v": state.second_moment or {}, "n": state.updates or {},
              **{f"s{number}": part for number, part in enumerate(state.auxiliary)}}
    return {f"{kind} {name}": array for kind, group in groups.items() for name, array in group.items()}


def same_bits(ours: Any, theirs: Any) -> bool:
    left, right = arrays(ours), arrays(theirs)
    return left.keys() == right.keys() and all(left[name].tobytes() == right[name].tobytes() for name in left)


@pytest.mark.parametrize("adamw", [None, AdamW()], ids=["sgd", "adamw"])
@pytest.mark.parametrize("order", [("mxnet", "torch"), ("torch", "mxnet")], ids=" to ".join)
def test_a_state_of_one_engine_goes_on_in_the_other(order: tuple[str, str], adamw: AdamW | None) -> None:
    """Three steps, and three more in the other engine, against six in the first. Tolerance 2e-4 of the largest number
    of an array: float32 in another order of sums.
    """
    if importlib.util.find_spec("mxnet") is None:
        pytest.skip("mxnet is not installed")
    graph = network()
    make = {name: lambda name=name: choose_engine(name).backbone(
        graph, initialise(graph, SHAPE, 1), SHAPE, Computing((("cpu", 0),), BATCH), Updating(adamw=adamw),
        SingleProcess()) for name in order}
    first, other = make[order[0]](), make[order[1]]()
    state = steps(first, 0, 3)
    assert other.difference(state) == ""
    other.load(state, 3)
    assert same_bits(other.state(), state)
    found, wanted = arrays(steps(other, 3, 6)), arrays(steps(first, 3, 6))
    assert {name: (a.dtype, a.shape) for name, a in found.items()} == {
        name: (a.dtype, a.shape) for name, a in wanted.items()}
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=2e-4 * np.abs(array).max() + 1e-9, err_msg=name)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_state_goes_on_to_the_same_bits(devices: int) -> None:
    """With dropout, whose masks follow from the seed, the step and the replica."""
    whole, first, second = (torch_backbone(network(0.4), devices) for _ in range(3))
    second.load(steps(first, 0, 2), 2)
    assert same_bits(steps(second, 2, 4), steps(whole, 0, 4))


def test_dropout_draws_another_mask_for_each_seed_step_and_replica() -> None:
    """The four images of the batch are two and the same two; each replica gets two of them."""
    images = np.tile(batch(0)[0][:2], (2, 1, 1, 1))
    first, again, other = (torch_backbone(network(0.4), 2, seed=seed) for seed in (1, 1, 2))
    features = first.forward(images)
    assert (features == again.forward(images)).all()
    assert (features[:2] != features[2:]).any()
    assert (features != other.forward(images)).any()
    again.leave_out()
    assert (features != again.forward(images)).any()
    assert (first.embed(images) == first.embed(images)).all()


@pytest.mark.parametrize("devices", [1, 2])
def test_a_step_that_is_left_out_leaves_nothing(devices: int) -> None:
    """Statistics move in the forward pass here; the next step is another one."""
    backbone = torch_backbone(devices=devices, leaves_out=True, adamw=AdamW(), wd=0.0)
    before = steps(backbone, 0, 2)
    backbone.forward(batch(2)[0])
    assert not same_bits(backbone.state(), before)
    backbone.backward(np.full((BATCH, DIM), np.nan, np.float32))
    assert not backbone.finite()
    backbone.leave_out()
    assert same_bits(backbone.state(), before) and backbone.sound()
    other = torch_backbone(devices=devices, adamw=AdamW(), wd=0.0)
    other.load(before, 3)
    assert same_bits(steps(backbone, 3, 4), steps(other, 3, 4))


def test_a_checkpoint_and_a_verification_take_the_mean_of_the_replicas_statistics() -> None:
    backbone = torch_backbone(devices=2)
    own = steps(backbone, 0, 2).auxiliary
    assert any((own[0][name] != own[1][name]).any() for name in own[0])
    _, auxiliary = backbone.parameters()
    for name, array in auxiliary.items():
        np.testing.assert_array_equal(array, np.mean([own[0][name], own[1][name]], axis=0, dtype=np.float32))
    images = batch(5)[0][:3]
    single = torch_backbone()
    single.load(backbone.state(), 2)  # which takes the mean
    np.testing.assert_allclose(backbone.embed(images), single.embed(images), rtol=0, atol=1e-5)
    assert same_bits(backbone.state()._replace(auxiliary=[]), steps(backbone, 2, 2)._replace(auxiliary=[]))
    assert (backbone.state().auxiliary[1]["fc1_moving_var"] == own[1]["fc1_moving_var"]).all()


def test_norms_are_those_of_float64() -> None:
    """Tolerance 1e-6: sums of up to 65536 squares in float32 by blocks, the rest in float64."""
    random = np.random.RandomState(0)
    made = [random.standard_normal(size).astype(np.float32) for size in (1, 7, 65536, 200001)] + [
        np.full(1000, 1e30, np.float32), np.array([1, np.inf], np.float32), np.array([np.nan], np.float32)]
    wanted = [np.sqrt(np.square(array, dtype=np.float64).sum()) for array in made]
    np.testing.assert_allclose(finite.norms([torch.from_numpy(array) for array in made]), wanted, rtol=1e-6)
    assert finite.norms([]).shape == (0,) and finite.all_finite({}) and finite.all_finite() and finite.all_usable({})


def test_numbers_that_overflow_only_as_squares_are_finite_but_not_usable() -> None:
    good, large, bad = torch.ones(3), torch.full((1000,), 1e30), torch.tensor([0.0, math.nan])
    assert finite.all_finite({"a": good, "b": large}) and not finite.all_usable({"a": good, "b": large})
    assert not finite.all_finite({"a": large, "b": bad})
    assert not finite.all_finite({"a": good}, {"a": torch.tensor([-math.inf])})


def test_gradient_norm_is_that_of_the_mean_loss_by_parameters_that_move() -> None:
    """Tolerance 1e-5: the scale is a power of two; the sums are of float32."""
    scaled, plain = torch_backbone(loss_scale=LossScale(1024.0)), torch_backbone()
    for backbone in (scaled, plain):
        images, d_features = batch(0)
        backbone.forward(images)
        backbone.backward(d_features)
    _, gradients = plain.norms()
    assert scaled.gradient_norm() == pytest.approx(math.hypot(*gradients.values()), rel=1e-5)
    assert gradients["fc1_gamma"] == 0  # which stays at 1


@pytest.mark.parametrize("devices", [1, 2])
def test_the_check_of_a_step_leaves_norms_for_its_clipping(devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits as without the check, whose norms the next backward pass drops."""
    checked, plain = (torch_backbone(devices=devices, clip_norm=1e-3) for _ in range(2))
    wanted = steps(plain, 0, 1)
    images, d_features = batch(0)
    checked.forward(images)
    checked.backward(d_features)
    assert checked.finite()
    with monkeypatch.context() as patch:
        patch.setattr(checked, "norms_of", None)
        checked.step(0.05)
    assert same_bits(checked.state(), wanted)
    assert same_bits(steps(checked, 1, 2), steps(plain, 1, 2))


@pytest.mark.parametrize("low, tolerance", [("bfloat16", 2**-6), ("float16", 2**-9)])
def test_16_bits_move_float32_parameters(low: str, tolerance: float) -> None:
    """Features by a few layers that round to 8 or 11 bits: a few times 2**-9 or 2**-12 of the largest."""
    exact, backbone = torch_backbone(), torch_backbone(low=getattr(torch, low), loss_scale=LossScale(8.0))
    images, d_features = batch(0)
    wanted, found = exact.forward(images), backbone.forward(images)
    assert found.dtype == np.float32 and (found != wanted).any()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())
    for each in (exact, backbone):
        each.backward(d_features)
        assert each.finite()
        each.step(0.1)
    ours, theirs = backbone.state(), exact.state()
    for name, array in theirs.momentum.items():
        assert ours.parameters[name].dtype == ours.momentum[name].dtype == np.float32
        np.testing.assert_allclose(ours.momentum[name], array, rtol=0, atol=16 * tolerance * np.abs(array).max(),
                                   err_msg=name)
    assert backbone.embed(images).dtype == np.float32


def test_a_processor_without_bfloat16_is_refused_as_by_mxnet(monkeypatch: pytest.MonkeyPatch) -> None:
    def require(what: str) -> None:
        raise UserError(f"{what}: none here")

    monkeypatch.setattr("recognition.engines.numbers.require_bfloat16", require)
    graph, computing = network(), Computing((("cpu", 0),), BATCH, in_16_bits=True)
    with pytest.raises(UserError, match=r"^--fp16-scale, fp16: none here$"):
        choose_engine("torch").backbone(graph, initialise(graph, SHAPE, 1), SHAPE, computing, Updating(),
                                        SingleProcess())
    assert describe_numbers(computing).startswith("bfloat16 in place of float16, which needs a GPU")


def test_states_are_the_same_if_parameters_lie_as_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels last in memory. Tolerance 1e-5 of the largest number: other kernels, which sum in another order."""
    from recognition.engines.torch import placed

    class Laid(placed.Network):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            placed.lay_out_as_maps(self.arguments)

    wanted = steps(torch_backbone(), 0, 3)
    monkeypatch.setattr(placed, "Network", Laid)
    backbone, again = torch_backbone(), torch_backbone()
    assert not backbone.replicas[0].arguments["conv0_weight"].is_contiguous()
    found = steps(backbone, 0, 3)
    for name, array in arrays(wanted).items():
        np.testing.assert_allclose(arrays(found)[name], array, rtol=0, atol=1e-5 * np.abs(array).max(), err_msg=name)
        assert arrays(found)[name].flags.c_contiguous
    again.load(found, 3)
    assert same_bits(again.state(), found)


def test_memonger_computes_the_same() -> None:
    """All layers again with the same numbers, so the same bits; statistics move once."""
    config = Config(net_name="fresnet", num_layers=18, emb_size=DIM, net_output="E")
    graph, found = build_symbol(config), []
    for recompute in (False, True):
        backbone = of_torch.ReplicatedBackbone(
            graph, *initialise(graph, SHAPE, 1, first_weights("fresnet")), [CPU], BATCH, SHAPE, SingleProcess(),
            updating=Updating(0.9, 5e-4), recompute=recompute)
        found.append(steps(backbone, 0, 2))
    assert same_bits(*found)


def test_a_gpu_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^gpu 0: (the installed PyTorch is for the CPU|PyTorch .* finds 0 GPUs)"):
        choose_engine("torch").check_devices((("gpu", 0),))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    choose_engine("torch").check_devices((("gpu", 0), ("gpu", 1), ("cpu", 0)))
    with pytest.raises(UserError, match=r"^gpu 2: "):
        choose_engine("torch").check_devices((("gpu", 1), ("gpu", 2)))


@pytest.mark.parametrize("own, devices, processes, expected", [
    ("2", 2, 1, 4), ("2", 1, 1, None), ("6", 2, 1, 8), ("2", 2, 4, 2), ("1,1", 3, 1, 3), ("", 2, 1, None)])
def test_devices_on_cpus_compute_one_after_the_other_with_the_threads_of_all(
        monkeypatch: pytest.MonkeyPatch, own: str, devices: int, processes: int, expected: int | None) -> None:
    """Of eight processors, divided among the processes of the host."""
    from recognition.engines.torch import placed

    given: list[int] = []
    monkeypatch.setattr(placed, "processors", lambda: 8)
    monkeypatch.setattr(placed.torch, "set_num_threads", given.append)
    environ = {"OMP_NUM_THREADS": own, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": str(processes)}
    placed.give_threads([("cpu", index) for index in range(devices)], environ)
    placed.give_threads([("gpu", index) for index in range(devices)], environ)
    assert given == ([] if expected is None else [expected])
