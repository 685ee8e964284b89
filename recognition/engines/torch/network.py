# SPDX-License-Identifier: Apache-2.0
"""A network in PyTorch: a graph's operators one after another, with parameters by the names of a checkpoint."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

from recognition.engines.interface import Arrays
from recognition.engines.torch.fusing import Fused, convolutions_of_norms, frugal_function, fused_function, fused_nodes
from recognition.engines.torch.imports import torch
from recognition.engines.torch.operators import FUNCTIONS, OF_THE_PASS
from recognition.engines.torch.operators.passes import Pass
from recognition.errors import UserError
from recognition.networks.cuts import depend_on_images
from recognition.networks.graph import Graph, Node
from recognition.networks.recompute import computed_again

DATA = "data"
Tensors = dict[int, Sequence["torch.Tensor"]]  # outputs by the place of their node


class _Step(NamedTuple):
    """A node that is computed, maybe with one before it."""

    place: int
    inputs: list[tuple[int, int]]  # places of nodes and numbers of their outputs
    compute: Callable[..., Any]  # of a pass and the inputs
    last: list[int]  # nodes that no later step reads
    fused: bool = False  # a second result is the first input, for later steps


class Network:
    """A graph on one device.

    ``arguments`` are the parameters, leaves that gradients are computed for; ``auxiliary`` the moving statistics,
    float32, or float64 if the parameters are. Both by the names of a checkpoint.
    """

    def __init__(self, graph: Graph, parameters: Arrays, auxiliary: Arrays, device: torch.device,
                 dtype: torch.dtype = torch.float32, recompute: bool = False,
                 image_shape: tuple[int, int, int] = (3, 112, 112), fused: bool = False) -> None:
        """:param recompute: the maps between a few of them are computed again in the backward pass, to save memory;
            ``image_shape`` (3, H, W) is what they are chosen for.
        :param fused: in training and 16 bits, batch norms and what follows them are Triton's kernels.
        :raises UserError: if the graph names an operator that is not there, or an array is missing.
        """
        self.device, self._dtype = device, dtype
        _check(graph, parameters, auxiliary)
        wide = dtype if dtype == torch.float64 else torch.float32
        types = dict.fromkeys(graph.places(), wide)
        self.arguments = {name: torch.tensor(parameters[name], dtype=types.get(name, dtype),
                                             device=device).requires_grad_()
                          for name in graph.list_arguments() if name != DATA}
        self.auxiliary = {name: torch.tensor(auxiliary[name], dtype=wide, device=device)
                          for name in graph.list_auxiliary_states()}
        self._fixed = _fixed_gammas(graph)
        self._variables = {node.name: place for place, node in enumerate(graph.nodes) if node.is_variable}
        self._head = graph.heads[0]
        kept = _kept(graph, image_shape) if recompute else set[int]()
        norms = fused_nodes(graph, kept | {self._head.node}) if fused else {}
        self._steps = _steps(graph, norms, set() if recompute else convolutions_of_norms(graph, norms))
        self._segments = _segments(graph, self._steps, kept) if recompute else [0]

    def __call__(self, images: torch.Tensor, training: bool = False,
                 generator: torch.Generator | None = None) -> torch.Tensor:
        """Features (N, D) of images (N, 3, H, W), pixels 0..255 of any type; the network's type and float32 at least.

        In training the moving statistics move, once, whatever is computed again later.

        :param generator: what dropout draws from, on the network's device; None: PyTorch's own.
        """
        with torch.no_grad():
            for name in self._fixed:  # as MXNet does, which optimisers move and checkpoints hold
                self.arguments[name].fill_(1)
        run = Pass(training, generator)
        found: Tensors = {place: (tensor,) for place, tensor in self._places(images)}
        segments = self._segments if training and torch.is_grad_enabled() else [0]
        _compute(self._steps[: segments[0]], found, run)
        for begin, end in zip(segments, segments[1:]):
            _compute_again_later(self._steps[begin:end], found, run)
        _compute(self._steps[segments[-1] :], found, run)  # the last segment's maps are needed at once, and kept
        run.move_statistics()
        features = found[self._head.node][self._head.output]
        return features.to(torch.promote_types(self._dtype, torch.float32))

    def _places(self, images: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
        values = {**self.arguments, **self.auxiliary, DATA: images.to(self.device, self._dtype)}
        return [(place, values[name]) for name, place in self._variables.items()]


def _check(graph: Graph, parameters: Arrays, auxiliary: Arrays) -> None:
    for node in graph.nodes:
        if not node.is_variable and node.op not in FUNCTIONS and node.op not in OF_THE_PASS:
            raise UserError(f"the layer {node.name} is of the operator {node.op}, which the PyTorch engine does not "
                            "have (--engine mxnet may have it)")
    for names, arrays in ((graph.list_arguments(), parameters), (graph.list_auxiliary_states(), auxiliary)):
        missing = [name for name in names if name not in arrays and name != DATA]
        if missing:
            raise UserError(f"found no array {missing[0]!r}, expected one for each parameter of the network")


def _fixed_gammas(graph: Graph) -> list[str]:
    """Names of the factors of batch norms that always are 1."""
    return [graph.nodes[node.inputs[1].node].name for node in graph.nodes
            if node.op in OF_THE_PASS and getattr(node.values, "fix_gamma", False)
            and graph.nodes[node.inputs[1].node].is_variable]


def _steps(graph: Graph, fused: dict[int, Fused], frugal: set[int]) -> list[_Step]:
    """The operators in the order of the graph, but those first that do not depend on the images.

    :param frugal: places of the nodes that do not keep their first input, a fused norm, for the backward pass.
    """
    of_images, kept, nodes = depend_on_images(graph), {head.node for head in graph.heads}, graph.nodes
    norms = {id(pair.norm) for pair in fused.values() if pair.behind}
    places = [place for place, node in enumerate(nodes) if not node.is_variable and id(node) not in norms]
    places.sort(key=lambda place: place in of_images)
    inputs = {place: fused[place].inputs if place in fused else nodes[place].inputs for place in places}
    last_use = {entry.node: place for place in places for entry in inputs[place]}
    return [_Step(place, [(entry.node, entry.output) for entry in inputs[place]],
                  _fused_function(fused[place]) if place in fused else
                  frugal_function(_function(nodes[place])) if place in frugal else _function(nodes[place]),
                  [read for read in {entry.node for entry in inputs[place]}
                   if last_use[read] == place and read not in kept and not nodes[read].is_variable], place in fused)
            for place in places]


def _fused_function(fused: Fused) -> Callable[..., Any]:
    return fused_function(fused, _function(fused.norm), _function(fused.behind) if fused.behind else None)


def _function(node: Node) -> Callable[..., Any]:
    """A function of a pass and inputs that computes the node, whose attributes are parsed here once."""
    values, function = node.values, OF_THE_PASS.get(node.op) or FUNCTIONS[node.op]
    if node.op in OF_THE_PASS:
        return lambda run, *inputs: function(run, values, *inputs)
    return lambda run, *inputs: function(values, *inputs)


def _compute(steps: Sequence[_Step], found: Tensors, run: Pass) -> None:
    for step in steps:
        result = step.compute(run, *[found[place][output] for place, output in step.inputs])
        result = result if isinstance(result, tuple) else (result,)
        if step.fused and len(result) == 2:
            result, again = result[:1], result[1:]
            if len(found[step.inputs[0][0]]) == 1:
                found[step.inputs[0][0]] = again
        found[step.place] = result
        for place in step.last:
            del found[place]


def _kept(graph: Graph, image_shape: tuple[int, int, int]) -> set[int]:
    """Places of the nodes that depend on the images and are not computed again."""
    variables = {place for place, node in enumerate(graph.nodes) if node.is_variable}
    return depend_on_images(graph) - set(computed_again(graph, image_shape)) - variables


def _segments(graph: Graph, steps: Sequence[_Step], kept: set[int]) -> list[int]:
    """How many steps there are up to the first segment, and up to the end of each: up to a map that is kept."""
    of_images = depend_on_images(graph)
    ends = [number for number, step in enumerate(steps, start=1) if step.place in kept]
    return [sum(step.place not in of_images for step in steps), *ends]


def _compute_again_later(steps: Sequence[_Step], found: Tensors, run: Pass) -> None:
    """Compute steps so that the backward pass is left what they read and their last output, and does them again."""
    made, end = {step.place for step in steps}, steps[-1].place
    read = {place: found[place] for step in steps for place, _ in step.inputs if place not in made}
    later, passes = run.again(), iter((run,))  # statistics and generator move in the first pass alone

    def compute() -> torch.Tensor:
        values: Tensors = dict(read)
        _compute(steps, values, next(passes, None) or later.again())
        return values[end][0]

    result = torch.utils.checkpoint.checkpoint(compute, use_reentrant=False, preserve_rng_state=run.generator is None)
    found[end] = (result,)
    for place in {place for step in steps for place in step.last} - made:
        del found[place]
