# SPDX-License-Identifier: Apache-2.0
"""The devices and workers of a run, from the ``--devices`` flag or from the environment.

No engine is imported here: a GPU that does not exist is noticed by the code that first computes on it.
"""
from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from recognition.errors import UserError

Device = tuple[str, int]
TOPOLOGY = Path("/sys/devices/system/cpu/cpu0/topology")
MOST_DEVICES = 1024  # of a process
MOST_DECODE_THREADS = 8
CPU: tuple[Device, ...] = (("cpu", 0),)
BFLOAT16 = ("avx512_bf16", "amx_bf16")  # flags in CPU_INFO of processors that multiply bfloat16
WORKER = "RECOGNITION_WORKER"  # the variable that holds this process's number, if launch started it
CPU_INFO = Path("/proc/cpuinfo")


def parse_devices(value: Any) -> tuple[Device, ...]:
    """Read ``cpu``, ``cpu:2``, ``gpu``, ``gpu:0,1``, or the (device type, index) pairs of a saved configuration.

    The index of a GPU is its place in CUDA_VISIBLE_DEVICES, if that is set.

    :raises ValueError: on anything else; TypeError, too.
    """
    if isinstance(value, str):
        device_type, _, which = value.strip().partition(":")
        if device_type == "cpu":
            devices = tuple(("cpu", index) for index in range(min(int(which or 1), MOST_DEVICES + 1)))
        else:
            devices = tuple((device_type, int(index)) for index in (which or "0").split(","))
    else:
        devices = tuple((str(device_type), int(index)) for device_type, index in value)
    device_types = {device_type for device_type, _ in devices}
    if (device_types not in ({"cpu"}, {"gpu"}) or len(set(devices)) < len(devices) or min(devices)[1] < 0
            or len(devices) > MOST_DEVICES):
        raise ValueError
    return devices


def visible_devices(environ: Mapping[str, str]) -> tuple[Device, ...]:
    """The GPUs in CUDA_VISIBLE_DEVICES, which CUDA numbers from 0 in this order; the CPU if there are none. Like CUDA
    it reads up to the first entry that is no GPU (``-1``, an empty one).

    :raises UserError: if a GPU is there twice.
    """
    entries = [entry.strip() for entry in environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    end = next((at for at, entry in enumerate(entries) if not entry or entry.startswith("-")), len(entries))
    if len(set(entries[:end])) < end:
        raise UserError(f"CUDA_VISIBLE_DEVICES: found {','.join(entries)!r}, expected each GPU once")
    return tuple(("gpu", index) for index in range(end)) or CPU


def processors() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decode_threads() -> int:
    """The number of threads that decode images, unless a flag says another."""
    return min(processors(), MOST_DECODE_THREADS)


# Variables in which launchers put the place of a process on its host, and how many it has: horovodrun, launch with
# servers, Open MPI, torchrun.
LOCAL_PLACES = (("HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"), ("RECOGNITION_LOCAL_RANK", "RECOGNITION_LOCAL_SIZE"),
                ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))


def local_place(environ: Mapping[str, str]) -> tuple[int, int]:
    """The number of this process among the run's processes on this host, and how many these are."""
    for rank, size in LOCAL_PLACES:
        if environ.get(rank) and environ.get(size):
            return int(environ[rank]), int(environ[size])
    return 0, 1


def on_gpus(devices: Sequence[Device]) -> bool:
    """True if the devices, which are all of one kind, are GPUs."""
    return devices[0][0] == "gpu"


def own_devices(devices: Sequence[Device], environ: Mapping[str, str]) -> tuple[Device, ...]:
    """The devices of this process. GPUs are divided among the processes of a host; every process has all CPU devices.

    :raises UserError: if GPUs cannot be divided evenly: every process needs the same number.
    """
    rank, size = local_place(environ)
    if not on_gpus(devices) or size == 1:
        return tuple(devices)
    each, rest = divmod(len(devices), size)
    if rest or not each:
        raise UserError(f"devices: found {len(devices)} GPUs for {size} processes on this host, expected as many for "
                        "each")
    return tuple(devices[rank * each : (rank + 1) * each])


def share_processors(devices: Sequence[Device], environ: MutableMapping[str, str]) -> None:
    """Set the variables that give each CPU device its share of the processors, and the head the share of its process.

    Call it before NumPy and MXNet are imported, which read these variables then. By default MXNet gives every device as
    many threads as there are processors, or half of them, as if they were second threads of cores: two devices on two
    processors waited for each other, and one device left a core idle. Variables that the user has set do not change.
    """
    count, (_, processes) = sum(device_type == "cpu" for device_type, _ in devices), local_place(environ)
    mine = max(1, processors() // processes)
    if processes > 1:
        environ.setdefault("NUMBA_NUM_THREADS", str(mine))
        if not count:
            environ.setdefault("OMP_NUM_THREADS", str(mine))  # of rows of class centres in host memory
    if count * processes > 1:
        environ.setdefault("OPENBLAS_NUM_THREADS", environ.get("OMP_NUM_THREADS", str(mine)))
        environ.setdefault("OMP_NUM_THREADS", str(max(1, mine // max(1, count))))
    elif count:
        environ.setdefault("OMP_NUM_THREADS", str(max(1, mine // threads_per_core())))


def threads_per_core() -> int:
    """The number of processors that Linux sees for a core; 1 if it is not known."""
    try:
        siblings = (TOPOLOGY / "thread_siblings").read_text()  # a mask of bits in hexadecimal, with commas
        return max(1, bin(int(siblings.replace(",", ""), 16)).count("1"))
    except (OSError, ValueError):
        return 1


def num_workers(environ: Mapping[str, str]) -> int:
    """The number of worker processes: DMLC_NUM_WORKER, or 1 if it is unset or empty."""
    require_numbers(environ)
    return int(environ.get("DMLC_NUM_WORKER") or "1")


# (least, most) of variables that C++ libraries read: they end the process if one is no number.
_THREADS, _RANK, _SIZE = (1, 4096), (0, 1 << 20), (1, 1 << 20)
NUMBERS = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "MXNET_CPU_WORKER_NTHREADS"),
                    _THREADS),
    **dict.fromkeys(("HOROVOD_RANK", "HOROVOD_LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK",
                     "PMI_RANK", "LOCAL_RANK", WORKER), _RANK),
    **dict.fromkeys(("HOROVOD_SIZE", "HOROVOD_LOCAL_SIZE", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE",
                     "PMI_SIZE", "LOCAL_WORLD_SIZE", "DMLC_NUM_WORKER", "DMLC_NUM_SERVER"), _SIZE),
    "DMLC_PS_ROOT_PORT": (1, 65535)}
# The same of variables that PyTorch's processes read alone.
TORCH_NUMBERS = {"RANK": _RANK, "DMLC_WORKER_ID": _RANK, "WORLD_SIZE": _SIZE, "MASTER_PORT": (1, 65535)}
RANKS = (("HOROVOD_RANK", "HOROVOD_SIZE"), ("HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"),
         ("LOCAL_RANK", "LOCAL_WORLD_SIZE"), ("RANK", "WORLD_SIZE"))


def require_numbers(environ: Mapping[str, str], numbers: Mapping[str, tuple[int, int]] = NUMBERS) -> None:
    """Check the variables in ``numbers``. Those of OpenMP may hold several numbers, with commas.

    :raises UserError: if one is set to something else, or if a rank is not below its size.
    """
    for name, (least, most) in numbers.items():
        parts = environ.get(name, "").split(",") if name.startswith("OMP_") else [environ.get(name, "")]
        if parts != [""] and not all(part.strip().isdecimal() and len(part) < 10 and least <= int(part) <= most
                                     for part in parts):
            raise UserError(f"{name}: found {environ[name][:60]!r}, expected a whole number from {least} to {most}")
    for rank, size in RANKS:
        known = rank in numbers and environ.get(rank) and environ.get(size)
        if known and int(environ[rank]) >= int(environ[size]):
            raise UserError(f"{rank}: found {environ[rank]}, expected less than {size}, {environ[size]}")


def processor_flags() -> set[str]:
    """What the processor can do, in the words of Linux's description of it; empty if there is none."""
    return _words_of("flags")


def processor_of_amd() -> bool:
    """True if AMD made the processor."""
    return "AuthenticAMD" in _words_of("vendor_id")


def _words_of(key: str) -> set[str]:
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return set()
    return {word for line in lines if line.startswith(key) for word in line.split()}


def require_bfloat16(what: str) -> None:
    """Check that the processor multiplies bfloat16.

    :raises UserError: beginning with the flag ``what``, if it does not.
    """
    if not processor_flags().intersection(BFLOAT16):
        raise UserError(f"{what}: this processor has no bfloat16 (none of {', '.join(BFLOAT16)} in {CPU_INFO}), and "
                        "float16 needs a GPU; compute in float32, that is without it")
