# SPDX-License-Identifier: Apache-2.0
"""``run.json``: options, command, code, machine and versions of each start of a run, for its report."""
from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import recognition
from recognition.config.devices import processors
from recognition.config.presets import ROOT
from recognition.errors import UserError
from recognition.io.files import write_whole
from recognition.training.watch.run_files import read_starts

FILE = "run.json"
KEPT_STARTS = 100  # of a run that is resumed again and again
PACKAGES = ("mxnet", "mxnet-cu112", "torch", "numpy", "scipy", "numba", "opencv-python-headless", "horovod")


def note_start(folder: Path, config: Mapping[str, Any], step: int, processes: int) -> None:
    """Add a start to the run's file, or begin a new file.

    :param config: all options, in JSON's types.
    :param step: the step that the run resumes from; with 0 the file begins anew.
    """
    starts = _starts(folder / FILE)[1 - KEPT_STARTS :] if step else []
    start = {"time": _now(), "step": step, "command": list(sys.orig_argv if hasattr(sys, "orig_argv") else sys.argv),
             "revision": revision(ROOT), "machine": machine(), "processes": processes, "versions": versions(),
             "config": config}
    _write(folder, [*starts, start])


def note_end(folder: Path, step: int, epoch: int, status: int) -> None:
    """Add the last step and epoch, and the exit status, to the last start."""
    if starts := _starts(folder / FILE):
        starts[-1]["end"] = {"time": _now(), "step": step, "epoch": epoch, "status": status}
        _write(folder, starts)


def _write(folder: Path, starts: list[Any]) -> None:
    write_whole(folder / FILE, json.dumps({"starts": starts}, indent=1))


def _starts(path: Path) -> list[Any]:
    """The starts in the file; none if there is no such file, or if it holds something else."""
    try:
        return read_starts(path)
    except UserError:
        return []


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def revision(folder: Path) -> str:
    """The git revision of the code, with ``, changed since`` if tracked files differ; empty if it is not known."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", os.fspath(folder), *arguments], capture_output=True, text=True, timeout=5)

    try:
        if Path(git("rev-parse", "--show-toplevel").stdout.strip()).resolve() != folder.resolve():
            return ""  # installed somewhere inside another repository
        commit = git("rev-parse", "HEAD").stdout.strip()
        return commit + (", changed since" if git("diff", "--quiet", "HEAD").returncode else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def machine() -> dict[str, str]:
    """Name, system, processor and memory of this host; a field is empty if it is not known."""
    memory = _field(Path("/proc/meminfo"), "MemTotal").split()
    return {"host": platform.node(), "system": platform.platform(),
            "processor": _field(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine(),
            "processors": str(processors()), "memory": f"{int(memory[0]) * 1024 / 1e9:.1f} GB" if memory else ""}


def _field(path: Path, name: str) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), "")


def versions() -> dict[str, str]:
    """The versions of this project, Python and the packages that compute."""
    found = {"this trainer": recognition.__version__, "Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
