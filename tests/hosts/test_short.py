# SPDX-License-Identifier: Apache-2.0
"""The short form of the tests of this folder, which `make test` runs: two hosts, a run with its right end, a firewall.

Each process that runs tests has a bed of its own; names and addresses are those of its namespaces, so several beds do
not meet. Where none can be made the tests are skipped, with the reason.
"""
from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

from faults.hosts import bed_run
from faults.hosts.bed import Bed
from faults.hosts.namespaces import why_not
from faults.hosts.trials import left_over
from recognition.training.states.folder import saved_states

RUN_SECONDS, LEFT_SECONDS = 900.0, 120.0  # bounds of a machine that is very busy


@pytest.fixture(scope="module")
def two() -> Iterator[Bed]:
    if why := why_not():
        pytest.skip(why)
    with Bed(3) as made:  # the last one's name leads to itself, which is for other tests
        bed_run.set_up(made)
        yield made


@pytest.mark.parametrize("kind", ["servers", "torch"])
def test_two_hosts_end_as_they_should_and_a_firewall_is_one_line(two: Bed, kind: str) -> None:
    if importlib.util.find_spec({"servers": "mxnet"}.get(kind, kind)) is None:
        pytest.skip("the engine is not installed")
    hosts = [two["node1"], two["node2"]]
    line = bed_run.line(hosts, 1, trainer=f"--max-steps 1 --models-root ../models/{kind}",
                        engine={"torch": "PyTorch"}.get(kind, kind))
    done = hosts[0].run(line, RUN_SECONDS)
    assert (done.returncode, done.stdout.count("report: ")) == (0, 1), done.stderr
    assert len(saved_states(two.folder / "shared" / kind / "small-arcface-small" / "state")) == 1
    hosts[1].firewall("ip saddr 10.77.0.1 tcp dport != 22 ct state new reject with tcp reset")
    try:
        stopped = hosts[0].run(line, RUN_SECONDS)
    finally:
        hosts[1].firewall("")
    assert stopped.returncode == 2 and len(stopped.stderr.splitlines()) == 1, stopped.stderr
    assert stopped.stderr.startswith("error: --hosts: node1: does not reach node2 at 10.77.0.2, port "), stopped.stderr
    assert left_over(two, LEFT_SECONDS) == ""
