# SPDX-License-Identifier: Apache-2.0
"""The parameters of PyTorch's ``iresnet`` (arcface_torch: r18 to r2060) as those of ``fresnet``, and back.

Both are the network of ArcFace (arXiv 1801.07698): ``net_unit`` 3, ``net_input`` 1, ``net_output`` E, PReLU. They
differ in

- the pixels: PyTorch's recipe feeds (p - 127.5) / 127.5, this graph scales to (p - 127.5) / 128 itself: the first
  convolution's weights differ by the factor 128 / 127.5;
- batch norm's epsilon, 1e-5 there and 2e-5 here: the moving variances differ by the difference, so that in inference
  both compute the same (a variance may then be a little below 0, but not with epsilon added);
- the last batch norm's factor, which is 1 here: another factor is moved into the fully connected layer before it.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from recognition.errors import UserError
from recognition.io.params import Arrays
from recognition.networks.families import fresnet
from recognition.networks.graph import Graph
from recognition.networks.shapes import infer_shapes

TORCH_EPSILON = 1e-5
PIXELS = 128 / 127.5  # this graph's pixels to PyTorch's
# num_layers of fresnet by the number in PyTorch's name; the MXNet recipes have another network of 200 layers.
DEPTHS = {18: 18, 34: 34, 50: 50, 100: 100, 200: 198, 2060: 2060}

BATCH_NORM = (("weight", "gamma"), ("bias", "beta"), ("running_mean", "moving_mean"), ("running_var", "moving_var"))
_UNIT = (("bn1", "_bn1"), ("conv1", "_conv1"), ("bn2", "_bn2"), ("prelu", "_relu1"), ("conv2", "_conv2"),
         ("bn3", "_bn3"))


def pairs(units: Iterable[int]) -> Iterator[tuple[str, str]]:
    """PyTorch's and our name of each array of a network of ``units`` units a stage; PyTorch's order."""
    yield from _arrays("conv1", "conv0")
    yield from _arrays("bn1", "bn0")
    yield from _arrays("prelu", "relu0")
    for stage, count in enumerate(units, 1):
        for unit in range(count):
            theirs, ours = f"layer{stage}.{unit}", f"stage{stage}_unit{unit + 1}"
            for layer, ending in _UNIT:
                yield from _arrays(f"{theirs}.{layer}", ours + ending)
            if unit == 0:
                yield from _arrays(f"{theirs}.downsample.0", ours + "_conv1sc", "conv")
                yield from _arrays(f"{theirs}.downsample.1", ours + "_sc", "bn")
    yield from _arrays("bn2", "bn1")
    yield from (("fc.weight", "pre_fc1_weight"), ("fc.bias", "pre_fc1_bias"))
    yield from _arrays("features", "fc1", "bn")


def _arrays(theirs: str, ours: str, kind: str = "") -> Iterator[tuple[str, str]]:
    kind = kind or theirs.rsplit(".", 1)[-1]
    if kind.startswith("bn"):
        yield from ((f"{theirs}.{a}", f"{ours}_{b}") for a, b in BATCH_NORM)
    else:
        yield f"{theirs}.weight", f"{ours}_{'gamma' if kind == 'prelu' else 'weight'}"


def from_torch(tensors: Mapping[str, np.ndarray], source: str) -> tuple[str, Graph, Arrays, Arrays]:
    """Name, network, parameters and auxiliary states (float32) from an ``iresnet``'s tensors by name.

    :raises UserError: if they are not those of an iresnet of :data:`DEPTHS` for 112 x 112 images; it names ``source``.
    """
    found = {name: value for name, value in tensors.items()
             if not name.endswith("num_batches_tracked")}
    counts = _blocks(found)
    depth = _depth(tuple(counts), f"{source}: the layers have {counts} blocks")
    names = dict(pairs(counts))
    _check_names(found, names, source)
    graph = fresnet.get_symbol(num_layers=DEPTHS[depth], emb_size=len(found["fc.weight"]))
    shapes = infer_shapes(graph, (3, 112, 112))
    wanted = {**shapes.arguments, **shapes.auxiliary}
    for theirs, ours in names.items():
        if found[theirs].shape != wanted[ours]:
            raise UserError(f"{source}: {theirs} is of shape {found[theirs].shape}, expected {wanted[ours]}")
    values = {ours: found[theirs].astype(np.float64) for theirs, ours in names.items()}
    for name, scale in _scales(found["features.weight"]).items():
        values[name] *= scale
    values["fc1_moving_mean"] *= values["fc1_gamma"]
    values["fc1_gamma"][...] = 1
    for layer, epsilon in _epsilons(graph).items():
        values[f"{layer}_moving_var"] += TORCH_EPSILON - epsilon
    parameters, states = ({name: values[name].astype(np.float32) for name in group}
                          for group in (shapes.arguments, shapes.auxiliary))
    return f"r{depth}", graph, parameters, states


def to_torch(graph: Graph, arguments: Mapping[str, np.ndarray], auxiliary: Mapping[str, np.ndarray],
             source: str) -> tuple[int, Arrays]:
    """Depth, and tensors by name for ``load_state_dict`` of an ``iresnet``, from a ``fresnet``'s arrays.

    :raises UserError: if it is another network, or one with options that ``iresnet`` lacks; it names ``source``.
    """
    found = {**arguments, **auxiliary}
    counts = _units(found)
    depth = _depth(tuple(counts), f"{source}: the stages have {counts} units")
    names = dict(pairs(counts))
    _check_names(found, {ours: theirs for theirs, ours in names.items()}, source)
    if found["conv0_weight"].shape[2:] != (3, 3):
        raise UserError(f"{source}: the first convolution is {found['conv0_weight'].shape[2:]}, expected (3, 3): "
                        "net_input 1")
    values = {ours: found[ours].astype(np.float64) for ours in names.values()}
    values["conv0_weight"] /= PIXELS
    values["fc1_gamma"][...] = 1  # whatever a file says: MXNet takes it for 1
    for layer, epsilon in _epsilons(graph).items():
        values[f"{layer}_moving_var"] += epsilon - TORCH_EPSILON
    return depth, under_their_names(values, names.items())


def under_their_names(values: Mapping[str, np.ndarray], pairs: Iterable[tuple[str, str]]) -> Arrays:
    """Tensors for ``load_state_dict``, float32, from arrays by our names; ``pairs``: their names and ours. Each batch
    norm also gets the count of batches that PyTorch's has, 0."""
    tensors: Arrays = {}
    for theirs, ours in pairs:
        tensors[theirs] = np.asarray(values[ours], np.float32)
        if theirs.endswith("running_var"):
            tensors[theirs.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    return tensors


def moments_from_torch(moments: Mapping[str, np.ndarray], tensors: Mapping[str, np.ndarray], power: int) -> Arrays:
    """An optimiser's moments of the parameters, float32 by our names, from those of an ``iresnet``'s by its own; zeros
    for a parameter that has none, as the fixed factor of the last batch norm.

    :param tensors: the ``iresnet``'s, which :func:`from_torch` takes.
    :param power: how a moment follows a parameter that is scaled by a factor, as a power of it: 1 a movement, as the
        momentum of SGD; -1 a gradient and -2 its square, as the moments of AdamW.
    """
    scales = _scales(tensors["features.weight"])
    return {ours: (moments.get(theirs, np.zeros_like(tensors[theirs])) * scales.get(ours, np.ones(1)) ** power)
            .astype(np.float32) for theirs, ours in _parameters(_blocks(tensors))}


def moments_to_torch(moments: Mapping[str, np.ndarray], power: int) -> Arrays:
    """The reverse of :func:`moments_from_torch`, in PyTorch's order; the fixed factor of the last batch norm is left
    out, as PyTorch's optimisers leave it out."""
    scales = _scales(np.ones_like(moments["fc1_gamma"]))
    return {theirs: (moments[ours] / scales.get(ours, np.ones(1)) ** power).astype(np.float32)
            for theirs, ours in _parameters(_units(moments)) if theirs != "features.weight"}


def parameters_of(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """The names of an ``iresnet``'s parameters in the order of ``parameters()``, by which optimisers number them."""
    return [theirs for theirs, _ in _parameters(_blocks(tensors))]


def _parameters(counts: Iterable[int]) -> Iterator[tuple[str, str]]:
    return ((theirs, ours) for theirs, ours in pairs(counts) if "running" not in theirs)


def _scales(factor: np.ndarray) -> Arrays:
    """The factors by which parameters differ from PyTorch's."""
    return {"conv0_weight": np.array(PIXELS), "pre_fc1_weight": factor[:, np.newaxis].astype(np.float64),
            "pre_fc1_bias": factor.astype(np.float64)}


def _blocks(names: Iterable[str]) -> list[int]:
    """The numbers of blocks of PyTorch's four layers."""
    blocks = {tuple(name.split(".")[:2]) for name in names if name.startswith("layer")}
    return [sum(layer == f"layer{stage}" for layer, *_ in blocks) for stage in (1, 2, 3, 4)]


def _units(names: Iterable[str]) -> list[int]:
    """The numbers of units of our four stages."""
    stages = [re.match(r"stage(\d)_unit(\d+)_", name) for name in names]
    return [len({match[2] for match in stages if match and match[1] == stage}) for stage in "1234"]


def _depth(counts: tuple[int, ...], what: str) -> int:
    for depth, layers in DEPTHS.items():
        if fresnet.STAGE_UNITS[layers] == counts:
            return depth
    known = ", ".join(f"{list(fresnet.STAGE_UNITS[layers])} (r{depth})" for depth, layers in DEPTHS.items())
    raise UserError(f"{what}, expected those of an iresnet: {known}")


def _check_names(found: Mapping[str, np.ndarray], wanted: Mapping[str, str], source: str) -> None:
    missing, left = [name for name in wanted if name not in found], [name for name in found if name not in wanted]
    if missing or left:
        lists = [f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
                 for names, what in ((missing, "missing"), (left, "left over")) if names]
        raise UserError(f"{source}: {' and '.join(lists)} of the {len(wanted)} arrays of an iresnet, which is fresnet "
                        "with net_unit 3, net_input 1, net_output E, net_act prelu, net_se 0")


def _epsilons(graph: Graph) -> dict[str, float]:
    """The number that each batch norm of a network adds to the variance, by name."""
    return {node.name: node.values.eps for node in graph.nodes if node.op == "BatchNorm"}
