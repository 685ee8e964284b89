# SPDX-License-Identifier: Apache-2.0
"""The look at hosts before a run, through a stand-in for ssh; tests/hosts has it between real ones."""
from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable

import pytest

from recognition.errors import UserError
from recognition.launch.look_around import look_around

ROOT = Path(__file__).resolve().parents[3]
PROFILE = "echo Welcome; echo '{}'; echo '[1]'; echo 7; "  # what a shell may print before anything else


@pytest.fixture
def ssh(tmp_path: Path) -> Callable[[str], str]:
    """Makes a stand-in, which runs the line that ssh would hand to a host, after lines of its own."""

    def make(before: str = "") -> str:
        path = tmp_path / "ssh"
        path.write_text(f'#!/bin/sh\n{before}shift\nexec sh -c "$*"\n')
        path.chmod(0o755)
        return str(path)

    return make


def look(ssh: str, address: str = "127.0.0.1", interface: str | None = None) -> dict:
    return look_around({"a": str(ROOT), "b": str(ROOT)}, [sys.executable], ".", [ssh], address, interface,
                       lambda: False, print)


def test_what_a_shell_prints_first_is_no_answer(ssh: Callable[[str], str]) -> None:
    found = look(ssh(PROFILE))
    assert list(found) == ["a", "b"] and found["b"]["address"] == "127.0.0.1"


@pytest.mark.skipif(sys.platform != "linux", reason="interfaces are looked up on Linux")
def test_an_interface_that_a_host_lacks(ssh: Callable[[str], str]) -> None:
    with pytest.raises(UserError, match=r"^--hosts: a: --interface: found 'eth77', expected a network interface of "
                                        r"this host: lo\b"):
        look(ssh(), interface="eth77")


def test_a_loopback_address_between_hosts_is_no_firewall(ssh: Callable[[str], str], tmp_path: Path) -> None:
    """It leads back to the host that tries it, where nobody listens at the other's port: here nobody does at port 1.
    """
    other = tmp_path / "other.py"
    other.write_text("import recognition.launch.on_host as it, sys\nreal = it.describe\n"
                     "it.describe = lambda *a: {**real(*a), 'port': 1}\nit.main(*sys.argv[3:])\n")
    with pytest.raises(UserError, match=r"^--hosts: a: does not reach a at 127\.0\.0\.1, port 1: .*; expected no "
                                        r"loopback address between hosts: --interface names"):
        look_around({"a": str(ROOT), "b": str(ROOT)}, [sys.executable, str(other)], ".", [ssh()], "127.0.0.1", None,
                    lambda: False, print)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_look_that_is_stopped_blames_no_host(ssh: Callable[[str], str], tmp_path: Path, number: int) -> None:
    launch = subprocess.Popen(
        [sys.executable, "-m", "recognition.launch", "-np", "2", "--hosts", "a:1,b:1", "--ssh",
         ssh(f"touch {tmp_path}/asked\nsleep 1000\n"), "--address", "127.0.0.1", "--", sys.executable, "train.py"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True)
    while not (tmp_path / "asked").exists() and launch.poll() is None:
        time.sleep(0.02)
    launch.send_signal(number)
    out, err = launch.communicate(timeout=60)
    assert (launch.returncode, out, err) == (128 + number, "", "launch: stopped before anything was started\n")


def test_a_name_to_which_this_host_knows_no_way(ssh: Callable[[str], str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "recognition.launch", "-np", "1", "--hosts", "nobody.invalid:1", "--", sys.executable,
         "train.py"], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: --hosts: nobody\.invalid: this host knows no way to it: [^\[]*; --address sets this "
                        r"host's address, if only ssh knows that name\n", done.stderr)
