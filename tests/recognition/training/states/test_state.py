# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from recognition.engines.cpu.shard import CpuShard
from recognition.engines.interface import BackboneState
from recognition.errors import UserError
from recognition.head import shard as shard_module
from recognition.head.shard import ShardState, split_classes
from recognition.training.states.find import find_state
from recognition.training.states.folder import claim, saved_states, set_aside
from recognition.training.states.save import KEEP, save_state
from recognition.training.states.state import Progress, SavedState, seal

CLASSES, K, DIM = 11, 2, 4


def shards(count: int) -> list[CpuShard]:
    whole = whole_state()
    made = []
    for start, stop in split_classes(CLASSES, count):
        shard = CpuShard(start, stop, DIM, normalised=True, scale=64, sub_centres=K)
        shard.load(ShardState(*(array[start * K : stop * K].copy() for array in whole)))
        made.append(shard)
    return made


def whole_state() -> ShardState:
    random = np.random.RandomState(0)
    return ShardState(*(random.standard_normal(shape).astype(np.float32)
                        for shape in ((CLASSES * K, DIM), (CLASSES * K, DIM), (CLASSES * K,), (CLASSES * K,))))


def with_second(state: ShardState) -> ShardState:
    return state._replace(second_moment=state.centres**2, bias_second_moment=state.bias**2)


def backbone() -> BackboneState:
    return BackboneState({"w": np.arange(3, dtype=np.float32)}, {"w": np.ones(3, np.float32)},
                         [{"m": np.zeros(2, np.float32)}, {"m": np.ones(2, np.float32)}])


@pytest.mark.parametrize("saved", [1, 2, 3])
@pytest.mark.parametrize("loaded", [1, 2, 4])
def test_saved_with_n_shards_it_loads_with_m(tmp_path: Path, saved: int, loaded: int) -> None:
    progress = Progress(step=7, epoch=2, offset=64, verifications=3, best=(0.9, 1.7), identity={"images": 5})
    state = SavedState(save_state(tmp_path, progress, backbone(), shards(saved)))
    assert state.progress == progress
    for name, whole in whole_state()._asdict().items():
        parts = [getattr(state.rows(start, stop, K), name) for start, stop in split_classes(CLASSES, loaded)]
        assert np.array_equal(np.concatenate(parts), whole)
    found = state.backbone()
    assert np.array_equal(found.parameters["w"], [0, 1, 2]) and np.array_equal(found.momentum["w"], [1, 1, 1])
    assert [a["m"].tolist() for a in found.auxiliary] == [[0, 0], [1, 1]]
    assert found.second_moment is None and found.updates is None
    assert not list(state.path.glob("*second_moment*"))


@pytest.mark.parametrize("saved, loaded", [(1, 3), (3, 2), (4, 1), (13, 2), (2, 13)])
def test_second_moments_of_adamw_too(tmp_path: Path, saved: int, loaded: int) -> None:
    """Of 13 shards two have no class."""
    cut = shards(saved)
    for shard in cut:
        shard.load(with_second(shard.state()))
    ours = backbone()._replace(second_moment={"w": np.full(3, 7, np.float32)}, updates={"w": np.array(5)})
    state = SavedState(save_state(tmp_path, Progress(step=7), ours, cut))
    again = [CpuShard(start, stop, DIM, normalised=True, scale=64, sub_centres=K)
             for start, stop in split_classes(CLASSES, loaded)]
    for shard in again:
        state.fill(shard, K)
    parts = [shard.state() for shard in again if shard.stop > shard.start]
    for name, whole in with_second(whole_state())._asdict().items():
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), whole)
    found = state.backbone()
    assert found.second_moment["w"].tolist() == [7, 7, 7] and found.updates["w"] == 5
    (state.path / "second_moment-0.npy").unlink()
    if saved > 1:
        with pytest.raises(UserError, match=r"second_moment-0\.npy: cannot be read"):
            state.rows(0, CLASSES, K)


@pytest.mark.parametrize("sub_centres", [1, 3])
def test_resharding_holds_no_second_copy_of_w(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                              sub_centres: int) -> None:
    """W of three shards into two: same rows, same norms; never more than a tenth of W beside W."""
    monkeypatch.setattr(shard_module, "ROWS_AT_ONCE", 500)
    options = {"normalised": True, "scale": 64, "sub_centres": sub_centres}
    first, second = ([CpuShard(start, stop, 32, seed=seed, **options) for start, stop in split_classes(40_011, parts)]
                     for seed, parts in ((1, 3), (2, 2)))
    state = SavedState(save_state(tmp_path, Progress(step=1), backbone(), first))
    second[0].load(state.rows(0, 1, sub_centres), 0)  # what the first use of anything takes is not of W
    tracemalloc.start()
    try:
        for shard in second:
            state.fill(shard, sub_centres)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.1 * sum(shard.centres.nbytes for shard in second)
    for name in ("centres", "_inverse"):
        whole = [np.concatenate([getattr(shard, name) for shard in shards]) for shards in (first, second)]
        assert np.array_equal(*whole)


def test_the_arrays_of_the_loader_are_kept_if_there_are_any(tmp_path: Path) -> None:
    triplets = np.arange(6).reshape(2, 3)
    found = SavedState(save_state(tmp_path, Progress(step=1), backbone(), [], {"triplets": triplets})).data()
    assert list(found) == ["triplets"] and np.array_equal(found["triplets"], triplets)
    assert SavedState(save_state(tmp_path, Progress(step=2), backbone(), [], {})).data() == {}


def test_the_last_states_are_kept_and_leftovers_of_a_kill_go(tmp_path: Path) -> None:
    (tmp_path / "step-000000001.writing").mkdir()
    for step in (2, 4, 6):
        save_state(tmp_path, Progress(step=step), backbone(), shards(1))
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-000000004", "step-000000006"]
    assert len(saved_states(tmp_path)) == KEEP.last
    found = find_state(tmp_path, "yes")
    assert found is not None and found.progress.step == 6


def test_a_folder_still_being_written_is_no_state(tmp_path: Path) -> None:
    save_state(tmp_path, Progress(step=2), backbone(), shards(1)).rename(tmp_path / "step-000000002.writing")
    assert find_state(tmp_path, "auto") is None
    assert find_state(tmp_path, "") is None
    with pytest.raises(UserError, match="no training state"):
        find_state(tmp_path, "yes")


def test_another_run_of_the_same_name_keeps_the_old_states(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    assert set_aside(folder) == ""
    (tmp_path / "state.best").mkdir()  # the user's own name for one
    for number, step in enumerate((3, 9, 3, 4, 5), 1):
        save_state(folder, Progress(step=step), backbone(), shards(1))
        (tmp_path / "history.jsonl").write_text(f"{number}")
        line = f"starting anew; the training state of the run before is kept in {tmp_path}/state.{number}"
        assert set_aside(folder) == line + (
            f"; state.{number - 2} removed: those of the last 2 runs and of the longest are kept"
            if number in (3, 5) else "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.2", "state.4", "state.5", "state.best"]
    for number, step in ((2, 9), (4, 4), (5, 5)):
        found = find_state(tmp_path / f"state.{number}", "yes")
        assert found is not None and found.progress.step == step
        assert (tmp_path / f"state.{number}" / "history.jsonl").read_text() == str(number)


def test_a_launch_that_starts_again_goes_on_from_its_own_states_alone(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    save_state(folder, Progress(step=9), backbone(), shards(1))
    assert find_state(folder, "", "mine") is None  # of a run before; died before it set this aside
    claim(folder, "theirs")
    assert find_state(folder, "", "mine") is None
    for resume in ("yes", "auto"):  # who asks for the newest gets it, whosever it is
        found = find_state(folder, resume, "mine")
        assert found is not None and found.progress.step == 9
    claim(folder, "mine")
    found = find_state(folder, "", "mine")
    assert found is not None and found.progress.step == 9
    set_aside(folder)
    assert find_state(folder, "", "mine") is None
    claim(folder, "mine")  # a run that died before its first state
    assert find_state(folder, "", "mine") is None


def test_a_state_of_another_run_or_format_is_refused(tmp_path: Path) -> None:
    path = save_state(tmp_path, Progress(step=2, identity={"images": 5}), backbone(), shards(1))
    SavedState(path).require_identity({"images": 5})
    with pytest.raises(UserError, match="images 5, this run has 6"):
        SavedState(path).require_identity({"images": 6})
    SavedState(path).require_identity({"optimizer": "sgd"})  # of before there was another
    with pytest.raises(UserError, match="was saved with optimizer 'sgd', this run has 'adamw'"):
        SavedState(path).require_identity({"optimizer": "adamw"})
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    later = {**manifest, "format": 99}
    (path / "manifest.json").write_text(json.dumps({**later, "sha256": seal(later)}))
    for resume in ("yes", "auto"):  # nor does auto start anew, or go back, where only the version is wrong
        with pytest.raises(UserError, match="format 99, expected 1 to 3: the version of the trainer that saved it"):
            find_state(tmp_path, resume)
    for text in "{", "[" * 100_000:
        (path / "manifest.json").write_text(text)
        with pytest.raises(UserError, match="not of a training state"):
            SavedState(path)


def test_what_is_not_finite_is_not_saved_and_the_state_before_stays(tmp_path: Path) -> None:
    good = save_state(tmp_path, Progress(step=2), backbone(), shards(2))
    broken = shards(2)
    broken[1].centres[3, 1] = np.nan
    with pytest.raises(UserError, match=f"step 4: .* no longer finite, .* last good state is {good}"):
        save_state(tmp_path, Progress(step=4), backbone(), broken)
    infinite = backbone()._replace(parameters={"w": np.array([1, np.inf], np.float32)})
    with pytest.raises(UserError, match="no longer finite"):
        save_state(tmp_path, Progress(step=4), infinite, shards(2))
    assert saved_states(tmp_path) == [good] and sorted(tmp_path.iterdir()) == [good]


@pytest.mark.parametrize("size", [0, 100])
def test_a_damaged_file_is_named_with_the_state_before(tmp_path: Path, size: int) -> None:
    good, last = (save_state(tmp_path, Progress(step=step), backbone(), shards(1)) for step in (2, 4))
    for name, read in (("backbone.npz", SavedState.backbone), ("centres-0.npy", lambda s: s.rows(0, CLASSES, K))):
        with open(last / name, "r+b") as file:
            file.truncate(size)
        with pytest.raises(UserError, match=f"{name}: cannot be read .* the last good state is {good}"):
            read(SavedState(last))


def test_a_network_without_statistics_loads(tmp_path: Path) -> None:
    saved = save_state(tmp_path, Progress(step=2), backbone()._replace(auxiliary=[{}]), shards(1))
    assert SavedState(saved).backbone().auxiliary == [{}]
