# SPDX-License-Identifier: Apache-2.0
"""The planner's pace of two hosts, against runs over a link that is slowed to three rates."""
from __future__ import annotations

import json
import statistics

import pytest

from faults.hosts import bed_run
from faults.hosts.bed import Bed
from recognition.plan.head_costs import sent_parallel
from recognition.plan.pace import Network, pace

pytest.importorskip("torch")
IMAGES, STEPS, EVERY = 4, 24, 4  # of a process; of a run; between speed lines
RATES = (200, 80, 30)  # 10^6 bits a second
LATE = (80, 0.01)  # a rate, and seconds that each packet comes later: the plan knows nothing of these
# Below the least: headers of TCP and IP, and waiting for answers. Above the most: the bucket of the rate's filter.
BELOW, ABOVE = 0.75, 1.1
WIDE = '''
import mxnet as mx

def get_symbol(emb_size):
    x = mx.sym.Convolution(mx.sym.Variable("data") / 255, num_filter=4, kernel=(7, 7), stride=(7, 7), name="conv0")
    x = mx.sym.FullyConnected(mx.sym.flatten(x), num_hidden=1000, name="wide")
    return mx.sym.FullyConnected(x, num_hidden=emb_size, name="fc1")
'''
PARAMETERS = 4 * 3 * 49 + 4 + 1024 * 1000 + 1000 + 1000 * 16 + 16


def test_the_pace_of_two_hosts_over_a_slow_link(bed: Bed, models: str) -> None:
    """The pace of a device is that of the same run over the link at full speed, before and after. Packets that come
    late make a run slower than the plan's least: its most holds."""
    hosts = [bed["node1"], bed["node2"]]
    for host in hosts:
        host.path("wide.py").write_text(WIDE)
        text = host.path("config.py").read_text()
        if "network.wide" not in text:
            host.path("config.py").write_text(f"{text}network.wide = edict(net_name='wide', emb_size=16)\n")
    sent = sent_parallel(2, IMAGES, 16, PARAMETERS)

    def measured(name: str, steps: int = STEPS) -> float:
        line = bed_run.line(hosts, 1, trainer=f"--network wide --max-steps {steps} --frequent {EVERY} --ckpt 0 "
                            f"{models}/{name}").replace("--verbose 1 ", "--verbose 1000 ")
        done = hosts[0].run(line, 900)
        assert done.returncode == 0, done.stderr
        path = hosts[0].path(f"{models.split()[1]}/{name}/wide-arcface-small/history.jsonl")
        found = [json.loads(text) for text in path.read_text().splitlines()]
        return statistics.median(one["images_per_second"] for one in found[1:] if "images_per_second" in one)

    free = [measured("free")]
    paces: dict[tuple[int, float], float] = {}
    for rate, delay in [*((rate, 0.0) for rate in RATES), LATE]:
        for host in hosts:
            bed.slow_link(host, f"{rate}mbit", delay / 2)  # each packet passes two links
        try:
            paces[rate, delay] = measured(f"{rate}-{delay}")
        finally:
            for host in hosts:
                bed.full_speed(host)
    free.append(measured("free-again"))
    for (rate, delay), found in paces.items():
        network = Network(2, rate / 1000)
        least = pace(2, IMAGES, min(free) / 2, sent, network).least
        most = pace(2, IMAGES, max(free) / 2, sent, network).most
        print(f"{rate} Mbit/s, {1000 * delay:g} ms later: {least:.1f} to {most:.1f} planned, {found:.1f} found; "
              f"at full speed {free}")
        assert (0 if delay else BELOW * least) <= found <= ABOVE * most, (rate, delay, least, most, found, free)
