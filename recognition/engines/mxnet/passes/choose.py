# SPDX-License-Identifier: Apache-2.0
"""How the backbone is computed: the passes and the loss scale that ``fp16``, ``memonger`` and the devices ask for."""
from __future__ import annotations

from recognition.config.devices import require_bfloat16
from recognition.config.options import Config
from recognition.engines.mxnet.passes.precision import low_precision
from recognition.engines.mxnet.passes.prelu import fast_prelu
from recognition.engines.mxnet.passes.recompute import recompute
from recognition.engines.mxnet.passes.winograd import winograd
from recognition.networks.flops import count_flops, describe
from recognition.networks.graph import Graph
from recognition.optim.loss_scale import LossScale

DEFAULT_SCALE = 1024.0  # for config.fp16 without --fp16-scale


def runs_in_16_bits(config: Config) -> bool:
    """Whether the backbone is to: by ``config.fp16``, or by a loss scale above 0."""
    return config.fp16 or config.fp16_scale > 0


def prepare(graph: Graph, config: Config, image_shape: tuple[int, ...]) -> Graph:
    """``graph`` as it is bound for training; ``image_shape``: (3, H, W).

    :raises UserError: if the processor has no 16-bit numbers.
    """
    if runs_in_16_bits(config) and config.devices[0][0] == "cpu":
        require_bfloat16("--fp16-scale, fp16")
    return bound_form(graph, config, image_shape)


def bound_form(graph: Graph, config: Config, image_shape: tuple[int, ...]) -> Graph:
    """As :func:`prepare`, for a machine that may be another than this."""
    on_gpu = config.devices[0][0] == "gpu"
    if not on_gpu:
        graph = fast_prelu(graph, image_shape)
    if runs_in_16_bits(config):
        graph = low_precision(graph, "float16" if on_gpu else "bfloat16", image_shape)
    elif not on_gpu:
        graph = winograd(graph, image_shape)
    if config.memonger:
        graph = recompute(graph, image_shape, on_gpu)
    return graph


def introduction(config: Config, graph: Graph, image_shape: tuple[int, ...]) -> list[str]:
    """Lines that say, before training starts, what the backbone costs and what it computes with if not float32."""
    lines = [describe(count_flops(graph, image_shape))] if config.count_flops else []
    return lines + ([_numbers(config)] if runs_in_16_bits(config) else [])


def _numbers(config: Config) -> str:
    if scale := make_loss_scale(config):
        return f"float16 with a loss scale of {scale.value:g}, halved when gradients overflow; float32 master weights"
    return ("bfloat16 in place of float16, which needs a GPU; it has float32's range, so there is no loss scale; "
            "float32 master weights")


def make_loss_scale(config: Config) -> LossScale | None:
    """The loss scale of float16; None for float32 and bfloat16."""
    if config.devices[0][0] == "gpu" and runs_in_16_bits(config):
        return LossScale(config.fp16_scale or DEFAULT_SCALE)
    return None
