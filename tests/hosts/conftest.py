# SPDX-License-Identifier: Apache-2.0
"""The hosts on which the tests of this folder run: namespaces of this machine."""
from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.hosts import bed_run
from faults.hosts.bed import Bed
from faults.hosts.namespaces import why_not

HERE = Path(__file__).parent
SHORT = "test_short.py"
LEFT_SECONDS = 12.0  # until the watch over a process on another host has ended it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """They take long, and `make test-hosts` runs them, but for the short form, which `make test` runs, too."""
    for item in items:
        if HERE in item.path.parents and item.path.name != SHORT:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def hosts() -> Iterator[Bed]:
    """Four hosts; skips with the reason where none can be made."""
    if why := why_not():
        pytest.skip(why)
    with Bed(4) as made:
        bed_run.set_up(made)
        yield made


@pytest.fixture
def models(request: pytest.FixtureRequest) -> str:
    """The flag that names a folder of its own for the test's checkpoints, below the one that all hosts share."""
    name = re.sub("[^a-zA-Z0-9_]+", "-", request.node.name)
    return f"--models-root ../models/{name}"


@pytest.fixture
def bed(hosts: Bed) -> Iterator[Bed]:
    """The hosts; afterwards no process may be left on any."""
    yield hosts
    end = time.monotonic() + LEFT_SECONDS
    while any(host.processes() for host in hosts) and time.monotonic() < end:
        time.sleep(0.2)
    left = {host.name: found for host in hosts if (found := host.processes())}
    for host in hosts:
        for pid in host.processes():
            host.kill(pid, signal.SIGKILL)
    assert not left


@pytest.fixture
def names(bed: Bed) -> Iterator[None]:
    """The name of the last host, which else leads to itself, leads to its address there, too: Horovod needs it."""
    last = list(bed)[-1]
    text = (last.files / "hosts").read_text()
    (last.files / "hosts").write_text(text.replace("127.0.1.1", last.address))
    yield
    (last.files / "hosts").write_text(text)
