# SPDX-License-Identifier: Apache-2.0
"""Choice of what computes with a shard of class centres. Plans ask here, too: neither an engine nor NumPy is imported
before a shard is made."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from recognition.config.devices import Device
from recognition.config.engines import ENGINES
from recognition.engines.sizes import WIDEST
from recognition.errors import UserError

if TYPE_CHECKING:
    from recognition.engines.interface import Engine
    from recognition.head.shard import Shard


def host_computes(on_host: bool, sampled: bool, rounded: bool) -> bool:
    """True if the host computes with the centres in its memory beside a GPU: without a sample all of W would travel in
    each step. ``rounded``: they are bfloat16, for which it has no kernels."""
    return on_host and not sampled and not rounded


def shard_kind(engine: str, device: str, rounded: bool, on_host: bool = False, sampled: bool = True,
               kernels: bool = False) -> str:
    """The kind of what computes with class centres: "cpu", Numba's kernels in the host's memory; "gpu", MXNet; "torch"
    and "torch on cpu", PyTorch in chunks; "triton", its kernels of 16 bits.

    :param device: its kind, "cpu" or "gpu"; ``rounded``: the centres are bfloat16.
    :param kernels: the kernels of 16 bits may be used, see :func:`why_no_low_products`.
    """
    if (device == "cpu" and not rounded) or host_computes(on_host, sampled, rounded):
        return "cpu"
    if engine == "mxnet":
        return "gpu"
    if device == "cpu":
        return "torch on cpu"
    return "triton" if kernels else "torch"


def why_no_low_products(dim: int, on_host: bool, normalised: bool) -> str:
    """Why Triton's kernels of 16 bits are not for such a head, on any card; empty if they are."""
    if not normalised:
        return "its inner products are not those of unit vectors"
    if on_host:
        return "its class centres are in the host's memory"
    return f"features have {dim} numbers, and the kernels take {WIDEST}" if dim > WIDEST else ""


def require_centre_numbers(name: str, engine: str, numbers: str) -> None:
    """Check that an engine has the numbers of class centres that the option ``name`` asks for.

    :raises UserError: if it has not.
    """
    if numbers != "float32" and not ENGINES[engine].rounds_centres:
        raise UserError(f"{name}: found {numbers!r}, but {ENGINES[engine].title} keeps class centres as float32; "
                        "expected --engine torch")


def make_shard(engine: Engine, device: Device, classes: tuple[int, int], dim: int, on_host: bool, sampled: bool,
               low_products: bool = False, numbers: str = "float32", folder: Path | None = None,
               **options: Any) -> Shard:
    """A shard of the class centres ``start .. stop - 1``, on whatever computes fastest with them.

    On CPUs that is :mod:`recognition.engines.cpu`, whatever the engine. With W in the host's memory (``on_host``) the
    rows of a sample travel to the device. Centres whose ``numbers`` are bfloat16 are PyTorch's, also on CPUs. With
    ``folder`` they are on a disk.

    :raises UserError: if there are no such numbers.
    """
    require_centre_numbers("centres_numbers", engine.name, numbers)
    if folder:
        options["folder"] = folder
    rounded = numbers != "float32"
    if shard_kind(engine.name, device[0], rounded, on_host, sampled) == "cpu":
        from recognition.engines.cpu.shard import CpuShard

        return CpuShard(*classes, dim, **options)
    if rounded:
        options["in_16_bits"] = True
    return engine.shard(device, classes, dim, on_host, low_products and device[0] != "cpu", **options)
