# SPDX-License-Identifier: Apache-2.0
"""TensorBoard's event files of whole runs, as TensorBoard's own reader and as a plain reader of TFRecord see them."""
from __future__ import annotations

import json
import shutil
import struct
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from recognition.config.options import Config
from recognition.engines.cpu.shard import CpuShard
from recognition.engines.mxnet.backbone import ReplicatedBackbone
from recognition.engines.mxnet.imports import mx
from recognition.errors import UserError
from recognition.head.sharded import HeadResult, ShardedHead
from recognition.training.run import train
from recognition.training.watch.events import EventFile, cut_after

pytest.importorskip("tensorboardX")
accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

Make = Callable[..., Config]
WATCHED = {"tensorboard": True, "frequent": 1, "verbose": 2, "val_targets": "tiny", "ckpt": 0}


def accumulated(folder: Path) -> Any:
    found = accumulators.EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
    return found.Reload()


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def crc32c(data: bytes) -> int:
    """Bit by bit (Castagnoli), then masked as TFRecord has it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(path: Path) -> list[bytes]:
    content, found = path.read_bytes(), []
    while content:
        length, checksum = struct.unpack("<QI", content[:12])
        data = content[12 : 12 + length]
        assert len(content) >= length + 16 and crc32c(content[:8]) == checksum
        assert struct.unpack("<I", content[12 + length : 16 + length]) == (crc32c(data),)
        found.append(data)
        content = content[16 + length :]
    return found


def steps_in_files(folder: Path) -> dict[str, list[int]]:
    """The steps of each tag, in the order of the files' names: nothing is purged, as TensorBoard does it."""
    from tensorboard.compat.proto.event_pb2 import Event

    steps: dict[str, list[int]] = defaultdict(list)
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for data in records(path):
            event = Event.FromString(data)
            for value in event.summary.value:
                steps[value.tag].append(event.step)
    return steps


@pytest.fixture
def angles(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """In degrees and float64, of every step of the runs that follow: from features, labels and W that the head gets."""
    seen: list[np.ndarray] = []
    inner = ShardedHead.forward_backward

    def forward_backward(head: ShardedHead, features: np.ndarray, labels: np.ndarray) -> HeadResult:
        centres = np.concatenate([shard.state().centres for shard in head.shards]).astype(np.float64)[labels]
        x = features.astype(np.float64)
        products = np.einsum("bd,bd->b", x, centres)
        lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(centres, axis=1)
        seen.append(np.degrees(np.arccos(products / lengths)))
        return inner(head, features, labels)

    monkeypatch.setattr(ShardedHead, "forward_backward", forward_backward)
    return seen


@pytest.mark.parametrize("loss_name", ["softmax", "margin_softmax"])
def test_the_numbers_of_a_run(make: Make, angles: list[np.ndarray], loss_name: str) -> None:
    """All that the history says, as float32; angles to 0.01 degrees, as their cosines are float32."""
    config = make(**WATCHED, tensorboard_every=2, max_steps=6, loss_name=loss_name, devices="cpu:2")
    assert train(config) == 0
    events = accumulated(Path(config.output_dir) / "tensorboard")
    wanted: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for record in history(Path(config.output_dir)):
        group = f"{record.pop('kind')}/{record.pop('target', '')}".rstrip("/")
        step = record.pop("step")
        for key, value in record.items():
            wanted[f"{group}/{key}"].append((step, value))
    assert {"train/loss", "train/accuracy", "train/lr", "train/images_per_second", "verification/tiny/accuracy",
            "verification/tiny/xnorm", "gradient_norm/backbone", "gradient_norm/centres", "angle/mean"} <= wanted.keys()
    assert set(events.Tags()["scalars"]) == wanted.keys()
    for tag, points in wanted.items():
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in points]

    histograms = events.Histograms("angles")
    assert [event.step for event in histograms] == [2, 4, 6] and len(angles) == 6
    for event, degrees, mean in zip(histograms, angles[1::2], (value for _, value in wanted["angle/mean"])):
        found = event.histogram_value
        assert (found.num, found.min, found.max) == (24, pytest.approx(degrees.min(), abs=0.01),
                                                     pytest.approx(degrees.max(), abs=0.01))
        assert found.sum / found.num == pytest.approx(degrees.mean(), abs=0.01) == pytest.approx(mean, abs=0.01)
        counts = dict(zip(found.bucket_limit, found.bucket))
        bins, ends = np.histogram(degrees, np.arange(0, 181, 2))
        assert {end: count for end, count in counts.items() if count} == {
            end: count for end, count in zip(ends[1:], bins) if count}


def test_the_norm_of_the_backbones_gradient(engine: str, make: Make) -> None:
    """It is what a plain step of SGD moves the parameters by, over the learning rate; float32 knows that to 1e-3."""
    moved = []
    for steps in (2, 3):
        config = make(tensorboard=True, tensorboard_every=3, max_steps=steps, mom=0, wd=0, lr=0.1, ckpt=2, frequent=1,
                      extra_model_name=str(steps), loss_name="softmax", devices="cpu:2")
        assert train(config) == 0
        moved.append(mx.model.load_checkpoint(config.prefix, 0)[1])
    squares = sum(float(np.square(moved[1][name].asnumpy().astype(np.float64) - array.asnumpy()).sum())
                  for name, array in moved[0].items())
    (record,) = (record for record in history(Path(config.output_dir)) if record["kind"] == "gradient_norm")
    assert record["step"] == 3 and record["backbone"] == pytest.approx(np.sqrt(squares) / 0.1, rel=1e-3)


def test_going_on_doubles_no_step(make: Make) -> None:
    """A run whose last state is of step 4 wrote events up to 7, and was killed while it wrote another."""
    options = {**WATCHED, "ckpt": 3, "tensorboard_every": 1, "state_every": 2}
    config = make(**options, max_steps=7)
    folder = Path(config.output_dir) / "tensorboard"
    assert train(config) == 0
    assert train(make(**options, max_steps=4, extra_model_name="short")) == 0
    shutil.rmtree(Path(config.output_dir) / "state")
    shutil.copytree(Path(config.output_dir + "-short") / "state", Path(config.output_dir) / "state")
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes() + path.read_bytes()[:20])
    assert train(make(**options, max_steps=9, resume="yes")) == 0
    steps = steps_in_files(folder)
    assert len(list(folder.iterdir())) == 2
    assert steps["gradient_norm/centres"] == steps["angles"] == list(range(1, 10))
    assert steps["train/loss"] == [2, 3, 4, 5, 7, 8, 9]  # five batches an epoch, the first of which has no speed line
    assert steps["verification/tiny/accuracy"] == [2, 4, 6, 8, 9]
    found = accumulated(folder)
    assert [event.step for event in found.Scalars("gradient_norm/backbone")] == list(range(1, 10))
    assert [event.step for event in found.Histograms("angles")] == list(range(1, 10))


def test_a_run_from_the_start_keeps_the_one_before_with_its_states(make: Make) -> None:
    options = {**WATCHED, "ckpt": 3, "state_every": 2, "tensorboard_every": 1}
    config = make(**options)
    for _ in range(2):
        assert train(config) == 0
    for folder in (Path(config.output_dir), Path(config.output_dir) / "state.1"):
        assert steps_in_files(folder / "tensorboard")["angles"] == [1, 2, 3]
    assert train(make(**{**options, "state_every": 0})) == 0  # without states nothing is kept, as of the history
    assert steps_in_files(Path(config.output_dir) / "tensorboard")["angles"] == [1, 2, 3]


def test_a_run_without_the_flag_measures_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, name in ((ShardedHead, "target_angles"), (ReplicatedBackbone, "gradient_norm"), (CpuShard, "_measured")):
        monkeypatch.setattr(kind, name, lambda *_: pytest.fail("measured"))
    config = make(tensorboard_every=1, ckpt=2, max_steps=3)
    assert train(config) == 0
    plain = mx.model.load_checkpoint(config.prefix, 0)[1]
    assert not (Path(config.output_dir) / "tensorboard").exists()
    assert {record["kind"] for record in history(Path(config.output_dir))} <= {"train"}
    monkeypatch.undo()
    config = make(tensorboard=True, tensorboard_every=1, ckpt=2, max_steps=3, extra_model_name="watched")
    assert train(config) == 0  # to the same bits
    watched = mx.model.load_checkpoint(config.prefix, 0)[1]
    assert plain.keys() == watched.keys()
    assert all(np.array_equal(array.asnumpy(), watched[name].asnumpy()) for name, array in plain.items())


def test_triplets_have_no_angles(make: Make) -> None:
    config = make(**{**WATCHED, "verbose": 100, "tensorboard_every": 1, "loss_name": "triplet", "per_batch_size": 12,
                     "triplet_bag_size": 30})
    assert train(config) == 0
    tags = accumulated(Path(config.output_dir) / "tensorboard").Tags()
    assert "gradient_norm/backbone" in tags["scalars"] and "gradient_norm/centres" not in tags["scalars"]
    assert tags["histograms"] == []


def test_one_line_where_it_is_not_installed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tensorboardX.record_writer", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    config = make(tensorboard=True)
    with pytest.raises(UserError, match=r"--tensorboard: .*tensorboardX.*; it needs tensorboardX: pip install "):
        train(config)
    assert not (Path(config.output_dir) / "history.jsonl").exists()


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path: Path, full_disk: Callable) -> None:
    events = EventFile(tmp_path, 0)
    events.write("train", 1, loss=1.0)
    with full_disk(100), pytest.raises(UserError, match=r"tfevents.*: cannot be written: File too large"):
        for step in range(2, 9):
            events.write("train", step, loss=1.0)


@pytest.mark.parametrize("tail", [b"", b"\0" * 40, b"\x05\0\0", b"garbage that is no record"])
def test_what_a_kill_or_a_power_cut_left_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    events = EventFile(tmp_path, 0)
    for step in (10, 20, 30):
        events.write("train", step, loss=float(step))
    events.close()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes() + tail)
    cut_after(path, 20)
    assert steps_in_files(tmp_path)["train/loss"] == [10, 20]
    cut_after(path, 9)
    assert not path.exists()
