# SPDX-License-Identifier: Apache-2.0
"""The memory that this machine can give to programs: what Linux has, and what the process's control groups allow."""
from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path("/")  # what the files of /proc and /sys are read below
NO_LIMIT = 1 << 60  # bytes; version 1 writes a number near 2^63 where there is no limit


class _Group(NamedTuple):
    """Names of a control group's files, by version."""

    limit: str
    used: str
    cache: str  # the line of memory.stat with what the kernel drops before it kills


_V1 = _Group("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Group("memory.max", "memory.current", "inactive_file")


def available_memory() -> int:
    """The bytes that this process can have without swapping and without being killed.

    That is the kernel's estimate (``MemAvailable``), or what the limits of the process's control groups leave, such as
    those of a container, if that is less; NO_LIMIT where the system tells neither.
    """
    found = re.search(r"^MemAvailable:\s*(\d+) kB$", _text(ROOT / "proc/meminfo"), re.MULTILINE)
    return min([int(found[1]) << 10 if found else NO_LIMIT, *_left_by_groups()])


def _left_by_groups() -> Iterator[int]:
    """The bytes that each control group of this process, and each that holds it, leaves of its limit."""
    for folder, names in _groups():
        limit, used = (_number(folder / name) for name in (names.limit, names.used))
        if limit is not None and used is not None and limit < NO_LIMIT:
            stat = _text(folder / "memory.stat")
            cache = re.search(rf"^{names.cache} (\d+)$", stat, re.MULTILINE)
            yield max(0, limit - used + (int(cache[1]) if cache else 0))


def _groups() -> Iterator[tuple[Path, _Group]]:
    """Folders of the control groups for memory. In a container the path that the process sees may be the host's; the
    container's own group then is the root of what is mounted."""
    for line in _text(ROOT / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            mounted, names = ROOT / "sys/fs/cgroup", _V2
        elif "memory" in controllers.split(","):
            mounted, names = ROOT / "sys/fs/cgroup/memory", _V1
        else:
            continue
        for inner in (PurePosixPath(path), *PurePosixPath(path).parents):
            yield mounted / str(inner).lstrip("/"), names


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None  # "max" is no limit


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
