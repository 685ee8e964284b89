# SPDX-License-Identifier: Apache-2.0
"""The harness of hosts that die, hang, are cut off or are slow: each fault once, and some kills. A run ends in time,
with the host's name, or goes on."""
from __future__ import annotations

import pytest

from faults.hosts import network_folder
from faults.hosts.bed import Bed
from faults.hosts.faults import FAULTS, Fault, try_fault
from faults.hosts.kills import kills

pytest.importorskip("torch")
KILLS = 4


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_fault_of_a_host(bed: Bed, models: str, fault: Fault) -> None:
    trial = try_fault(bed, fault, models)
    print(f"{trial.seconds:.0f} s")
    assert trial.kept, trial.said


def test_the_server_of_a_shared_folder_goes_away_and_comes_back(bed: Bed) -> None:
    if why := network_folder.why_not():
        pytest.skip(why)
    rows = network_folder.absences(bed, 1)
    assert all(row.kept == row.tried for row in rows), rows


def test_kills_between_two_hosts(bed: Bed) -> None:
    rows = kills(bed, KILLS, 1200, seed=1)
    assert all(row.kept == row.tried for row in rows), rows
