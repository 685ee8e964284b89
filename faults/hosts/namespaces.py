# SPDX-License-Identifier: Apache-2.0
"""Linux namespaces: whether this machine can make them, and processes that are started in new ones or enter some."""
from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

PROGRAMS = ("unshare", "nsenter", "ip", "tc", "nft", "ssh", "ssh-keygen")
SSHD = "/usr/sbin/sshd"
_NAMESPACES = ("--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc")
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl
START_SECONDS = 120.0  # for a host or a program, on a machine that is busy


def why_not() -> str:
    """The reason why this machine cannot make hosts; '' if it can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "only root of Linux can make hosts of namespaces"
    missing = [name for name in PROGRAMS if not shutil.which(name)] + ([] if os.access(SSHD, os.X_OK) else [SSHD])
    if missing:
        return f"hosts of namespaces need {', '.join(missing)} (Debian: iproute2, nftables, openssh-server)"
    tried = subprocess.run(["unshare", *_NAMESPACES, "ip", "link", "add", "v", "type", "veth", "peer", "name", "w"],
                           stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return f"namespaces cannot be made here: {tried.stderr.strip()}" if tried.returncode else ""


def hold(command: list[str], **variables: str) -> subprocess.Popen[bytes]:
    """Start a command in namespaces of its own. It dies with this process; signals of a terminal do not reach it."""
    return _bound(["unshare", *_NAMESPACES, *command], subprocess.DEVNULL, **variables)


def attend(pid: int, command: list[str]) -> subprocess.Popen[bytes]:
    """Start a program in the network of a process, and wait for its first line. It dies with this process."""
    program = _bound(["nsenter", "-t", str(pid), "-n", *command], subprocess.PIPE)
    assert program.stdout
    if not program.stdout.readline():
        raise RuntimeError(f"{' '.join(command)}: ended at once, with status {program.wait()}")
    return program


def _bound(command: list[str], stdout: int, **variables: str) -> subprocess.Popen[bytes]:
    environment: Mapping[str, str] = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", **variables}
    return subprocess.Popen(command, env=environment, start_new_session=True, stdin=subprocess.DEVNULL, stdout=stdout,
                            preexec_fn=lambda: ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL))


def has_netem() -> bool:
    """True if this kernel can delay and lose packets itself."""
    return not subprocess.run(["unshare", "--net", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"],
                              stdin=subprocess.DEVNULL, capture_output=True).returncode


def in_network(pid: int, *commands: str) -> None:
    """Run commands in the network of a process."""
    for command in commands:
        subprocess.run(["nsenter", "-t", str(pid), "-n", *command.split()], check=True)


def child_of(holder: subprocess.Popen[bytes]) -> int:
    """The process that ``unshare --fork`` has started, once it is there."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and holder.poll() is None:
        if found := Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split():
            return int(found[0])
        time.sleep(0.01)
    raise RuntimeError("unshare has started nothing")
