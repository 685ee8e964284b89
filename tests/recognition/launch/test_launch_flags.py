# SPDX-License-Identifier: Apache-2.0
"""The launcher's flags: what they come to, and that a bad one is one line, before anything is started."""
from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from recognition.errors import UserError
from recognition.launch.flags import parse, wants_servers

ROOT = Path(__file__).resolve().parents[3]


def test_flags() -> None:
    options = parse(["-np", "2", "--", "python", "train.py", "--kvstore", "dist_sync"])
    assert options.command == ["python", "train.py", "--kvstore", "dist_sync"] and wants_servers(options.command)
    for command, more in ((["python", "train.py"], ["--kvstore", "dist_sync"]), (["./mine.sh"], []),
                          (["python", "train.py", "--kvstore=dist_device_sync"], [])):
        assert parse(["-np", "2", "--servers", "1", "--", *command]).command == command + more
        assert parse(["-np", "2", "--servers", "0", "--", *command]).command == command
    with pytest.raises(UserError, match="--servers: found --kvstore of another kind in the command, expected"):
        parse(["-np", "2", "--servers", "1", "--", "python", "train.py", "--kvstore", "device"])
    assert wants_servers(["--kvstore=dist_device_sync"]) and not wants_servers(["--kvstore", "device"])
    for argv in (["-np", "2"], ["-np", "2", "--", ""], ["--", "x"], ["-np", "2", "--nonsense", "--", "x"]):
        with pytest.raises(UserError):
            parse(argv)
    typed = parse(["-np", "2", "--restarts", "3", "--stall-timeout", "0.5", "--hosts", "a:2", "--ssh", "sh -x", "x"])
    assert (typed.workers, typed.restarts, typed.stall_timeout, typed.slow_after) == (2, 3, 0.5, 60)
    assert parse(["-np", "4", "--fewest", "2", "x"]).fewest == 2 and typed.fewest is None
    with pytest.raises(UserError, match="--fewest: found 3, expected at most -np, 2"):
        parse(["-np", "2", "--fewest", "3", "x"])
    assert (typed.servers, typed.hosts, typed.ssh, typed.command) == (None, [("a", 2)], ["sh", "-x"], ["x"])


@pytest.mark.parametrize("flag, values, expected", [
    ("-np", ("0", "-1", "two", "1.5", "99999999999"), "a whole number at least 1 and at most 10000"),
    ("--servers", ("-1", "one", ""), "a whole number at least 0 and at most 10000"),
    ("--restarts", ("-1", "1.5"), "a whole number at least 0"),
    ("--fewest", ("0", "all"), "a whole number at least 1 and at most 10000"),
    ("--stall-timeout", ("nan", "-1", "0", "inf", "soon"), "a number above 0"),
    ("--slow-after", ("0", "nan", ""), "a number above 0"),
    ("--hosts", ("nonsense", "", "a b:2", "a:1,a:1"), "(HOST:WORKERS, such as a:2,b:2|each host once)"),
    ("--address", ("",), "a text that is not empty"),
    ("--interface", (" ",), "a text that is not empty"),
    ("--ssh", ("", "'a", "no-such-command -p 1"), "a command of this host with its flags"),
])
def test_each_flag_is_checked(flag: str, values: tuple[str, ...], expected: str) -> None:
    for value in values:
        with pytest.raises(UserError, match=f"^{flag}: found (.*{re.escape(value)}.*), expected {expected}"):
            parse(["-np", "2", flag, value, "--", "true"])


@pytest.mark.parametrize("flags, line", [
    (("--interface", "nope0"), "--interface: found 'nope0', expected a network interface of this host: "),
    (("--address", "0.0.0.0"), "--address: found 0.0.0.0, expected an address of this host: it stands for all"),
    (("--address", "255.255.255.255"), "--address: found 255.255.255.255, expected an address of this host: "),
    (("--address", "a..b"), "--address: found a..b, expected an address of this host: "),
    (("--hosts", "a..b:3"), "--hosts: a..b: "),
])
def test_what_this_host_does_not_have(horovod: None, tmp_path: Path, flags: tuple[str, ...], line: str) -> None:
    found = subprocess.run([sys.executable, "-m", "recognition.launch", "-np", "3", *flags, "--", "touch", "started"],
                           cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
                           timeout=300)
    assert (found.returncode, found.stderr.count("\n")) == (2, 1), found.stderr
    assert found.stderr.startswith(f"error: {line}")
    assert not (tmp_path / "started").exists()
