# SPDX-License-Identifier: Apache-2.0
"""How the backbone is computed: the passes and the loss scale that ``fp16``, ``memonger`` and the devices ask for."""
from __future__ import annotations

from recognition.config.devices import require_bfloat16
from recognition.config.options import Config
from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.passes.precision import low_precision
from recognition.engines.mxnet.passes.prelu import fast_prelu
from recognition.engines.mxnet.passes.winograd import winograd
from recognition.networks.flops import count_flops, describe
from recognition.networks.recompute import recompute
from recognition.optim.loss_scale import LossScale

DEFAULT_SCALE = 1024.0  # for config.fp16 without --fp16-scale


def runs_in_16_bits(config: Config) -> bool:
    """Whether the backbone is to: by ``config.fp16``, or by a loss scale above 0."""
    return config.fp16 or config.fp16_scale > 0


def prepare(symbol: mx.sym.Symbol, config: Config, image_shape: tuple[int, ...]) -> mx.sym.Symbol:
    """``symbol`` as it is bound for training; ``image_shape``: (3, H, W).

    :raises UserError: if the processor has no 16-bit numbers.
    """
    if runs_in_16_bits(config) and config.devices[0][0] == "cpu":
        require_bfloat16("--fp16-scale, fp16")
    return bound_form(symbol, config, image_shape)


def bound_form(symbol: mx.sym.Symbol, config: Config, image_shape: tuple[int, ...]) -> mx.sym.Symbol:
    """As :func:`prepare`, for a machine that may be another than this."""
    on_gpu = config.devices[0][0] == "gpu"
    if not on_gpu:
        symbol = fast_prelu(symbol, image_shape)
    if runs_in_16_bits(config):
        symbol = low_precision(symbol, "float16" if on_gpu else "bfloat16", image_shape)
    elif not on_gpu:
        symbol = winograd(symbol, image_shape)
    if config.memonger:
        symbol = recompute(symbol, image_shape, on_gpu)
    return symbol


def introduction(config: Config, symbol: mx.sym.Symbol, image_shape: tuple[int, ...]) -> list[str]:
    """Lines that say, before training starts, what the backbone costs and what it computes with if not float32."""
    lines = [describe(count_flops(symbol, image_shape))] if config.count_flops else []
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
