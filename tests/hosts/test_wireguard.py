# SPDX-License-Identifier: Apache-2.0
"""A run through WireGuard's tunnel between two hosts: nothing else of it passes their link, and the link sees no text.

The way around what Gloo, ps-lite and Horovod cannot do (SECURITY.md). Debian: wireguard-tools and wireguard-go, its
program for kernels without WireGuard, which needs /dev/net/tun.
"""
from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest

from faults.hosts import bed_run
from faults.hosts.bed import Bed, Host

PROGRAMS = ("wireguard-go", "wg")
PORT = 51820
TUNNEL = "10.78.0"
# Counts the bytes that pass the link in both directions: WireGuard's datagrams, and all but these and the questions of
# IP where an address is.
TABLE = f"""
table netdev link {{
    counter tunnel {{}}
    counter other {{}}
    chain passes {{ udp dport {PORT} counter name tunnel accept; meta protocol arp accept
                    meta l4proto ipv6-icmp accept; counter name other; }}
    chain in {{ type filter hook ingress device eth0 priority 0; jump passes; }}
    chain out {{ type filter hook egress device eth0 priority 0; jump passes; }}
}}
"""


def counted(host: Host) -> dict[str, int]:
    """The bytes that each counter has seen on the host's link."""
    text = host.check("nft list counters")
    return {name: int(size) for name, size in re.findall(r"counter (\w+) {\s+packets \d+ bytes (\d+)", text)}


@pytest.fixture
def tunnel(bed: Bed) -> Iterator[list[Host]]:
    """node1 and node2 with a tunnel between them, to which their names lead; ssh goes through it, too."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if missing:
        pytest.skip(f"no {', '.join(missing)} (Debian: wireguard-go, wireguard-tools)")
    hosts = [bed["node1"], bed["node2"]]
    before = [(host.files / "hosts").read_text() for host in hosts]
    keys = (bed.folder / "known_hosts").read_text()
    for host in hosts:
        host.check("umask 077; wg genkey > /run/wg.key")
    public = [host.check("wg pubkey < /run/wg.key").strip() for host in hosts]
    for number, (host, other) in enumerate(zip(hosts, reversed(hosts))):
        host.check("wireguard-go wg0 > /dev/null 2>&1")
        host.check(f"wg set wg0 private-key /run/wg.key listen-port {PORT} peer {public[1 - number]} "
                   f"allowed-ips {TUNNEL}.{2 - number}/32 endpoint {other.address}:{PORT}")
        host.network(f"ip address add {TUNNEL}.{number + 1}/24 dev wg0", "ip link set wg0 up")
        (host.files / "hosts").write_text(before[number].replace("10.77.0.", f"{TUNNEL}."))
    (bed.folder / "known_hosts").write_text(keys + keys.replace("10.77.0.", f"{TUNNEL}."))
    try:
        yield hosts
    finally:
        for host, text in zip(hosts, before):
            host.network("ip link delete wg0")
            host.run("nft delete table netdev link")
            (host.files / "hosts").write_text(text)
        (bed.folder / "known_hosts").write_text(keys)


@pytest.mark.parametrize("engine", ["Horovod", "servers", "torch"])
def test_all_of_a_run_goes_through_the_tunnel(tunnel: list[Host], engine: str, models: str) -> None:
    if engine == "torch":
        pytest.importorskip("torch")
    else:
        pytest.importorskip("horovod" if engine == "Horovod" else "recognition.engines.mxnet.imports")
    for host in tunnel:
        host.path("link.nft").write_text(TABLE)
        host.check("nft -f link.nft")
    done = tunnel[0].run(bed_run.line(tunnel, 1, "--interface wg0", f"--max-steps 3 {models}",
                                      {"torch": "PyTorch"}.get(engine, engine)))
    assert (done.returncode, done.stdout.count("report: ")) == (0, 1), done.stderr
    found = [counted(host) for host in tunnel]
    print(engine, found)
    for counts in found:
        assert counts["other"] == 0 and counts["tunnel"] > 100000, found
