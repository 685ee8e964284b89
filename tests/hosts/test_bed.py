# SPDX-License-Identifier: Apache-2.0
"""The test bed itself: what its hosts share and what they do not, and that nothing of it stays."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from faults.hosts.bed import ROOT, Bed

ECHO = """
import socket
to = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
to.bind(("10.77.0.1", 9000))
print("ready", flush=True)
while True:
    to.sendto(*to.recvfrom(100))
"""
ASKS = """
import socket, time
to = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
to.settimeout(5)
began, found = time.monotonic(), []
for number in range(200):
    to.sendto(b"%d" % number, ("10.77.0.1", 9000))
try:
    while len(found) < 200:
        found.append(to.recv(100).decode())
        first = time.monotonic() - began if len(found) == 1 else first
except TimeoutError:
    pass
print(first, *found)
"""


def test_hosts_have_names_addresses_folders_and_processes_of_their_own(bed: Bed) -> None:
    one, two = bed["node1"], bed["node2"]
    assert one.check("ssh node2 hostname").strip() == "node2"
    assert "10.77.0.2" in two.check("ip -4 -o addr show eth0")
    assert one.check("ls /srv").split() == ["node1"] and two.check("ls /srv").split() == ["node2"]
    assert two.processes() == {}
    sleeping = one.begin("ssh node2 sleep 100")
    end = time.monotonic() + 20
    while not any("sleep 100" in line for line in two.processes().values()):
        assert time.monotonic() < end
        time.sleep(0.1)
    two.check("pkill -f 'sleep 10[0]$'")
    assert sleeping.wait(20) != 0


def test_a_firewall_stops_one_way(bed: Bed) -> None:
    one, two = bed["node1"], bed["node2"]
    two.firewall("tcp dport 22 ip saddr 10.77.0.1 drop")
    try:
        assert "timed out" in one.run("ssh -o ConnectTimeout=2 node2 true").stderr
        assert two.check("ssh node1 hostname").strip() == "node1"
    finally:
        two.firewall("")
    assert one.check("ssh node2 hostname").strip() == "node2"


def test_a_link_delays_and_loses_packets_in_order_until_it_is_as_before(bed: Bed) -> None:
    """200 datagrams (more may not fit in a socket), of which 0.7 * 0.7 come back, within 6 deviations; the first after
    90 % of the delay, at least."""
    one, two = bed["node1"], bed["node2"]
    one.path("echo.py").write_text(ECHO)
    two.path("asks.py").write_text(ASKS)
    echo = one.begin("exec .venv/bin/python echo.py")
    assert echo.stdout and echo.stdout.readline()
    try:
        bed.slow_link(two, delay=0.1, loss=0.3)
        try:
            slow = two.check(".venv/bin/python asks.py").split()
        finally:
            bed.full_speed(two)
        again = two.check(".venv/bin/python asks.py").split()
    finally:
        os.killpg(echo.pid, signal.SIGKILL)
        echo.communicate()
    numbers = [int(number) for number in slow[1:]]
    assert float(slow[0]) >= 2 * 0.09 and 56 < len(numbers) < 140 and numbers == sorted(numbers), slow
    assert len(again) == 201


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_stays_when_the_bed_is_ended(number: int, tmp_path: Path) -> None:
    """After SIGKILL the folder with the keys stays, below the folder for temporary files, and nothing else."""
    code = ("from faults.hosts.bed import Bed\nimport os, signal, time\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it\n"
            "with Bed(2) as bed:\n"
            "    print(*(os.readlink(f'/proc/{host.pid}/ns/pid') for host in bed), flush=True)\n    time.sleep(100)")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               text=True, cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert process.stdout
    spaces = process.stdout.readline().split()
    assert len(spaces) == 2
    process.send_signal(number)
    process.wait(20)
    end = time.monotonic() + 10
    while any(space in spaces for space in map(_space, Path("/proc").glob("[0-9]*"))):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert number == signal.SIGKILL or not list(tmp_path.iterdir())


def _space(process: Path) -> str:
    try:
        return os.readlink(process / "ns/pid")
    except OSError:
        return ""
