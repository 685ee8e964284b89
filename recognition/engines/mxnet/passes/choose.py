# SPDX-License-Identifier: Apache-2.0
"""Choice of the graph passes that ``fp16``, ``memonger`` and the devices ask for."""
from __future__ import annotations

from recognition.config.devices import on_gpus
from recognition.engines.interface import Computing
from recognition.engines.mxnet.passes.prelu import fast_prelu
from recognition.engines.mxnet.passes.winograd import winograd, winograd_pays
from recognition.engines.numbers import require_numbers
from recognition.networks.graph import Graph
from recognition.networks.low_precision import low_precision
from recognition.networks.recompute import recompute


def form_to_train(graph: Graph, computing: Computing, image_shape: tuple[int, ...]) -> Graph:
    """The form in which ``graph`` is bound for training; ``image_shape``: (3, H, W).

    :raises UserError: if the processor has no 16-bit numbers.
    """
    require_numbers(computing)
    return bound_form(graph, computing, image_shape)


def bound_form(graph: Graph, computing: Computing, image_shape: tuple[int, ...]) -> Graph:
    """The result of :func:`form_to_train` without its check of this machine, for plans of other machines."""
    if not on_gpus(computing.devices):
        graph = fast_prelu(graph, image_shape)
    if computing.in_16_bits:
        graph = low_precision(graph, "float16" if on_gpus(computing.devices) else "bfloat16", image_shape)
    elif not on_gpus(computing.devices) and winograd_pays():
        graph = winograd(graph, image_shape)
    if computing.memonger:
        graph = recompute(graph, image_shape, on_gpus(computing.devices))
    return graph
