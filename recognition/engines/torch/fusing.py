# SPDX-License-Identifier: Apache-2.0
"""Batch norms that are computed together with what follows them: which ones a graph has, and how they are computed."""
from __future__ import annotations

from collections.abc import Collection
from typing import Any, Callable, NamedTuple

from recognition.engines.torch.imports import torch
from recognition.engines.torch.operators.gradients import constant
from recognition.engines.torch.operators.passes import BatchStatistics, Pass
from recognition.networks.graph import Entry, Graph, Node
from recognition.networks.maps import heavy

LOW = (torch.float16, torch.bfloat16)


class Fused(NamedTuple):
    """A batch norm, and the only node that reads it if that is a PReLU or a sum."""

    norm: Node
    behind: Node | None = None
    more: tuple[Entry, ...] = ()  # that node's other input

    @property
    def inputs(self) -> tuple[Entry, ...]:
        return self.norm.inputs + self.more


def fused_nodes(graph: Graph, kept: Collection[int]) -> dict[int, Fused]:
    """The batch norms by the place of their last node. Where that is the node behind, the norm's own place is not
    computed.

    :param kept: places of nodes whose outputs are needed.
    """
    found, readers, nodes = dict[int, Fused](), graph.only_readers(), graph.nodes
    for place, node in enumerate(nodes):
        if not _plain(node):
            continue
        behind = place if place in kept else readers.get(place, place)
        last, others = nodes[behind], tuple(entry for entry in nodes[behind].inputs if entry.node != place)
        active = last.op == "LeakyReLU" and last.values.act_type == "prelu" and last.inputs[0].node == place
        if behind not in found and (active or last.operator.is_sum):
            found[behind] = Fused(node, last, others)
        else:
            found[place] = Fused(node)
    return found


def convolutions_of_norms(graph: Graph, fused: dict[int, Fused]) -> set[int]:
    """Places of the convolutions that alone read a fused norm without a sum, and for which a pass over it is little."""
    readers = graph.only_readers()
    return {readers[place] for place, found in fused.items()
            if place in readers and heavy(graph.nodes[readers[place]])
            and (found.behind is None or found.behind.op == "LeakyReLU")}


def _plain(node: Node) -> bool:
    """True for a batch norm, which alone has states, of channels by the batch's statistics, with one output."""
    return bool(node.operator.states) and getattr(node.values, "axis", 1) == 1 and not (
        node.values.use_global_stats or node.values.output_mean_var)


def fused_function(fused: Fused, plain: Callable[..., Any], plain_behind: Callable[..., Any] | None
                   ) -> Callable[..., Any]:
    """A function of a pass and the inputs that computes the nodes: in training and 16 bits by Triton's kernels,
    otherwise by the functions of the two nodes.

    By the kernels it returns two outputs, of which the second is the norm's input again, for later readers of that.
    """
    from recognition.engines.torch.triton.batch_norm.function import batch_norm, matrix_like

    values, active = fused.norm.values, fused.behind is not None and fused.behind.op == "LeakyReLU"

    def compute(run: Pass, data: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, moving_mean: torch.Tensor,
                moving_var: torch.Tensor, *more: torch.Tensor) -> Any:
        added = None if active or not more else more[0]
        alike = added is None or (added.dtype, added.shape) == (data.dtype, data.shape)
        if not (run.training and data.dtype in LOW and matrix_like(data) and alike):
            result = plain(run, data, gamma, beta, moving_mean, moving_var)
            return plain_behind(run, result, *more) if plain_behind else result
        if values.fix_gamma:
            gamma = constant(torch.ones_like(gamma), gamma)
        found = batch_norm(data, gamma, beta, values.eps, more[0] if active else None,
                           added if added is None else added.contiguous(memory_format=torch.channels_last))
        run.statistics.append(BatchStatistics(moving_mean, moving_var, found.mean, found.var,
                                              data.numel() // data.shape[1], values.momentum))
        return found.y, found.x

    return compute


def frugal_function(compute: Callable[..., Any]) -> Callable[..., Any]:
    """``compute``, which does not keep its first input for the backward pass if that is a norm of Triton's kernels: it
    is computed again from the norm's input, which is kept for the norm. A pass over a map is little beside a
    convolution, and of the five maps of a residual unit two need not be kept.
    """
    from recognition.engines.torch.triton.batch_norm.function import not_kept

    def computed(run: Pass, data: torch.Tensor, *others: torch.Tensor) -> Any:
        with not_kept(data):
            return compute(run, data, *others)

    return computed
