# SPDX-License-Identifier: Apache-2.0
"""What a stranger on the network of a run can do: the ports that are open, and what garbage at them does."""
from __future__ import annotations

import base64
import importlib.util
import pickle
import time

import pytest

from faults.hosts import bed_run
from faults.hosts.bed import Bed, Host

WITH_TORCH = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
START_SECONDS = 240.0
END_SECONDS = 120.0
FLOOD = 200  # connections that a port gets at once, and datagrams
# From another host: bytes of several kinds to each address and port, the answers printed in hexadecimal; then many
# connections that stay for a while, and many datagrams.
STRANGER = """
import base64, socket, sys
pickled, flood = base64.b64decode(sys.argv[1]), int(sys.argv[2])
kinds = [b"", b"\\0" * 64, bytes(range(256)) * 16, pickled, b"GET /global_/0 HTTP/1.0\\r\\n\\r\\n",
         b"PUT /global_/0 HTTP/1.0\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(pickled) + pickled]
held = []
for place in sys.argv[3:]:
    kind_of_port, _, place = place.partition(":")
    to = tuple(place.rsplit(":", 1))
    if kind_of_port == "udp":
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.settimeout(1)
        for kind in kinds + [bytes([number % 256]) * (number * 7) for number in range(flood)]:
            one.sendto(kind[:1400], (to[0], int(to[1])))
        try:
            print(place, one.recv(4096).hex())
        except OSError as error:
            print(place, error)
        continue
    for kind in kinds:
        try:
            with socket.create_connection(to, timeout=2) as one:
                one.sendall(kind)
                one.settimeout(0.3)
                print(place, one.recv(4096).hex())
        except OSError as error:
            print(place, error)
    try:
        for number in range(flood):
            held.append(socket.create_connection(to, timeout=2))
            held[-1].sendall(kinds[number % len(kinds)])
    except OSError as error:
        print(place, error)
print(len(held), "connections at once")
"""


class _Touch:
    def __reduce__(self) -> tuple:
        import os

        return os.system, ("touch /srv/$(hostname)/run-by-a-stranger",)


@pytest.mark.parametrize("engine", ["Horovod", "servers", pytest.param("PyTorch", id="torch", marks=WITH_TORCH)])
def test_garbage_at_every_open_port(bed: Bed, engine: str, models: str) -> None:
    """Nothing listens beyond the run's network. Garbage and floods may end a run, with a line and without anything
    left; they run nothing, and no answer holds a name of the run."""
    hosts = [bed["node1"], bed["node2"]]
    before = {host.name: set(listening(host)) for host in hosts}
    run = hosts[0].begin(bed_run.line(hosts, 1, trainer=f"--max-steps 100000 --verbose 50 --frequent 1 {models}",
                                      engine=engine))
    folder = hosts[0].path(f"{models.split()[1]}/small-arcface-small")
    end = time.monotonic() + START_SECONDS
    while not list(folder.glob("history.jsonl")) and run.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    opened = {host: sorted(set(listening(host)) - before[host.name]) for host in hosts}
    print(engine, [(host.name, found) for host, found in opened.items()])
    for host, found in opened.items():
        assert {address for _, address, _ in found} <= {host.address, "127.0.0.1"}, "a port beyond the run's network"
    places = [f"{kind}:{host.address}:{port}" for host, found in opened.items() for kind, address, port in found
              if address == host.address]
    assert any(place.startswith("udp:") for place in places), "the launcher's port, for signs of life"
    payload = base64.b64encode(pickle.dumps(_Touch())).decode()
    bed["node3"].path("stranger.py").write_text(STRANGER)
    answers = bed["node3"].run(f".venv/bin/python stranger.py {payload} {FLOOD} {' '.join(places)}").stdout
    print(answers[:3000])
    steps = len((folder / "history.jsonl").read_text().splitlines())
    end = time.monotonic() + END_SECONDS
    while run.poll() is None and len((folder / "history.jsonl").read_text().splitlines()) < steps + 3:
        assert time.monotonic() < end, "it neither goes on nor ends"
        time.sleep(0.1)
    went_on = run.poll() is None
    hosts[0].run("pkill -TERM -f 'recognition[.]launch'")
    _, err = run.communicate(timeout=END_SECONDS)
    print("went on" if went_on else "ended", run.returncode, err[-1000:])
    assert places and all(b"small" not in bytes.fromhex(line.split()[1]) for line in answers.splitlines()
                          if len(line.split()) == 2 and all(letter in "0123456789abcdef" for letter in line.split()[1]))
    assert went_on or "launch: " in err or "error: " in err
    assert not any(host.path(f"/srv/{host.name}/run-by-a-stranger").exists() for host in hosts)


def listening(host: Host) -> list[tuple[str, str, int]]:
    """The (kind, address, port) at which a host's programs listen, or take datagrams of anyone."""
    states = {"tcp": "listening", "udp": "unconnected"}
    places = [(kind, line.split()[2]) for kind, state in states.items()
              for line in host.check(f"ss -H -{kind[0]}n state {state}").splitlines()]
    return [(kind, place.rpartition(":")[0], int(place.rpartition(":")[2])) for kind, place in places]
