# SPDX-License-Identifier: Apache-2.0
"""A folder that two hosts have over NFS from a third, whose server goes away and comes back while states are saved.

Server and clients are programs, as namespaces have no kernel of their own: nfs-ganesha (Debian: nfs-ganesha-vfs), and
fuse-nfs, which is built from its source (Debian: gcc, pkg-config, libfuse-dev, libnfs-dev):

    git clone https://github.com/sahlberg/fuse-nfs && cd fuse-nfs && echo '#define HAVE_ST_ATIM 1' > config.h
    gcc -O2 fuse/fuse-nfs.c $(pkg-config --cflags --libs fuse libnfs) -o /usr/local/bin/fuse-nfs
"""
from __future__ import annotations

import contextlib
import math
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Callable, NamedTuple

from faults.hosts import bed_run
from faults.hosts.bed import Bed
from faults.hosts.kills import end_of
from faults.hosts.trials import END_SECONDS, STALL_SECONDS, START_SECONDS, Trial, await_state, ended, left_over, row
from faults.reliability import Row
from recognition.training.states.folder import saved_states
from recognition.training.states.state import SavedState

ABOUT = "the server of a shared folder (NFS)"
PROGRAMS = ("ganesha.nfsd", "rpcbind", "fuse-nfs")
STEPS, EVERY = 200, 5  # of a run; between states: one is nearly always on its way
AWAY_SECONDS = 20.0  # less than --stall-timeout
RUN_SECONDS = 900.0  # for the whole run, on a machine that is busy
_CONF = """
NFS_CORE_PARAM {{ Protocols = 3; NFS_Port = 2049; MNT_Port = 20048; Enable_NLM = false; Enable_RQUOTA = false; }}
EXPORT {{ Export_Id = 1; Path = {folder}; Pseudo = /models; Protocols = 3; SecType = sys; Transports = TCP;
          Access_Type = RW; Squash = No_root_squash; FSAL {{ Name = VFS; }} }}
"""


def why_not() -> str:
    """The thing that this machine lacks for it; '' if it has all."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    return f"no {', '.join(missing)}: faults/hosts/network_folder.py says where they come from" if missing else ""


class NetworkFolder:
    """The folder, mounted at ``../network`` on node1 and node2; ``here``: as node3 has it, seen from this machine."""

    def __init__(self, bed: Bed) -> None:
        self._clients, self._server = [bed["node1"], bed["node2"]], bed["node3"]
        exported = self._server.project.parent / "exported"
        self.here = self._server.path("../exported")
        self._server.check(f"mkdir -p {exported} /run/ganesha && rpcbind -w > /dev/null 2>&1")
        self._server.path("../ganesha.conf").write_text(_CONF.format(folder=exported))
        self.serve()
        url = f"nfs://{self._server.address}{exported}?nfsport=2049&mountport=20048&autoreconnect=-1"
        for host in self._clients:
            host.check(f"mkdir -p ../network && fuse-nfs -n '{url}' -m ../network > /dev/null 2>&1")

    def serve(self) -> None:
        """Start the server, and wait until it answers."""
        self._server.check("ganesha.nfsd -f $(realpath ../ganesha.conf) -L /run/ganesha.log -p /run/ganesha.pid "
                           "> /dev/null 2>&1")
        end = time.monotonic() + START_SECONDS
        while not self._server.check("ss -H -tln 'sport = :2049'"):
            if time.monotonic() > end:
                raise RuntimeError(self._server.check("tail /run/ganesha.log"))
            time.sleep(0.2)

    def tell(self, number: signal.Signals) -> None:
        """Send a signal to the server."""
        self._server.check(f"kill -{number.name[3:]} $(cat /run/ganesha.pid)")

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """The server stands still."""
        self.tell(signal.SIGSTOP)
        try:
            yield
        finally:
            self.tell(signal.SIGCONT)

    @contextlib.contextmanager
    def cut_off(self) -> Iterator[None]:
        """No packet comes to the server, or from it."""
        self._server.firewall('iifname "eth0" drop | oifname "eth0" drop')
        try:
            yield
        finally:
            self._server.firewall("")

    @contextlib.contextmanager
    def dead(self) -> Iterator[None]:
        """There is no server."""
        self.tell(signal.SIGKILL)
        try:
            yield
        finally:
            self.serve()

    def close(self) -> None:
        """Take the folder off, and end the server. The files stay."""
        for host in self._clients:
            host.check("umount -l ../network")
        self._server.run("kill -9 $(cat /run/ganesha.pid); pkill rpcbind")


class Absence(NamedTuple):
    what: str
    promised: str
    how: Callable[[NetworkFolder], AbstractContextManager[None]]
    short: bool = True


GOES_ON = "the run goes on, or ends with one line, and `--resume auto` goes on; the end is the same, bit for bit"
ABSENCES = [
    Absence(f"stands still for {AWAY_SECONDS:g} s", GOES_ON, NetworkFolder.still),
    Absence(f"is cut off for {AWAY_SECONDS:g} s", GOES_ON, NetworkFolder.cut_off),
    Absence(f"is killed, and starts again {AWAY_SECONDS:g} s later", GOES_ON, NetworkFolder.dead),
    Absence("stands still until the run has ended", f"--stall-timeout ({STALL_SECONDS} s here) later the run ends, "
            "with a line that names a host; then `--resume auto` goes on; the end is the same, bit for bit",
            NetworkFolder.still, short=False),
]


def absences(bed: Bed, times: int) -> list[Row]:
    """Try each so many times: a row for each."""
    rows = []
    folder = NetworkFolder(bed)
    try:
        status, said = ended(_begin(bed, "undisturbed"), RUN_SECONDS)
        if status:
            raise RuntimeError(f"the undisturbed run failed: {said}")
        whole = end_of(folder.here / "undisturbed")
        for number, absence in enumerate(ABSENCES):
            trials = []
            for time_ in range(times):
                name = f"absence-{number}-{time_}"
                try:
                    trial = _try(bed, folder, absence, name)
                except RuntimeError as error:
                    trial = Trial(False, math.nan, str(error))
                other = "" if not trial.kept or end_of(folder.here / name) == whole else "another end"
                left = left_over(bed)
                trials.append(trial._replace(kept=trial.kept and not left and not other,
                                             said=f"{trial.said} {other} {left}"))
            rows.append(row(f"{ABOUT} {absence.what}", absence.promised, trials))
    finally:
        folder.close()
    return rows


def _begin(bed: Bed, name: str) -> subprocess.Popen[str]:
    trainer = (f"--max-steps {STEPS} --frequent {EVERY} --resume auto --models-root ../network/{name}")
    return bed["node1"].begin(bed_run.line([bed["node1"], bed["node2"]], 1, f"--stall-timeout {STALL_SECONDS}", trainer)
                              .replace("--verbose 1 ", f"--verbose {EVERY} "))


def _try(bed: Bed, folder: NetworkFolder, absence: Absence, name: str) -> Trial:
    run = _begin(bed, name)
    await_state(run, folder.here / name)
    since = time.monotonic()
    with absence.how(folder):
        if absence.short:
            time.sleep(AWAY_SECONDS)
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.wait(END_SECONDS)
    seconds = time.monotonic() - since
    status, said = ended(run, RUN_SECONDS)
    newest = saved_states(next((folder.here / name).iterdir()) / "state")[-1]
    if problem := SavedState(newest).problem():
        raise RuntimeError(f"{said}; {newest.name}: {problem}")
    if not status:
        return Trial(absence.short, seconds, f"went on: {said}")
    named = "error: " in said if absence.short else " hangs: " in said and "node" in said
    again, told = ended(_begin(bed, name), RUN_SECONDS)
    return Trial(named and not again, seconds, f"ended: {said}; --resume auto: {again} {told}")
