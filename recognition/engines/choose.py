# SPDX-License-Identifier: Apache-2.0
"""Choice of an engine: by its name, by what is installed, by the devices and by what was measured.

An engine is imported when it is chosen, and not before; nor is NumPy, so that launchers can ask.
"""
from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from recognition.config.devices import CPU, Device, on_gpus, processor_flags, require_bfloat16
from recognition.config.engines import ENGINES
from recognition.config.options import Config, check
from recognition.config.user_code import is_timm
from recognition.errors import UserError

if TYPE_CHECKING:
    from recognition.engines.interface import Engine

AMX = "amx_bf16"  # a flag of processors that multiply tiles of bfloat16, which PyTorch's oneDNN uses and MXNet's not


class Choice(NamedTuple):
    """The name of an engine, and the line that says why it was chosen; '' where nothing was to be chosen."""

    name: str
    line: str = ""


def decide(name: str = "auto", devices: Sequence[Device] = CPU, in_16_bits: bool = False, network: str = "",
           centres: str = "float32") -> Choice:
    """The engine that the option ``engine`` names. For ``auto`` what is installed and can use the devices: of two, the
    one that has such class centres if one alone has; on GPUs PyTorch, and on CPUs the one that was measured to train
    faster.

    :param in_16_bits: whether a backbone is to be trained in 16 bits; ``network``: its family.
    :param centres: the numbers of class centres.
    :raises UserError: if there is no such engine, or none is installed.
    """
    check("engine", name, "engine")
    if name != "auto":
        return _with_warning(Choice(name), devices, in_16_bits, network)
    if is_timm(network):
        return Choice("torch", "engine: PyTorch, which timm's models are for")
    found = [engine for engine in ENGINES if importlib.util.find_spec(engine)]
    if not found:
        raise UserError("engine: found neither MXNet nor PyTorch, expected one of them: `make demo` installs MXNet, "
                        "`ENGINE=torch make demo` PyTorch")
    if found == ["mxnet"]:
        return _with_warning(Choice("mxnet"), devices, in_16_bits, network)  # mostly without a line, as for years
    if found == ["torch"]:
        return Choice("torch", "engine: PyTorch; MXNet is not installed")
    rounding = [engine for engine in found if ENGINES[engine].rounds_centres]
    if centres != "float32" and len(rounding) == 1:
        name, why = rounding[0], f"it has class centres in {centres}"
    else:
        name, why = _for_gpus(devices) if on_gpus(devices) else _for_cpus(in_16_bits, network)
    other = next(engine for engine in found if engine != name)
    return Choice(name, f"engine: {ENGINES[name].title} rather than {ENGINES[other].title}: {why}")


def _with_warning(choice: Choice, devices: Sequence[Device], in_16_bits: bool, network: str) -> Choice:
    """The choice with the line that 16 bits make this run slower, if they do: with MXNet, which leaves AMX off."""
    if choice.name == "mxnet" and in_16_bits and not on_gpus(devices) and _gains_by_amx(network):
        return choice._replace(line="engine: in 16 bits MXNet trains residual networks slower than in float32 on "
                               "processors with AMX (r50 5.1 to 7.7 images/s); --engine torch is faster (14.7)")
    return choice


def _gains_by_amx(network: str) -> bool:
    """True if PyTorch's 16 bits train the family ``network`` faster here: dense convolutions, on tiles of AMX."""
    return network == "fresnet" and AMX in processor_flags()


def _for_gpus(devices: Sequence[Device]) -> tuple[str, str]:
    """The engine for GPUs where both are installed, and why."""
    try:
        choose_engine("torch").check_devices(devices)
    except UserError as error:
        return "mxnet", f"PyTorch cannot use the devices ({error})"
    return "torch", "the devices are GPUs"


def _for_cpus(in_16_bits: bool, network: str) -> tuple[str, str]:
    """The engine for CPUs where both are installed, and why. Images a second in training, MXNet 1.9.1 with our passes
    and PyTorch 2.13, batch of 16 (r100: 8), two cores of an Intel processor with AMX and of an AMD Zen 3, which has no
    AVX-512 and no bfloat16:

    ====== ======== =========== ============== ========== ============
    preset numbers  Intel MXNet Intel PyTorch  AMD MXNet  AMD PyTorch
    ====== ======== =========== ============== ========== ============
    y1     float32  52.1        34.7           53.9       39.7
    y1     bfloat16 61.0        35.6
    r50    float32  7.7         5.6 to 6.4     4.1        3.6
    r50    bfloat16 5.1         14.7
    r100   float32                             2.2        2.0
    ====== ======== =========== ============== ========== ============

    So in bfloat16 dense convolutions, those of residual networks, go to the tiles of AMX. Commands that embed and do
    not train take the same engine: there PyTorch is 7 to 11 % faster on that AMD (``docs/records/performance.md``), but
    slower where Winograd's pass pays, and one rule for all is worth more than that.
    """
    if in_16_bits and _gains_by_amx(network):
        return "torch", "in 16 bits it trains residual networks faster on processors with AMX (14.7 to 5.1 images/s)"
    return "mxnet", "on CPUs it trains faster (r100 1.1, r50 1.1 to 1.3, y1 1.4 to 1.5 times the images/s)"


def choose_engine(name: str = "auto", devices: Sequence[Device] = CPU) -> Engine:
    """The engine of :func:`decide`, imported.

    :raises UserError: as there; also if the engine cannot be imported.
    """
    if decide(name, devices).name == "torch":
        from recognition.engines.torch.engine import TorchEngine

        return TorchEngine()
    from recognition.engines.mxnet.engine import MxnetEngine

    return MxnetEngine()


def decide_for(config: Config) -> Choice:
    """The engine of a run, and the line that says why.

    :raises UserError: as :func:`decide`.
    """
    return decide(config.engine, config.devices, config.in_16_bits, config.net_name, config.centers_numbers)


def check_bfloat16(flag: str, devices: Sequence[Device]) -> None:
    """Check that a checkpoint's network can run in bfloat16 on the devices.

    :raises UserError: about ``flag``, if it cannot.
    """
    if on_gpus(devices):
        raise UserError(f"{flag}: found GPUs, expected CPUs that have it; leave it out")
    require_bfloat16(flag)
