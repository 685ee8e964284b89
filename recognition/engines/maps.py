# SPDX-License-Identifier: Apache-2.0
"""The memory of a network's maps in training with each engine, for plans: it imports none."""
from __future__ import annotations

from recognition.config.devices import on_gpus
from recognition.engines.interface import Computing
from recognition.engines.mxnet.passes.choose import bound_form
from recognition.engines.mxnet.passes.winograd import held_copies
from recognition.networks.graph import Graph, rewrite
from recognition.networks.low_precision import low_precision
from recognition.networks.maps import heavy, maps_memory
from recognition.networks.recompute import recompute

# Of the maps that PyTorch keeps, which are those of the graph (its own count for y1 and r50 is 4 and 8 % less). With
# it and 0.5 GB for libraries the plan is -14 to +25 % off what CPU processes held (y1, r50; 16 to 64 images).
TORCH_FACTOR = 1.2
KERNELS_FACTOR = 0.95  # on GPUs in 16 bits: maps are freed before the largest gradients come; 0.84 to 0.95 measured


def maps_in_training(graph: Graph, computing: Computing, image_shape: tuple[int, int, int],
                     engine: str = "mxnet") -> int:
    """Bytes that an engine takes on a device for maps and the gradients between layers. Needs neither library."""
    if engine == "torch":
        by_kernels = computing.in_16_bits and on_gpus(computing.devices) and not computing.memonger
        factor = KERNELS_FACTOR if by_kernels else TORCH_FACTOR
        computed = _as_torch_computes(graph, computing, image_shape)
        return round(factor * maps_memory(computed, image_shape, computing.batch_size, scattering=1.0,
                                          not_kept=_norms_of_convolutions(computed) if by_kernels else ()))
    bound = bound_form(graph, computing, image_shape)
    return sum(bytes_of(bound, image_shape, computing.batch_size) for bytes_of in (maps_memory, held_copies))


def _as_torch_computes(graph: Graph, computing: Computing, image_shape: tuple[int, int, int]) -> Graph:
    """The graph with casts and marks of what is computed again, which for PyTorch may be batch norms on any device.

    In 16 bits on GPUs without PReLUs behind batch norms: one kernel computes both and keeps nothing in between.
    """
    if computing.in_16_bits and on_gpus(computing.devices):
        graph = rewrite(graph, {"LeakyReLU": lambda maker, node, inputs: (
            inputs[0] if maker.nodes[inputs[0].node].op == "BatchNorm" else None)})
    if computing.in_16_bits:
        graph = low_precision(graph, "float16" if on_gpus(computing.devices) else "bfloat16", image_shape)
    return recompute(graph, image_shape) if computing.memonger else graph


def _norms_of_convolutions(graph: Graph) -> set[str]:
    """Names of the batch norms that a convolution alone reads: Triton's kernels compute them again for its backward
    pass."""
    return {graph.nodes[place].name for place, reader in graph.only_readers().items()
            if graph.nodes[place].op == "BatchNorm" and heavy(graph.nodes[reader])}
