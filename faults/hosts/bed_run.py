# SPDX-License-Identifier: Apache-2.0
"""The run of the test bed: the run of the harnesses, set up on each host as a user would, in folders of its own."""
from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from faults import small_run
from faults.hosts.bed import Host

ENGINES = {"Horovod": "--engine mxnet", "servers": "--engine mxnet --kvstore dist_sync", "PyTorch": "--engine torch"}


def set_up(hosts: Iterable[Host]) -> None:
    """Give each host the set, the networks and a ``config.py`` that names the host's own folders."""
    with tempfile.TemporaryDirectory() as name:
        made = small_run.make(Path(name) / "set")
        for host in hosts:
            data = Path("/srv", host.name, "faces")
            shutil.copytree(made, host.path(data))
            for network in small_run.NETWORKS:
                shutil.copy(made / f"{network}.py", host.path(f"{network}.py"))
            host.path("config.py").write_text(small_run.CONFIG.format(
                sample=str(host.project / "sample_config.py"), networks=list(small_run.NETWORKS), data=str(data),
                classes=small_run.IDENTITIES))


def line(hosts: Sequence[Host], each: int, launcher: str = "", trainer: str = "", engine: str = "PyTorch") -> str:
    """The shell line that starts ``each`` processes on each host, for one of ``ENGINES``."""
    places = ",".join(f"{host.name}:{each}" for host in hosts)
    folders = ",".join(f"{host.name}={host.project}" for host in hosts)
    return (f".venv/bin/python -m recognition.launch -np {each * len(hosts)} --hosts {places} --folders {folders} "
            f"{launcher} -- {command(trainer, engine)}")


def command(trainer: str = "", engine: str = "PyTorch") -> str:
    """The trainer's own command line."""
    return (f".venv/bin/python train_parall.py --lr 0.01 --per-batch-size 4 --devices cpu --verbose 1 "
            f"{ENGINES[engine]} {trainer}")
