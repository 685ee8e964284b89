# SPDX-License-Identifier: Apache-2.0
"""How the backbone is computed: the passes and the loss scale that ``fp16``, ``memonger`` and the devices ask for."""
from __future__ import annotations

from pathlib import Path

from recognition.config import Config
from recognition.errors import UserError
from recognition.mxnet_compat import mx
from recognition.parallel.loss_scale import LossScale
from recognition.symbol.flops import count_flops, describe
from recognition.symbol.passes import fast_prelu
from recognition.symbol.precision import low_precision
from recognition.symbol.recompute import recompute

DEFAULT_SCALE = 1024.0  # for config.fp16 without --fp16-scale
BFLOAT16 = ("avx512_bf16", "amx_bf16")  # processors' flags for products of bfloat16
CPU_INFO = Path("/proc/cpuinfo")


def runs_in_16_bits(config: Config) -> bool:
    """Whether the backbone is to: by ``config.fp16``, or by a loss scale above 0."""
    return config.fp16 or config.fp16_scale > 0


def prepare(symbol: mx.sym.Symbol, config: Config, image_shape: tuple[int, ...]) -> mx.sym.Symbol:
    """``symbol`` as it is bound for training; ``image_shape``: (3, H, W).

    :raises UserError: if the processor has no 16-bit numbers.
    """
    if runs_in_16_bits(config) and config.devices[0][0] == "cpu":
        require_bfloat16()
    return bound_form(symbol, config, image_shape)


def bound_form(symbol: mx.sym.Symbol, config: Config, image_shape: tuple[int, ...]) -> mx.sym.Symbol:
    """As :func:`prepare`, for a machine that may be another than this."""
    on_gpu = config.devices[0][0] == "gpu"
    if not on_gpu:
        symbol = fast_prelu(symbol, image_shape)
    if runs_in_16_bits(config):
        symbol = low_precision(symbol, "float16" if on_gpu else "bfloat16")
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


def require_bfloat16(cpu_info: Path = CPU_INFO) -> None:
    """:raises UserError: if the processor, as Linux describes it in ``cpu_info``, does not multiply bfloat16."""
    try:
        lines = cpu_info.read_text().splitlines()
        flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    except OSError:
        flags = set()
    if not flags.intersection(BFLOAT16):
        raise UserError("--fp16-scale, fp16: float16 needs a GPU, and this processor has no bfloat16 either (none of "
                        f"{', '.join(BFLOAT16)} in {cpu_info}); train in float32, that is without them")
