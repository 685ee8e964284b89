# SPDX-License-Identifier: Apache-2.0
"""The job of scripts/slurm_job.sh, under a real slurmctld and two slurmd."""
from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.hosts.bed import Bed, Host

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
CONF = """
ClusterName=bed
SlurmctldHost=node3
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmdTimeout=60
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
StateSaveLocation=/run/slurmctld
SlurmdSpoolDir=/run/slurmd
SlurmctldLogFile=/run/slurmctld.log
SlurmdLogFile=/run/slurmd.log
NodeName=node1 NodeAddr=10.77.0.1 CPUs=1 State=UNKNOWN
NodeName=node2 NodeAddr=10.77.0.2 CPUs=1 State=UNKNOWN
PartitionName=all Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP
"""
JOB_SECONDS = 300.0


@pytest.fixture
def slurm(bed: Bed) -> Iterator[Host]:
    """A host with slurmctld, for two others with slurmd; all see the project in the same folder."""
    missing = [name for name in PROGRAMS if not shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")]
    if missing:
        pytest.skip(f"no {', '.join(missing)} (Debian: slurm-wlm, munge)")
    hosts = [bed["node1"], bed["node2"], bed["node3"]]
    (bed.folder / "slurm.conf").write_text(CONF)
    (bed.folder / "munge.key").write_bytes(b"for the bed alone" * 64)
    (bed.folder / "munge.key").chmod(0o600)
    for host in hosts:
        host.check("mkdir -p /run/munge && chmod 755 /run/munge && mkdir -p /srv/all && "
                   f"{{ mountpoint -q /srv/all || mount --bind {host.project} /srv/all; }}")
        host.check(f"munged --force --key-file={bed.folder}/munge.key --socket=/run/munge/munge.socket.2 "
                   "--pid-file=/run/munge/pid --log-file=/run/munge/log --seed-file=/run/munge/seed")
    controller = hosts[-1]
    controller.check(f"mkdir -p /run/slurmctld && slurmctld -f {bed.folder}/slurm.conf")
    for host in hosts[:2]:
        host.check(f"mkdir -p /run/slurmd && slurmd -f {bed.folder}/slurm.conf -N {host.name}")
    try:
        yield controller
    finally:
        for host in hosts:
            host.run("kill -9 $(cat /run/slurmctld.pid /run/slurmd.pid /run/munge/pid 2>/dev/null)")


def test_a_job_on_two_hosts(bed: Bed, slurm: Host, models: str) -> None:
    pytest.importorskip("torch")
    name = Path(models.split()[1]).name
    job = slurm.run(f"cd /srv/all && SLURM_CONF={bed.folder}/slurm.conf PROCESSES=2 sbatch --chdir=/srv/all "
                    "--export=ALL --exclusive scripts/slurm_job.sh --engine torch --devices cpu --lr 0.01 "
                    f"--per-batch-size 4 --max-steps 2 --models-root {bed.folder}/shared/{name}")
    assert job.returncode == 0, job.stderr
    number, end = job.stdout.split()[-1], time.monotonic() + JOB_SECONDS
    while True:
        state = slurm.run(f"SLURM_CONF={bed.folder}/slurm.conf scontrol show job {number}").stdout
        if "JobState=COMPLETED" in state or "JobState=FAILED" in state or time.monotonic() > end:
            break
        time.sleep(1)
    logs = [host.path(f"/srv/all/slurm-{number}.log") for host in (bed["node1"], bed["node2"])]
    text = "".join(path.read_text() for path in logs if path.exists())
    assert "JobState=COMPLETED" in state, (state, text)
    assert text.count("report: ") == 1, text
