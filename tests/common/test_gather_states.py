# SPDX-License-Identifier: Apache-2.0
"""Parts of a state on hosts that share no folder: saved, found, missed and put together. Processes are threads."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from common.gather_states import main
from recognition.engines.cpu.shard import CpuShard
from recognition.engines.interface import BackboneState
from recognition.errors import UserError
from recognition.head.shard import split_classes
from recognition.processes.alike import Sharing, find_sharing
from recognition.training.states.find import find_state
from recognition.training.states.folder import saved_states
from recognition.training.states.save import save_state
from recognition.training.states.state import Progress, SavedState, seal
from tests.recognition.threads import Thread, together
from tests.recognition.training.states.test_save_state import PROCESSES, WEIGHTS

CLASSES = 7
NAME = "step-000000004"
HOSTS = Sharing(0, (0, 0, 2), ("a", "a", "b"))  # three processes: two on a, one on b


def folder_of(tmp_path: Path, rank: int) -> Path:
    return tmp_path / HOSTS.hosts[rank]


def sharing(rank: int) -> Sharing:
    return Sharing(rank, HOSTS.firsts, HOSTS.hosts)


def save(tmp_path: Path, step: int, seed: int = 0) -> None:
    """Each of three processes saves a shard; a and b have a folder each."""
    def one(process: Thread) -> Path:
        shard = CpuShard(*split_classes(CLASSES, PROCESSES)[process.rank], 4, normalised=True, scale=64, seed=seed)
        return save_state(folder_of(tmp_path, process.rank), Progress(step=step),
                          BackboneState(WEIGHTS, WEIGHTS, [WEIGHTS]), [shard], {"order": np.arange(step)},
                          communicator=process, sharing=sharing(process.rank))

    for found in together(one):
        if isinstance(found, UserError):
            raise found


def find(tmp_path: Path, resume: str = "yes") -> list[SavedState | UserError]:
    return together(lambda process: find_state(folder_of(tmp_path, process.rank), resume, communicator=process,
                                               sharing=sharing(process.rank)))


def problem(tmp_path: Path, resume: str = "yes") -> str:
    """The one line that all processes end with."""
    (line,) = {str(error) for error in find(tmp_path, resume)}
    return line


def test_processes_find_out_which_of_them_share_a_folder(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    found = together(lambda process: find_sharing(folder_of(tmp_path, process.rank), process))
    assert [one.firsts for one in found] == [HOSTS.firsts] * 3
    assert [one.keeper for one in found] == [True, False, True]
    assert [one.place for one in found] == [(0, 2), (1, 2), (0, 1)] and not found[0].together
    assert together(lambda process: find_sharing(tmp_path, process).together) == [True] * 3
    assert not list(tmp_path.glob("**/.*"))


def test_each_host_has_its_shards_and_all_that_is_no_shard(tmp_path: Path) -> None:
    save(tmp_path, 4)
    names = {host: sorted(path.name for path in (tmp_path / host / NAME).iterdir()) for host in "ab"}
    rest = ["backbone.npz", "data.npz", "manifest.json"]
    kinds = ("bias", "bias_momentum", "centres", "momentum")
    assert names["a"] == sorted([*rest, *(f"{kind}-{i}.npy" for kind in kinds for i in (0, 1))])
    assert names["b"] == sorted([*rest, *(f"{kind}-2.npy" for kind in kinds)])
    for state in find(tmp_path):
        assert isinstance(state, SavedState) and state.progress.step == 4 and not state.problem()
    a, b = SavedState(tmp_path / "a" / NAME), SavedState(tmp_path / "b" / NAME)
    assert (a.elsewhere, b.elsewhere) == ({2: "b"}, {0: "a", 1: "a"})
    assert a.absent([(0, 5)]) == "" and "b has shards 2;" in a.absent([(0, 7)])


def test_a_save_that_one_host_did_not_finish_counts_for_none(tmp_path: Path) -> None:
    """The first process's host is the last to give a state its name: what another has more was cut short."""
    save(tmp_path, 2)
    save(tmp_path, 4)
    shutil.rmtree(tmp_path / "a" / NAME)
    assert [state.progress.step for state in find(tmp_path)] == [2] * 3
    assert [path.name for path in saved_states(tmp_path / "b")] == ["step-000000002"]
    save(tmp_path, 4)
    assert [state.progress.step for state in find(tmp_path)] == [4] * 3


def test_what_a_host_lacks_is_named_and_auto_goes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 2)
    save(tmp_path, 4)
    shutil.rmtree(tmp_path / "b" / NAME)
    lacks = f"b: found no {tmp_path}/b/{NAME}, and so none of the shards of this host"
    assert problem(tmp_path) == f"--resume: {lacks}; step-000000002 before it is whole: --resume auto takes it"
    assert [state.progress.step for state in find(tmp_path, "auto")] == [2] * 3
    assert f"{lacks}; going on from step-000000002 before it" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "b")
    assert "b: found no" in problem(tmp_path, "auto") and f"remove or rename {tmp_path}/a to" in problem(tmp_path)


def test_a_damaged_file_of_one_host_and_parts_of_two_saves_are_refused_by_all(tmp_path: Path) -> None:
    save(tmp_path, 4)
    (tmp_path / "b" / NAME / "centres-2.npy").write_bytes(b"")
    assert "/b/step-000000004/centres-2.npy: " in problem(tmp_path)
    shutil.rmtree(tmp_path / "b")
    save(tmp_path / "other", 4, seed=1)
    (tmp_path / "other" / "b").rename(tmp_path / "b")
    assert f"b: {tmp_path}/b/{NAME} is not of the same save as on a" in problem(tmp_path)


def whole(state: Path) -> None:
    found = SavedState(state)
    assert not found.elsewhere and not found.problem() and found.absent([(0, CLASSES)]) == ""
    assert json.loads((state / "manifest.json").read_text())["format"] == 2
    rows = found.rows(0, CLASSES, 1).centres
    wanted = CpuShard(0, CLASSES, 4, normalised=True, scale=64).state().centres
    np.testing.assert_array_equal(rows, wanted)


def test_parts_are_put_together_anew_or_in_the_folder_of_the_first(tmp_path: Path) -> None:
    save(tmp_path, 2)
    save(tmp_path, 4)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    parts = {path: path.read_bytes() for path in [*(tmp_path / "a").rglob("*.*"), *(tmp_path / "b").rglob("*.*")]}
    assert main([a, b, "--output", str(tmp_path / "c")]) == 0
    assert {path: path.read_bytes() for path in parts} == parts
    assert main([b, a, "--output", str(tmp_path / "c"), "--step", "2"]) == 0
    assert main([a, b, "--output", a]) == 0
    assert main([a, b, "--output", a]) == 0  # whole already
    for state in (tmp_path / "c" / NAME, tmp_path / "c" / "step-000000002", tmp_path / "a" / NAME):
        whole(state)
    assert SavedState(tmp_path / "a" / "step-000000002").elsewhere  # as it was


def test_over_ssh(tmp_path: Path) -> None:
    save(tmp_path, 4)
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\n[ "$1" = b ] || { echo "no route to $1" >&2; exit 255; }\nshift; exec sh -c "$*"\n')
    ssh.chmod(0o755)
    assert main([str(tmp_path / "a"), f"b:{tmp_path}/b", "--output", str(tmp_path / "c"), "--ssh", str(ssh)]) == 0
    whole(tmp_path / "c" / NAME)


@pytest.mark.parametrize("words, said", [
    (["a", "--output", "c"], "shards 2 of W are missing, which b kept; expected the folder of each host"),
    (["a", "nothing", "--output", "c"], "found no step of which all have a state: a has 2, 4; nothing has none"),
    (["a", "b", "--output", "c", "--step", "3"], "--step: found no state of step 3 in a, expected one of 2, 4"),
    (["b", "a", "--output", "a"], "a/step-000000004: exists already; expected it as the first DIR, or another"),
    (["a", "nohost:b", "--output", "c"], "nohost:b: cannot be read: no route to nohost"),
    (["a", "damaged", "--output", "c"], "damaged/step-000000004/centres-2.npy: damaged: found other bytes"),
    (["a", "other", "--output", "c"], "other/step-000000004: found the part of another state than that of a"),
])
def test_what_cannot_be_put_together_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                 capsys: pytest.CaptureFixture[str], words: list[str],
                                                 said: str) -> None:
    save(tmp_path, 2)
    save(tmp_path, 4)
    shutil.copytree(tmp_path / "b", tmp_path / "damaged")
    (tmp_path / "damaged" / NAME / "centres-2.npy").write_bytes(b"x")
    save(tmp_path / "others", 4, seed=1)
    (tmp_path / "others" / "b").rename(tmp_path / "other")
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\necho "no route to $1" >&2; exit 255\n')
    ssh.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--ssh", str(ssh)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err, err
    assert not (tmp_path / "c" / NAME).exists()


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 4)
    path = tmp_path / "b" / NAME / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    manifest["files"]["../../../out.npz"] = [1, "0" * 64]
    path.write_text(json.dumps({**manifest, "sha256": seal(manifest)}))
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "c")]) == 2
    assert "found the file '../../../out.npz', expected backbone.npz, data.npz and" in capsys.readouterr().err
