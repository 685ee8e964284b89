# SPDX-License-Identifier: Apache-2.0
"""Runs on several hosts: that they start, each host with folders of its own, and that what hinders one is a line."""
from __future__ import annotations

import importlib.util
import signal
import time
from pathlib import Path

import pytest

from faults.hosts import bed_run
from faults.hosts.bed import Bed

WITH_TORCH = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
ENGINES = pytest.mark.parametrize("engine", [
    "Horovod", "servers", pytest.param("PyTorch", id="torch", marks=WITH_TORCH)])
ONE_STEP = "--max-steps 1"
ELASTIC_SECONDS = 400.0  # for two starts, and for torchrun to notice that a host is gone


@ENGINES
def test_two_hosts(bed: Bed, engine: str, models: str) -> None:
    """The launcher runs on the first of them."""
    line = bed_run.line([bed["node1"], bed["node2"]], 1, trainer=f"{ONE_STEP} {models}", engine=engine)
    done = bed["node1"].run(line)
    assert (done.returncode, done.stdout.count("report: ")) == (0, 1), done.stderr
    assert not done.stderr.count("rror"), done.stderr


@pytest.mark.parametrize("engine", ["servers", pytest.param("PyTorch", id="torch", marks=WITH_TORCH)])
def test_four_hosts_of_which_one_leads_its_name_to_itself(bed: Bed, engine: str, models: str) -> None:
    """As Debian writes /etc/hosts. It is the first, where the others meet it."""
    line = bed_run.line([bed["node4"], *(bed[f"node{number}"] for number in (1, 2, 3))], 1,
                        trainer=f"{ONE_STEP} {models}", engine=engine)
    done = bed["node2"].run(line)
    assert (done.returncode, done.stdout.count("report: ")) == (0, 1), done.stderr


@pytest.mark.usefixtures("names")
def test_four_hosts_with_horovod(bed: Bed, models: str) -> None:
    """Once the fourth's name leads to its address."""
    done = bed["node1"].run(bed_run.line(list(bed), 1, trainer=f"{ONE_STEP} {models}", engine="Horovod"))
    assert (done.returncode, done.stdout.count("report: ")) == (0, 1), done.stderr


def test_horovod_needs_names_that_lead_to_other_hosts(bed: Bed, models: str) -> None:
    done = bed["node1"].run(bed_run.line([bed["node1"], bed["node4"]], 1, trainer=models, engine="Horovod"))
    assert (done.returncode, done.stderr.splitlines()) == (2, [
        "error: --hosts: node4: its own name leads to 127.0.1.1 there, where Horovod would listen, expected 10.77.0.4 "
        "in its /etc/hosts; or use --engine torch, or servers by --kvstore dist_sync"])


@ENGINES
def test_the_launcher_may_be_on_another_host(bed: Bed, engine: str, models: str) -> None:
    line = bed_run.line([bed["node1"], bed["node2"]], 1, trainer=f"{ONE_STEP} {models}", engine=engine)
    done = bed["node3"].run(line)
    assert (done.returncode, done.stdout.count("report: ")) == (0, 1), done.stderr


def test_torchrun_with_a_rendezvous(bed: Bed, models: str) -> None:
    """Two processes on each of two hosts, of which one waits for the other."""
    pytest.importorskip("torch")
    trainer = bed_run.command(f"{ONE_STEP} {models}").split(maxsplit=1)[1]
    line = (".venv/bin/python -m torch.distributed.run --nnodes 2 --nproc-per-node 2 --rdzv-backend c10d "
            f"--rdzv-endpoint node1:29500 --rdzv-id faces {trainer}")
    runs = [bed[name].begin(line) for name in ("node1", "node2")]
    ends = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], ends
    assert sum(out.count("report: ") for out, _ in ends) == 1


def test_torchrun_goes_on_with_fewer_hosts(bed: Bed, models: str) -> None:
    """The processes of one host of two are killed: those of the other start again, and W is cut anew."""
    pytest.importorskip("torch")
    trainer = bed_run.command(f"--max-steps 100000 --frequent 20 --verbose 20 --resume auto {models}")
    line = (".venv/bin/python -m torch.distributed.run --nnodes 1:2 --nproc-per-node 1 --max-restarts 3 "
            "--rdzv-backend c10d --rdzv-endpoint node1:29501 --rdzv-id faces --rdzv-conf last_call_timeout=20,"
            f"keep_alive_interval=1,keep_alive_max_attempt=5 {trainer.split(maxsplit=1)[1]}")
    runs = [bed[name].begin(f"{line} > run.out 2>&1") for name in ("node1", "node2")]
    said, end = bed["node1"].path("run.out"), time.monotonic() + ELASTIC_SECONDS
    states = bed["node1"].path(f"{models.split()[1]}/small-arcface-small/state")
    while not list(states.glob("step-*[0-9]")):
        assert time.monotonic() < end and runs[0].poll() is None, said.read_text()
        time.sleep(0.2)
    for pid in bed["node2"].processes():
        bed["node2"].kill(pid, signal.SIGKILL)
    while "W, saved in 2 shards, is cut anew into 1" not in said.read_text():
        assert time.monotonic() < end and runs[0].poll() is None, said.read_text()
        time.sleep(0.2)
    bed["node1"].check("pkill -TERM -f 'torch[.]distributed'")
    runs[0].wait(60)
    runs[1].wait(60)


def test_the_launcher_of_kubernetes(bed: Bed, models: str) -> None:
    """`kubectl exec` is ssh here: the launcher's host is none of the run's, and all have the project in one folder."""
    pytest.importorskip("torch")
    for host in (names := [bed[f"node{number}"] for number in (1, 2, 3)]):
        host.check(f"mkdir -p /srv/all && {{ mountpoint -q /srv/all || mount --bind {host.project} /srv/all; }}")
    names[2].path("hostfile").write_text("node1 slots=1\nnode2 slots=1\n")
    names[2].path("kubectl").write_text('#!/bin/sh\nexec ssh -o BatchMode=yes "$3" "$9"\n')
    names[2].path("kubectl").chmod(0o755)
    trainer = bed_run.command(f"{ONE_STEP} --models-root {bed.folder}/shared/{Path(models.split()[1]).name}")
    done = names[2].run(f"cd /srv/all && scripts/kubernetes/launch.sh {trainer.split(maxsplit=2)[2]}",
                        HOSTFILE="hostfile", KUBECTL="./kubectl", POD_IP="10.77.0.3")
    assert (done.returncode, done.stdout.count("report: ")) == (0, 1), done.stderr
