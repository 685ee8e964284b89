# SPDX-License-Identifier: Apache-2.0
"""Which devices and how many workers a run has: the ``--devices`` flag, else the environment. MXNet is not asked here:
whether a GPU exists is found out by who first computes on it."""
from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from recognition.errors import UserError

Device = tuple[str, int]
CPU: tuple[Device, ...] = (("cpu", 0),)


def parse_devices(value: Any) -> tuple[Device, ...]:
    """Read ``cpu``, ``cpu:2``, ``gpu``, ``gpu:0,1``, or (kind, index) pairs as a saved configuration holds them.

    GPUs count among those that CUDA_VISIBLE_DEVICES leaves. Raises ValueError or TypeError on anything else.
    """
    if isinstance(value, str):
        kind, _, which = value.strip().partition(":")
        if kind == "cpu":
            devices = tuple(("cpu", index) for index in range(int(which or 1)))
        else:
            devices = tuple((kind, int(index)) for index in (which or "0").split(","))
    else:
        devices = tuple((str(kind), int(index)) for kind, index in value)
    kinds = {kind for kind, _ in devices}
    if kinds not in ({"cpu"}, {"gpu"}) or len(set(devices)) < len(devices) or min(devices)[1] < 0:
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


def share_processors(devices: Sequence[Device], environ: MutableMapping[str, str]) -> None:
    """Give each CPU device its share of the processors, and the products of the head all of them.

    To be called before NumPy and MXNet are imported, which read these variables then. MXNet gives every device as many
    threads as there are processors: two devices on two processors were half as fast so, waiting for each other. What
    the user has set stays.
    """
    count = sum(kind == "cpu" for kind, _ in devices)
    if count > 1:
        environ.setdefault("OPENBLAS_NUM_THREADS", environ.get("OMP_NUM_THREADS", str(processors())))
        environ.setdefault("OMP_NUM_THREADS", str(max(1, processors() // count)))


def num_workers(environ: Mapping[str, str]) -> int:
    """The number of worker processes: DMLC_NUM_WORKER, 1 where it is unset or empty."""
    text = environ.get("DMLC_NUM_WORKER") or "1"
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"DMLC_NUM_WORKER: found {text!r}, expected a whole number at least 1")
    return int(text)
