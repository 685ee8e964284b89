# SPDX-License-Identifier: Apache-2.0
"""How the backbone is computed: the passes and the loss scale that ``fp16``, ``memonger`` and the devices ask for."""
from __future__ import annotations

from recognition.config.devices import require_bfloat16
from recognition.engines.interface import Computing
from recognition.engines.mxnet.passes.precision import low_precision
from recognition.engines.mxnet.passes.prelu import fast_prelu
from recognition.engines.mxnet.passes.recompute import recompute
from recognition.engines.mxnet.passes.winograd import winograd
from recognition.networks.graph import Graph
from recognition.optim.loss_scale import LossScale

DEFAULT_SCALE = 1024.0  # of float16, where no loss scale is given


def prepare(graph: Graph, computing: Computing, image_shape: tuple[int, ...]) -> Graph:
    """``graph`` as it is bound for training; ``image_shape``: (3, H, W).

    :raises UserError: if the processor has no 16-bit numbers.
    """
    if computing.in_16_bits and not _on_gpu(computing):
        require_bfloat16("--fp16-scale, fp16")
    return bound_form(graph, computing, image_shape)


def bound_form(graph: Graph, computing: Computing, image_shape: tuple[int, ...]) -> Graph:
    """As :func:`prepare`, for a machine that may be another than this."""
    on_gpu = _on_gpu(computing)
    if not on_gpu:
        graph = fast_prelu(graph, image_shape)
    if computing.in_16_bits:
        graph = low_precision(graph, "float16" if on_gpu else "bfloat16", image_shape)
    elif not on_gpu:
        graph = winograd(graph, image_shape)
    if computing.memonger:
        graph = recompute(graph, image_shape, on_gpu)
    return graph


def numbers(computing: Computing) -> str:
    """The line that says, before training starts, what the backbone computes with if not float32."""
    if scale := make_loss_scale(computing):
        return f"float16 with a loss scale of {scale.value:g}, halved when gradients overflow; float32 master weights"
    return ("bfloat16 in place of float16, which needs a GPU; it has float32's range, so there is no loss scale; "
            "float32 master weights") if computing.in_16_bits else ""


def make_loss_scale(computing: Computing) -> LossScale | None:
    """The loss scale of float16; None for float32 and bfloat16."""
    if computing.in_16_bits and _on_gpu(computing):
        return LossScale(computing.loss_scale or DEFAULT_SCALE)
    return None


def _on_gpu(computing: Computing) -> bool:
    return computing.devices[0][0] == "gpu"
