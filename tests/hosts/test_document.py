# SPDX-License-Identifier: Apache-2.0
"""The commands of docs/cluster.md, "Several hosts, from nothing", word for word on two hosts with nothing on them."""
from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from datasets.demo import main as make_demo
from faults.hosts import bed as beds
from faults.hosts.bed import ROOT, Bed, Host, copy_project

pytest.importorskip("torch")
SECTION = "## Several hosts, from nothing"
MINUTES = 30.0  # for a command, on a machine that is busy
HOSTS = ("a", "b")


def blocks() -> list[list[str]]:
    """The commands of each block of the section: a line each, without what goes on in the next and without comments."""
    text = (ROOT / "docs" / "cluster.md").read_text().partition(SECTION)[2].partition("\n## ")[0]
    found = re.findall(r"(?:^    .*\n)+", text, re.M)
    lines = [re.sub(r" +# .*", "", block.replace("\\\n", " ")).splitlines() for block in found]
    return [[" ".join(line.split()) for line in block] for block in lines]


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Bed]:
    if why := beds.why_not():
        pytest.skip(why)
    assert make_demo(["--output", str(tmp_path / "demo")]) == 0
    with Bed(2, HOSTS) as bed:
        for host in bed:
            host.check("mkdir -p /srv/models && mount --bind ../models /srv/models")
            shutil.rmtree(host.path("."))
        yield bed


def instead(host: Host, command: str, demo: Path) -> bool:
    """Do what needs the internet or a long time in another way; False for every other command. The project is copied,
    its environment is that of these tests, and the drawn faces are those that ``make demo`` draws."""
    if command == "git clone ... trainer":
        copy_project(ROOT, host.path("."))
        shutil.copytree(ROOT / "datasets", host.path("datasets"), ignore=shutil.ignore_patterns("demo", "__pycache__"))
        return True
    if command == "ENGINE=torch make demo":
        host.path(".venv-torch").symlink_to(sys.prefix)
        shutil.copytree(demo, host.path("datasets/demo"))
        return True
    return command == "cd trainer"


def test_from_nothing_to_a_job_on_several_hosts(two: Bed, tmp_path: Path) -> None:
    on_each, keys, job, apart = blocks()
    for host in two:
        for command in on_each:
            if not instead(host, command, tmp_path / "demo"):
                host.check(command)
    a = two["a"]
    names = [a.run(command) for command in keys]
    assert [done.returncode for done in names] == [0] * len(keys), names
    assert [done.stdout.strip() for done in names[-2:]] == list(HOSTS)
    (done,) = [a.run(command, 60 * MINUTES) for command in job]
    assert done.returncode == 0 and "report: /srv/models/demo-arcface-demo/report.html" in done.stdout, done.stderr
    together, gathered, alone = [a.run(command, 60 * MINUTES) for command in apart]
    assert together.returncode == 0 and "each of a, b keeps its own part of the states" in together.stdout, (
        together.stderr)
    assert gathered.returncode == 0 and "whole; --resume goes on from it" in gathered.stdout, gathered.stderr
    assert alone.returncode == 0 and "W, saved in 4 shards, is cut anew into 1" in alone.stdout, alone.stderr
