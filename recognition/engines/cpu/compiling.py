# SPDX-License-Identifier: Apache-2.0
"""Compilation of the Numba loops of class centres while a run is still starting.

Numba compiles a function when it is first called, one at a time and half of it under Python's lock. A run that does
not find them compiled starts two processes for that. Meanwhile it imports MXNet, binds its network and loads the
verification sets.

    python -m recognition.engines.cpu.compiling PARENT [KERNEL ...]

compiles these, or all, and ends with the process PARENT, however that ends. NumPy and Numba are imported only to
compile: to find out whether that is necessary takes neither.
"""
from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recognition.config.devices import local_place

if TYPE_CHECKING:
    from recognition.config.options import Config

# Arguments as Numba names their types: b1 bool, i8 int64, f4 float32, f8 float64; with A an array of one axis, with M a
# matrix, all C-contiguous. A signature that does not fit the calls of shard.py is compiled in vain; a test looks.
KERNELS = {
    "kernels.logit_statistics": "f4M i8A f4A f4A f4A f4 i8 f4 i8A f4A i8 i8 i8A f4M f4M f8M",
    "kernels.feature_gradient": "f4M i8A f4A f4 f4A i8A f4A i8 i8 i8A f4M f4M",
    "kernels.inverse_norms": "f4M f4A",
    "kernels.centre_gradients": "f4M f4A i8A f4M",
    "kernels.similarities_at": "f4M f4M i8M f4M",
    "kernels.update_centres": "f4M f4M i8A f4M f4A b1 f4 f4 f4",
    "adamw_kernel.update_centres_adamw": "f4M f4M f4M i8A f4M f4A b1 f4 f4 f4 f4 f4",
}
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl
SGD_ONLY, ADAMW_ONLY = "kernels.update_centres", "adamw_kernel.update_centres_adamw"
FOLDER, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[3]
SOURCES = ("kernels.py", "tiles.py", "adamw_kernel.py")


def missing(kernels: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """The kernels that Numba's cache does not seem to hold in their present form. This is a guess by the names and
    times of its files: a wrong guess costs time and nothing else."""
    newest = max((FOLDER / name).stat().st_mtime for name in SOURCES)
    place = environ.get("NUMBA_CACHE_DIR")
    files = Path(place).rglob("*kernel*.nbi") if place else (FOLDER / "__pycache__").glob("*kernel*.nbi")
    found = {path.name.split("-")[0] for path in files if path.stat().st_mtime >= newest}
    return [kernel for kernel in kernels if kernel not in found]


def needed(config: Config) -> list[str]:
    """The kernels that a run's shards of class centres call; none if all shards are on GPUs, or there are no shards."""
    on_host = config.devices[0][0] == "cpu" or (config.centers_on == "cpu" and config.sample_ratio == 1)
    other = SGD_ONLY if config.optimizer == "adamw" else ADAMW_ONLY
    return [kernel for kernel in KERNELS if kernel != other] if on_host and not config.triplets else []


class Compiling:
    """Context manager: compiles ``kernels`` where they are missing, in two processes that end with the block.

    The two print nothing: the run itself does what they cannot do, and reports it. If a run has several processes on
    a host, the first one starts them.
    """

    def __init__(self, kernels: Sequence[str], environ: Mapping[str, str] = os.environ) -> None:
        wanted = missing(kernels, environ) if local_place(environ)[0] == 0 else []
        self._processes: list[subprocess.Popen[bytes]] = []
        for half in (wanted[::2], wanted[1::2]):  # in this order they take about the same time
            if half:
                with contextlib.suppress(OSError):
                    self._processes.append(subprocess.Popen(
                        [sys.executable, "-m", "recognition.engines.cpu.compiling", str(os.getpid()), *half], cwd=ROOT,
                        env=dict(environ), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL))

    def wait(self) -> None:
        """Wait until they are compiled."""
        for process in self._processes:
            process.wait()

    def __enter__(self) -> Compiling:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()  # nothing, if it has ended
            process.wait()


def compile_kernels(names: Sequence[str]) -> None:
    """Compile the KERNELS ``names`` into Numba's cache."""
    import importlib

    from numba import types

    scalars = {"b1": types.boolean, "i8": types.int64, "f4": types.float32, "f8": types.float64}
    for name in names:
        module, function = name.split(".")
        kernel = getattr(importlib.import_module(f"recognition.engines.cpu.{module}"), function)
        kernel.compile(tuple(types.Array(scalars[kind[:2]], " AM".index(kind[2]), "C") if kind[2:] else scalars[kind]
                             for kind in KERNELS[name].split()))


def end_with(parent: int) -> None:
    """Have the kernel end this process when the one that started it does; at once if that one is gone."""
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    compile_kernels(sys.argv[2:] or list(KERNELS))
