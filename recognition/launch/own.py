# SPDX-License-Identifier: Apache-2.0
"""The processes that ``train.py`` and ``train_parall.py`` start by themselves: with some engines one for each GPU."""
from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from recognition.config.devices import Device, on_gpus
from recognition.config.engines import ENGINES
from recognition.engines.choose import decide
from recognition.launch.flags import parse
from recognition.launch.launcher import run
from recognition.processes.environment import started_by_launcher


def engine_of_own(engine: str, devices: Sequence[Device], environ: Mapping[str, str] = os.environ) -> str:
    """The engine of which a process for each device is to be started; '' to compute in this process, as one of a
    launcher's always does.

    :param engine: the option ``engine``; for ``auto`` the engine is chosen here, and a line says why.
    :param devices: those of the run.
    :raises UserError: if no engine is installed.
    """
    if len(devices) < 2 or not on_gpus(devices) or started_by_launcher(environ):
        return ""
    name, line = decide(engine, devices)
    if not ENGINES[name].process_a_gpu:
        return ""
    if line:
        print(line, flush=True)
    return name


def start(engine: str, processes: int, arguments: Sequence[str] = tuple(sys.argv)) -> int:
    """Run a trainer in so many processes on this host, as ``recognition.launch`` would; returns the status.

    :param engine: of all of them; ``arguments``: the trainer's file and its flags.
    """
    command = [sys.executable, *arguments, "--engine", engine]
    return run(parse(["-np", str(processes), "--servers", "0", "--", *command]))
