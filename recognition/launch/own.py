# SPDX-License-Identifier: Apache-2.0
"""The processes that ``train.py`` and ``train_parall.py`` start by themselves: with PyTorch one for each GPU."""
from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from recognition.config.devices import Device, on_gpus
from recognition.launch.flags import parse
from recognition.launch.launcher import run
from recognition.processes.environment import started_by_launcher

ENGINE = "torch"


def own_processes(engine: str, devices: Sequence[Device], environ: Mapping[str, str] = os.environ) -> int:
    """The number of processes to start; 0 to compute in this one, as one of a launcher's processes always does.

    :param engine: the option ``engine``; for ``auto`` the engine is chosen here, and a line says why.
    :param devices: those of the run.
    :raises UserError: if no engine is installed.
    """
    if len(devices) < 2 or not on_gpus(devices) or started_by_launcher(environ):
        return 0
    if engine == "auto":
        from recognition.engines.choose import decide  # loads NumPy

        engine, line = decide(engine, devices)
        if line and engine == ENGINE:
            print(line, flush=True)
    return len(devices) if engine == ENGINE else 0


def start(processes: int, arguments: Sequence[str] = tuple(sys.argv)) -> int:
    """Run a trainer in so many processes on this host, as ``recognition.launch`` would; returns the status.

    :param arguments: the trainer's file and its flags.
    """
    command = [sys.executable, *arguments, "--engine", ENGINE]  # all with the one that was chosen here
    return run(parse(["-np", str(processes), "--servers", "0", "--", *command]))
