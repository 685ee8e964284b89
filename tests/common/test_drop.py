# SPDX-License-Identifier: Apache-2.0
"""Dropping by sub-centres, with a real checkpoint, against the published flow written again in float64."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np
import pytest

from common.drop import main
from common.sets import training_set
from common.sets.sub_centres import choose
from recognition.data.records.recordio import RecordReader, read_index, unpack_record
from recognition.data.sets.dataset import open_dataset
from recognition.engines.mxnet.imports import mx
from recognition.io.centres import SavedCentres
from recognition.io.params import read_arrays

ROOT = Path(__file__).resolve().parents[2]
CLASSES, K, EMPTY, LOST = 7, 3, 2, 4  # identity 2 has no image, of 4 none is left


def published(case: Any, threshold: float) -> tuple[list[tuple[int, bytes]], list[int], list[float]]:
    """What InsightFace's drop.py does: (new label, image) of what it keeps, dominant sub-centres, all angles."""
    kept, dominants, angles, label = [], [], [], 0
    centres = case.w.astype(np.float64).reshape(CLASSES, K, 3)
    centres /= np.linalg.norm(centres, axis=2, keepdims=True)
    for identity in range(CLASSES):
        images = [image for image, of in zip(case.images, case.labels) if of == identity]
        pixels = [cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)[..., ::-1] for image in images]
        x = np.array([p.reshape(-1, 3).mean(axis=0) - 127.5 for p in pixels]).reshape(-1, 3)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        votes = [int(np.argmax(centres[identity] @ v)) for v in x]
        dominants.append(max(range(K), key=lambda k: (votes.count(k), -k)))
        cosines = x @ centres[identity, dominants[-1]]
        angles += np.degrees(np.arccos(cosines)).tolist()
        left = [image for image, cosine in zip(images, cosines) if cosine > np.cos(np.radians(threshold))]
        kept += [(label, image) for image in left]
        label += bool(left)
    return kept, dominants, angles


def contents(folder: Path) -> list[tuple[int, bytes]]:
    dataset = open_dataset(folder)
    return [dataset.read(i)[:2] for i in range(len(dataset))]


@pytest.mark.parametrize("form", ["identities", "sequential", "shuffled"])
def test_keeps_what_the_published_flow_keeps(
        case: Any, drop: Callable[..., int], write_set: Callable[..., Path], form: str, tmp_path: Path,
        colour_model: Callable[..., str]) -> None:
    """Angles agree to 0.01 degrees: the mean of 12,544 pixels in float32 is good to 1e-5 of the embedding's length."""
    order = np.arange(len(case.labels)) if form == "identities" else np.random.RandomState(2).permutation(
        len(case.labels))
    mixed = case._replace(labels=case.labels[order], images=[case.images[i] for i in order])
    data = write_set(mixed.labels, mixed.images, CLASSES, form)
    assert drop(data, colour_model(fc7_weight=case.w), tmp_path / "new", "--threshold", 40) == 0
    kept, dominants, angles = published(mixed, 40)
    assert 0 < len(kept) < len(case.labels)
    assert contents(tmp_path / "new") == kept
    with np.load(tmp_path / "new" / "drop-images.npz") as found:
        by_identity = np.argsort(found["identity"], kind="stable")
        np.testing.assert_allclose(found["angle"][by_identity], angles, rtol=0, atol=0.01)
        first = 1 if form == "identities" else 0
        assert found["record"].tolist() == list(range(first, first + len(order)))
        assert found["identity"].tolist() == mixed.labels.tolist()
        assert found["kept"].tolist() == (found["angle"] < 40).tolist()
    rows = [line.split("\t") for line in (tmp_path / "new" / "drop-identities.tsv").read_text().splitlines()]
    assert [int(row[5]) for row in rows[1:]] == dominants


def test_the_new_set_and_its_report(
        case: Any, drop: Callable[..., int], write_set: Callable[..., Path], tmp_path: Path,
        colour_model: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    data = write_set(case.labels, case.images, CLASSES)
    (data / "identities.txt").write_text("".join(f"person {i}\n" for i in range(CLASSES)))
    (data / "lfw.bin").write_bytes(b"pairs")
    assert drop(data, colour_model(fc7_weight=case.w), tmp_path / "new", "--threshold", 40) == 0
    new, out = tmp_path / "new", capsys.readouterr().out
    kept, _, angles = published(case, 40)
    labels = [label for label, _ in kept]
    people = labels[-1] + 1

    keys, offsets = read_index(new / "train.idx")
    with RecordReader(new / "train.rec") as reader:
        records = [unpack_record(reader.read(offset)) for offset in offsets.tolist()]
    assert keys.tolist() == list(range(1 + len(kept) + people))
    assert (records[0].flag, records[0].label.tolist()) == (2, [len(kept) + 1, len(kept) + 1 + people])
    ranges = [record.label.tolist() for record in records[len(kept) + 1 :]]
    assert ranges == [[1 + labels.index(i), 1 + labels.index(i) + labels.count(i)] for i in range(people)]
    assert (new / "property").read_text() == f"{people},112,112\n"
    left = [i for i in range(CLASSES) if i not in (EMPTY, LOST)]
    assert (new / "identities.txt").read_text().splitlines() == [f"person {i}" for i in left]
    assert (new / "lfw.bin").read_bytes() == b"pairs"
    mxnet = mx.recordio.MXIndexedRecordIO(str(new / "train.idx"), str(new / "train.rec"), "r")
    header, image = mx.recordio.unpack(mxnet.read_idx(len(kept)))
    assert (header.label, image) == kept[-1]

    table = [line.split("\t") for line in (new / "drop-identities.tsv").read_text().splitlines()]
    assert table[0] == ["identity", "new_identity", "images", "kept", "dropped", "dominant", "dominant_share", "name"]
    assert [row[0] for row in table[1:]] == [str(i) for i in range(CLASSES)]
    assert table[1 + EMPTY][1:5] == ["", "0", "0", "0"] and table[1 + LOST][1:5] == ["", "3", "0", "3"]
    assert [int(row[1]) for row in table[1:] if row[1]] == list(range(people))
    assert [int(row[3]) for row in table[1:] if row[1]] == [labels.count(i) for i in range(people)]
    assert table[6][2] == "1" and table[6][6] == "1.0000" and table[6][7] == "person 5"

    report = json.loads((new / "drop.json").read_text())
    assert report["images"]["all"] == len(case.labels) and report["images"]["kept"] == len(kept)
    assert report["images"]["dropped"] == len(case.labels) - len(kept)
    assert report["identities"] == {"all": CLASSES, "kept": people, "dropped": 1, "without_images": 1}
    assert (report["k"], report["threshold"]) == (K, 40)
    assert {row["degrees"]: row["kept"] for row in report["thresholds"]} == {
        degrees: int((np.array(angles) < degrees).sum()) for degrees in (40, *range(50, 91, 5))}
    both = np.add(report["histogram"]["dominant"], report["histogram"]["other"])
    assert both.tolist() == np.histogram(angles, report["histogram"]["edges"])[0].tolist()
    assert sum(report["histogram"]["other"]) == report["images"]["of_other_sub_centres"] > 0
    assert f"{len(kept)} of {len(case.labels)} images kept, of {people} of {CLASSES} identities" in out
    assert f"       40 {len(kept):9d}" in out


def test_the_picture_shows_both_kinds_and_is_left_out_without_matplotlib(
         case: Any, drop: Callable[..., int], write_set: Callable[..., Path], tmp_path: Path,
        colour_model: Callable[..., str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    data, prefix = write_set(case.labels, case.images, CLASSES), colour_model(fc7_weight=case.w)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert drop(data, prefix, tmp_path / "without") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("no picture: matplotlib is not installed")
    assert not (tmp_path / "without" / "drop.png").exists()
    monkeypatch.undo()
    pytest.importorskip("matplotlib")
    assert drop(data, prefix, tmp_path / "with") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"picture: {tmp_path / 'with' / 'drop.png'}"
    blue, _, red = np.moveaxis(cv2.imread(str(tmp_path / "with" / "drop.png")).astype(int), 2, 0)
    assert (blue - red > 100).sum() > 500 and (red - blue > 100).sum() > 500


def test_every_place_of_w_and_every_way_to_run_gives_the_same_bytes(
         case: Any, drop: Callable[..., int], write_set: Callable[..., Path], tmp_path: Path,
        colour_model: Callable[..., str]) -> None:
    data = write_set(case.labels, case.images, CLASSES)
    assert drop(data, colour_model(fc7_weight=case.w), tmp_path / "whole") == 0
    padded = np.concatenate([case.w, np.full((K, 3), 9, np.float32)]).reshape(4, -1, 3)  # 4 shards of ceil(7 / 4)
    cut = colour_model("cut", **{f"fc7_{i}_weight": part for i, part in enumerate(padded)})
    plain = colour_model("plain")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "manifest.json").write_text("{}")
    for i, part in enumerate(np.split(case.w, [12])):
        mx.nd.save(str(tmp_path / "plain" / f"{i}_centers.param"), mx.nd.array(part))
        for name in ("centres", "momentum"):
            np.save(tmp_path / "state" / f"{name}-{i}.npy", part)
        np.save(tmp_path / "state" / f"bias-{i}.npy", part[:, 0])
    runs: list[tuple[str, tuple[Any, ...]]] = [
        (cut, ("--batch-size", 5)), (plain, ("--devices", "cpu:2")), (plain, ("--centres", tmp_path / "state")),
        (plain, ("--centres", f"{cut}-0001.params", "--batch-size", 100, "--decode-threads", 1))]
    for number, (prefix, flags) in enumerate(runs):
        assert drop(data, prefix, tmp_path / str(number), *flags) == 0
        for name in ("train.rec", "train.idx", "property", "drop-identities.tsv"):
            assert (tmp_path / str(number) / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_model_with_the_dominant_sub_centres_alone(
        case: Any, drop: Callable[..., int], write_set: Callable[..., Path], tmp_path: Path,
        colour_model: Callable[..., str]) -> None:
    data, prefix = write_set(case.labels, case.images, CLASSES), colour_model(fc7_weight=case.w)
    flags = ("--threshold", 40, "--output-model", f"{tmp_path}/one/model,7")
    assert drop(data, prefix, tmp_path / "new", *flags) == 0
    file = read_arrays(tmp_path / "one" / "model-0007.params")
    arrays = dict(zip(file.names, file.arrays))
    left = [i for i in range(CLASSES) if i not in (EMPTY, LOST)]
    rows = [i * K + published(case, 40)[1][i] for i in left]
    assert np.array_equal(arrays["arg:fc7_weight"], case.w[rows])
    assert np.array_equal(arrays["arg:fc1_weight"], np.eye(3)) and set(arrays) == {
        "arg:fc1_weight", "arg:fc1_bias", "arg:fc7_weight"}
    assert drop(tmp_path / "new", f"{tmp_path}/one/model", tmp_path / "again", "--k", 1) == 2  # 7, not 1
    assert main(["--data", str(tmp_path / "new"), "--model", f"{tmp_path}/one,7", "--k", "1", "--threshold", "40",
                 "--output", str(tmp_path / "again")]) == 0
    assert contents(tmp_path / "again") == contents(tmp_path / "new")


def test_more_records_than_the_indexed_form_can_number(
         case: Any, drop: Callable[..., int], write_set: Callable[..., Path], tmp_path: Path,
        colour_model: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_set(case.labels, case.images, CLASSES)
    monkeypatch.setattr(training_set, "MAX_RECORDS", 10)
    assert drop(data, colour_model(fc7_weight=case.w), tmp_path / "new", "--threshold", 40) == 0
    assert open_dataset(tmp_path / "new").form == "sequential"
    assert contents(tmp_path / "new") == published(case, 40)[0]


def test_a_zero_embedding_is_at_right_angles(towards: Callable[..., bytes], write_set: Callable[..., Path]) -> None:
    dataset = open_dataset(write_set([0, 0], [towards([1, 0, 0])] * 2, 1))
    found = choose(dataset, lambda images: np.array([[0, 0], [2, 0]], np.float32)[: len(images)],
                   SavedCentres("w", [np.array([[3, 0], [0, 1]], np.float32)]), 2, 75, 2)
    assert found.angles.tolist() == [90, 0] and found.kept.tolist() == [False, True]


def test_the_command_as_it_was_called_before(
        case: Any, write_set: Callable[..., Path], tmp_path: Path, colour_model: Callable[..., str]) -> None:
    data, prefix = write_set(case.labels, case.images, CLASSES), colour_model(fc7_weight=case.w)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "common/drop.py", "--data", str(data), "--model", f"{prefix},1",
                           "--threshold", "75", "--k", "3", "--output", str(tmp_path / "new"), "--batch-size", "4"],
                          cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert contents(tmp_path / "new") == published(case, 75)[0]
    asked = subprocess.run([sys.executable, "-m", "common.drop", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert asked.returncode == 0 and "--threshold DEGREES" in asked.stdout
