# SPDX-License-Identifier: Apache-2.0
"""Which devices and how many workers a run has: the ``--devices`` flag, else the environment. MXNet is not asked here:
whether a GPU exists is found out by who first computes on it."""
from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from recognition.errors import UserError

Device = tuple[str, int]
TOPOLOGY = Path("/sys/devices/system/cpu/cpu0/topology")
MOST_DEVICES = 1024  # of a process
CPU: tuple[Device, ...] = (("cpu", 0),)
BFLOAT16 = ("avx512_bf16", "amx_bf16")  # processors' flags for products of bfloat16
WORKER = "RECOGNITION_WORKER"  # the variable that holds this process's number, if launch started it
CPU_INFO = Path("/proc/cpuinfo")
MEMORY_INFO = Path("/proc/meminfo")


def parse_devices(value: Any) -> tuple[Device, ...]:
    """Read ``cpu``, ``cpu:2``, ``gpu``, ``gpu:0,1``, or (kind, index) pairs as a saved configuration holds them.

    GPUs count among those that CUDA_VISIBLE_DEVICES leaves. Raises ValueError or TypeError on anything else.
    """
    if isinstance(value, str):
        kind, _, which = value.strip().partition(":")
        if kind == "cpu":
            devices = tuple(("cpu", index) for index in range(min(int(which or 1), MOST_DEVICES + 1)))
        else:
            devices = tuple((kind, int(index)) for index in (which or "0").split(","))
    else:
        devices = tuple((str(kind), int(index)) for kind, index in value)
    kinds = {kind for kind, _ in devices}
    if (kinds not in ({"cpu"}, {"gpu"}) or len(set(devices)) < len(devices) or min(devices)[1] < 0
            or len(devices) > MOST_DEVICES):
        raise ValueError
    return devices


def visible_devices(environ: Mapping[str, str]) -> tuple[Device, ...]:
    """The devices that CUDA_VISIBLE_DEVICES names, which CUDA numbers from 0 in its order; the CPU where it is unset,
    empty, or names none. Like CUDA, reads up to the first entry that is no GPU (``-1``, an empty one)."""
    entries = [entry.strip() for entry in environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    end = next((at for at, entry in enumerate(entries) if not entry or entry.startswith("-")), len(entries))
    if len(set(entries[:end])) < end:
        raise UserError(f"CUDA_VISIBLE_DEVICES: found {','.join(entries)!r}, expected each GPU once")
    return tuple(("gpu", index) for index in range(end)) or CPU


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int:
    """Bytes that programs can have without swapping, as the kernel reckons."""
    found = dict(line.split(":", 1) for line in MEMORY_INFO.read_text(encoding="ascii").splitlines())
    return int(found["MemAvailable"].split()[0]) << 10


# How launchers tell a process its place among those of its host: horovodrun, launch for servers, Open MPI.
LOCAL_PLACES = ("HOROVOD_LOCAL_", "RECOGNITION_LOCAL_", "OMPI_COMM_WORLD_LOCAL_")


def local_place(environ: Mapping[str, str]) -> tuple[int, int]:
    """This process's number among the processes of the run on this host, and their number."""
    for prefix in LOCAL_PLACES:
        if f"{prefix}SIZE" in environ:
            return int(environ[f"{prefix}RANK"]), int(environ[f"{prefix}SIZE"])
    return 0, 1


def own_devices(devices: Sequence[Device], environ: Mapping[str, str]) -> tuple[Device, ...]:
    """This process's devices: GPUs are dealt out among the processes of a host, CPU devices are each one's own.

    :raises UserError: if they cannot be dealt out evenly, as every process needs the same number.
    """
    rank, size = local_place(environ)
    if devices[0][0] == "cpu" or size == 1:
        return tuple(devices)
    each, rest = divmod(len(devices), size)
    if rest or not each:
        raise UserError(f"devices: found {len(devices)} GPUs for {size} processes on this host, expected as many for "
                        "each")
    return tuple(devices[rank * each : (rank + 1) * each])


def share_processors(devices: Sequence[Device], environ: MutableMapping[str, str]) -> None:
    """Give each CPU device of each process its share of the processors, and the products of the head its process's.

    To be called before NumPy and MXNet are imported, which read these variables then. MXNet gives every device as many
    threads as there are processors, or half of them, which it takes for the second threads of cores: two devices on two
    processors waited for each other, and one device left a core idle. What the user has set stays.
    """
    count, (_, processes) = sum(kind == "cpu" for kind, _ in devices), local_place(environ)
    mine = max(1, processors() // processes)
    if processes > 1:
        environ.setdefault("NUMBA_NUM_THREADS", str(mine))
    if count * processes > 1:
        environ.setdefault("OPENBLAS_NUM_THREADS", environ.get("OMP_NUM_THREADS", str(mine)))
        environ.setdefault("OMP_NUM_THREADS", str(max(1, mine // max(1, count))))
    elif count:
        environ.setdefault("OMP_NUM_THREADS", str(max(1, mine // threads_per_core())))


def threads_per_core(topology: Path = TOPOLOGY) -> int:
    """How many processors Linux sees for a core; 1 where it does not say."""
    try:
        siblings = (topology / "thread_siblings").read_text()  # a mask of bits in hexadecimal, with commas
        return max(1, bin(int(siblings.replace(",", ""), 16)).count("1"))
    except (OSError, ValueError):
        return 1


def num_workers(environ: Mapping[str, str]) -> int:
    """The number of worker processes: DMLC_NUM_WORKER, 1 where it is unset or empty."""
    require_numbers(environ)
    return int(environ.get("DMLC_NUM_WORKER") or "1")


# Variables that are read by libraries in C++, which end the process where they cannot: fewest and most.
_THREADS, _RANK, _SIZE = (1, 4096), (0, 1 << 20), (1, 1 << 20)
NUMBERS = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "MXNET_CPU_WORKER_NTHREADS"),
                    _THREADS),
    **dict.fromkeys(("HOROVOD_RANK", "HOROVOD_LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK",
                     "PMI_RANK", WORKER), _RANK),
    **dict.fromkeys(("HOROVOD_SIZE", "HOROVOD_LOCAL_SIZE", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE",
                     "PMI_SIZE", "DMLC_NUM_WORKER", "DMLC_NUM_SERVER"), _SIZE),
    "DMLC_PS_ROOT_PORT": (1, 65535)}


def require_numbers(environ: Mapping[str, str]) -> None:
    """:raises UserError: if one of NUMBERS is set to something else. OpenMP's may be several, with commas."""
    for name, (least, most) in NUMBERS.items():
        parts = environ.get(name, "").split(",") if name.startswith("OMP_") else [environ.get(name, "")]
        if parts != [""] and not all(part.strip().isdecimal() and len(part) < 10 and least <= int(part) <= most
                                     for part in parts):
            raise UserError(f"{name}: found {environ[name][:60]!r}, expected a whole number from {least} to {most}")
    for rank, size in (("HOROVOD_RANK", "HOROVOD_SIZE"), ("HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE")):
        if environ.get(rank) and environ.get(size) and int(environ[rank]) >= int(environ[size]):
            raise UserError(f"{rank}: found {environ[rank]}, expected less than {size}, {environ[size]}")


def require_bfloat16(what: str, cpu_info: Path = CPU_INFO) -> None:
    """:raises UserError: about the flag ``what``, if the processor, as Linux describes it in ``cpu_info``, does not
    multiply bfloat16."""
    try:
        lines = cpu_info.read_text().splitlines()
        flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    except OSError:
        flags = set()
    if not flags.intersection(BFLOAT16):
        raise UserError(f"{what}: this processor has no bfloat16 (none of {', '.join(BFLOAT16)} in {cpu_info}), and "
                        "float16 needs a GPU; compute in float32, that is without it")
