# SPDX-License-Identifier: Apache-2.0
"""Damage of every kind to every file of a state: named, and the state before it is offered or taken."""
from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recognition.engines.cpu.shard import CpuShard
from recognition.engines.interface import BackboneState
from recognition.errors import LostProcess, UserError
from recognition.head.shard import split_classes
from recognition.io import checksums
from recognition.training.states import state as state_module
from recognition.training.states.find import find_state
from recognition.training.states.folder import KEPT_DAMAGED, Retention, saved_states, set_aside
from recognition.training.states.save import save_state
from recognition.training.states.state import Progress, SavedState

FILES = ("backbone.npz", "bias-0.npy", "bias-1.npy", "bias_momentum-0.npy", "bias_momentum-1.npy", "centres-0.npy",
         "centres-1.npy", "data.npz", "momentum-0.npy", "momentum-1.npy")


def save(folder: Path, step: int, last: int = 9) -> Path:
    """Two shards as large as each other, with values of the step."""
    shards = [CpuShard(start, stop, 4, normalised=True, scale=64, seed=step) for start, stop in split_classes(12, 2)]
    for number, shard in enumerate(shards):
        shard.momentum[:] = step + number
        shard.bias[:], shard.bias_momentum[:] = 10 * step + number, 100 * step + number
    weights = {"w": np.full(1000, step, np.float32)}
    return save_state(folder, Progress(step=step, identity={"images": 5}), BackboneState(weights, weights, [weights]),
                      shards, {"order": np.arange(step)}, retention=Retention(last))


def as_format_1(state: Path) -> None:
    """What versions before checksums wrote: the same files, and a manifest with less in it."""
    manifest = json.loads((state / "manifest.json").read_text())
    for key in ("files", "sha256", "best_step", "best_number"):
        del manifest[key]
    (state / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))


def refused(folder: Path, words: str) -> None:
    """By ``--resume``, with the state before offered; then taken by ``auto``, said in one line."""
    with pytest.raises(UserError, match=words) as caught:
        find_state(folder, "yes")
    assert "step-000000002 before it is whole: --resume auto takes it" in str(caught.value)
    assert "\n" not in str(caught.value)


def taken(folder: Path, capsys: pytest.CaptureFixture[str], step: int = 2) -> str:
    capsys.readouterr()
    found = find_state(folder, "auto")
    assert found is not None and found.progress.step == step and not found.problem()
    assert found.backbone().parameters["w"].tolist() == [step] * 1000
    (line,) = capsys.readouterr().out.splitlines()
    return line


def test_the_manifest_has_the_sum_of_every_other_file(tmp_path: Path) -> None:
    state = save(tmp_path, 4)
    assert sorted(SavedState(state).sums) == list(FILES)
    assert sorted(path.name for path in state.iterdir()) == sorted([*FILES, "manifest.json"])
    assert not SavedState(state).problem()


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_any_flipped_bit_and_any_lost_end_is_named(tmp_path: Path, name: str) -> None:
    save(tmp_path, 2)
    path = save(tmp_path, 4) / name
    whole = path.read_bytes()
    random = np.random.default_rng(len(name))
    for place in [0, len(whole) - 1, *random.integers(0, len(whole), 6)]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(random.integers(8))
        path.write_bytes(flipped)
        if name == "manifest.json" and json_equal(whole, bytes(flipped)):
            continue  # a blank more or less
        refused(tmp_path, f"step-000000004/{name}: ")
    for size in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(tmp_path, f"step-000000004/{name}: ")
    path.unlink()
    refused(tmp_path, f"step-000000004/{name}: ")
    path.write_bytes(whole)
    found = find_state(tmp_path, "yes")
    assert found is not None and found.progress.step == 4


def json_equal(left: bytes, right: bytes) -> bool:
    try:
        return bool(json.loads(left) == json.loads(right))
    except ValueError:
        return False


def test_swapped_files_are_told_from_damaged_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, state = save(tmp_path, 2), save(tmp_path, 4)
    kept = shutil.copytree(state, tmp_path / "kept")

    def put_back() -> None:
        shutil.rmtree(state)
        shutil.copytree(kept, state)

    shutil.copy(before / "centres-1.npy", state)  # from another state
    refused(tmp_path, "centres-1.npy: another file: found step-000000002/centres-1.npy")
    put_back()
    first, second = state / "momentum-0.npy", state / "momentum-1.npy"  # shards swapped
    first.rename(state / "x")
    second.rename(first)
    (state / "x").rename(second)
    refused(tmp_path, "momentum-0.npy: another file: found step-000000004/momentum-1.npy")
    put_back()
    shutil.copy(before / "manifest.json", state)
    refused(tmp_path, "step-000000004/manifest.json: of another state: found step 2")
    shutil.rmtree(state)
    shutil.copytree(before, state)  # the whole of another state under its name
    refused(tmp_path, "step-000000004/manifest.json: of another state: found step 2")
    line = taken(tmp_path, capsys)
    assert "going on from step-000000002 before it, what is damaged is kept as step-000000004.damaged" in line


def test_auto_goes_back_as_far_as_it_must_and_saves_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (2, 4, 6, 8):
        save(tmp_path, step)
    for step in (4, 6, 8):
        (tmp_path / f"step-00000000{step}" / "backbone.npz").write_bytes(b"")
    with pytest.raises(UserError, match=r"step-000000008/backbone\.npz.*step-000000002 before it is whole"):
        find_state(tmp_path, "yes")
    assert "step-000000008/backbone.npz: damaged: found 0 bytes" in taken(tmp_path, capsys)
    assert [path.name for path in saved_states(tmp_path)] == ["step-000000002"]
    assert len(list(tmp_path.glob("*.damaged"))) == KEPT_DAMAGED + 1
    assert save(tmp_path, 4) == tmp_path / "step-000000004"
    found = find_state(tmp_path, "yes")
    assert found is not None and found.progress.step == 4


def test_damaged_states_do_not_pile_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 2)
    for _ in range(3):
        for step in (4, 6, 8, 10):
            (save(tmp_path, step) / "centres-0.npy").unlink()
            taken(tmp_path, capsys)
    assert len(list(tmp_path.glob("*.damaged"))) == KEPT_DAMAGED + 1


def test_where_all_are_damaged_nothing_starts_anew_in_silence(tmp_path: Path) -> None:
    for step in (2, 4):
        (save(tmp_path, step) / "centres-0.npy").unlink()
    for resume in ("yes", "auto"):
        with pytest.raises(UserError, match=r"4/centres-0\.npy: is missing; and no state before it is"):
            find_state(tmp_path, resume)
    assert len(saved_states(tmp_path)) == 2


def test_states_of_versions_without_checksums_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (2, 4):
        as_format_1(save(tmp_path, step))
    found = find_state(tmp_path, "yes")
    assert found is not None and found.progress.step == 4 and found.rows(0, 12, 1).centres.shape == (12, 4)
    for name, size in (("centres-1.npy", 100), ("backbone.npz", 5000)):  # what can be seen without them
        path = tmp_path / "step-000000004" / name
        whole = path.read_bytes()
        path.write_bytes(whole[:size])
        refused(tmp_path, rf"step-000000004/{name}: cannot be read")
        path.write_bytes(whole)
    (tmp_path / "step-000000004" / "bias-0.npy").write_bytes(b"")
    assert "step-000000004/bias-0.npy: cannot be read" in taken(tmp_path, capsys)


def test_each_file_is_compared_by_one_process(tmp_path: Path) -> None:
    state = save(tmp_path, 2)
    (state / FILES[4]).unlink()
    assert [bool(SavedState(state).problem(part, 3)) for part in range(3)] == [False, True, False]


def failing(monkeypatch: pytest.MonkeyPatch, path: Path, number: int) -> None:
    """Looking at this file fails, as no mode of a file makes it for root."""
    for module in (checksums, state_module):
        was = module.size_of  # type: ignore[attr-defined]

        def size_of(asked: Path, was: Any = was) -> int:
            if asked == path:
                raise OSError(number, os.strerror(number))
            return int(was(asked))

        monkeypatch.setattr(module, "size_of", size_of)


@pytest.mark.parametrize("of_format_1", [False, True])
@pytest.mark.parametrize("name", ["backbone.npz", "centres-1.npy", "manifest.json"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE])
def test_what_cannot_be_read_now_is_not_taken_for_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str,
                                                          number: int, of_format_1: bool) -> None:
    states = [save(tmp_path, step) for step in (2, 4)]
    if of_format_1:
        for state in states:
            as_format_1(state)
    with monkeypatch.context() as patch:
        failing(patch, states[1] / name, number)
        for resume in ("yes", "auto"):
            with pytest.raises(UserError) as caught:
                find_state(tmp_path, resume)
            assert caught.value.status == 2 and not isinstance(caught.value, LostProcess)
            assert str(caught.value) == (
                f"--resume: {states[1] / name}: cannot be read: {os.strerror(number)}; that need not be damage, so "
                "step-000000004 is kept: start again when it can be read, or, if it never can (a broken disk), rename "
                "step-000000004 to go on without it")
    assert sorted(tmp_path.iterdir()) == states
    found = find_state(tmp_path, "auto")  # the fault has passed
    assert found is not None and found.path == states[1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads what nobody may")
def test_a_file_without_rights_is_not_taken_for_damaged(tmp_path: Path) -> None:
    states = [save(tmp_path, step) for step in (2, 4)]
    (states[1] / "backbone.npz").chmod(0)
    with pytest.raises(UserError, match=r"backbone\.npz: cannot be read: Permission denied; .* is kept"):
        find_state(tmp_path, "auto")
    assert sorted(tmp_path.iterdir()) == states


class Blind:
    """One of two processes, of which the other could not read a file."""

    rank, size = 0, 2

    def all_gather(self, array: np.ndarray) -> np.ndarray:
        return np.concatenate([array, np.full_like(array, 2) if array.shape == (1,) else array])


def test_what_one_process_cannot_read_no_process_takes_for_damaged(tmp_path: Path) -> None:
    states = [save(tmp_path, step) for step in (2, 4)]
    with pytest.raises(LostProcess, match="step-000000004: another process could not read its part"):
        find_state(tmp_path, "auto", communicator=Blind())  # type: ignore[arg-type]
    assert sorted(tmp_path.iterdir()) == states


@pytest.mark.parametrize("name", ["backbone.npz", "centres-0.npy", "manifest.json"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_only_regular_files_are_read(tmp_path: Path, name: str, make: Any,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    """Who opens a pipe waits for somebody to write into it."""
    save(tmp_path, 2)
    path = save(tmp_path, 4) / name
    path.unlink()
    make(path)
    refused(tmp_path, rf"step-000000004/{name}: .*is no regular file")
    assert f"step-000000004/{name}: " in taken(tmp_path, capsys)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_only_regular_files_of_states_without_checksums_are_read(tmp_path: Path, make: Any) -> None:
    save(tmp_path, 2)
    for step in (2, 4):
        as_format_1(save(tmp_path, step))
    for name in ("backbone.npz", "centres-0.npy"):
        path = tmp_path / "step-000000004" / name
        kept = path.rename(tmp_path / "kept")
        make(path)
        refused(tmp_path, rf"step-000000004/{name}: cannot be read")
        os.replace(kept, path) if path.is_fifo() else (path.rmdir(), kept.rename(path))


def test_other_names_than_those_that_are_written_are_no_states(tmp_path: Path,
                                                               capsys: pytest.CaptureFixture[str]) -> None:
    newest = save(tmp_path, 60)
    for name in ("step-60", "step-061", "step-\u00b2", "step-\u0661", "step-" + "9" * 200, "step-0000000061"):
        shutil.copytree(newest, tmp_path / name)
    shutil.copytree(newest, tmp_path / "step-000000070.damaged")
    assert saved_states(tmp_path) == [newest]
    found = find_state(tmp_path, "yes")
    assert found is not None and found.path == newest
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 6 and all("is not taken for a training state: expected a name as" in line for line in said)
    assert "step-60'" in "".join(said) and "damaged" not in "".join(said)


def test_states_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    paths = [tmp_path / f"step-{step:09d}" for step in (7, 999_999_999, 1_000_000_000)]
    for path in paths:
        path.mkdir()
    assert saved_states(tmp_path) == paths


def test_a_file_of_the_name_of_a_state_is_refused(tmp_path: Path) -> None:
    before = save(tmp_path, 2)
    (tmp_path / "step-000000004").write_text("mine")
    for action in (lambda: find_state(tmp_path, "auto"), lambda: set_aside(tmp_path), lambda: save(tmp_path, 4)):
        with pytest.raises(UserError, match="step-000000004: found no folder"):
            action()
    assert sorted(tmp_path.iterdir()) == [before, tmp_path / "step-000000004"]
    assert (tmp_path / "step-000000004").read_text() == "mine"


def test_a_folder_of_states_that_cannot_be_listed_is_not_an_empty_one(tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 2)

    def denied(path: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(UserError, match=f"{tmp_path}: cannot be read: Permission denied"):
        find_state(tmp_path, "auto")


def test_earlier_runs_are_numbered_as_they_are_written(tmp_path: Path) -> None:
    for name in ("state.\u00b2", "state.01"):
        (tmp_path / name).mkdir()
    save(tmp_path / "state", 2)
    assert set_aside(tmp_path / "state").endswith("state.1")
