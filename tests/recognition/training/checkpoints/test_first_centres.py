# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recognition.config.cli import parse_args
from recognition.config.options import Config
from recognition.data.images.image import decode_rgb
from recognition.data.sets.dataset import open_dataset
from recognition.engines.cpu.shard import CpuShard
from recognition.errors import UserError
from recognition.head.shard import initial_centres, split_classes
from recognition.io.params import write_arrays
from recognition.processes.communicator import SingleProcess
from recognition.training.checkpoints.first_centres import (
    MOST_IMAGES,
    CentresSource,
    choose_images,
    from_checkpoint,
    start_centres,
)
from recognition.training.parts import centres_source
from tests.recognition.threads import together

CLASSES, K, DIM = 11, 2, 3
W = np.random.RandomState(0).rand(CLASSES * K, DIM).astype(np.float32)


def make_shards(parts: int, with_bias: bool = False, sub_centres: int = K) -> list[CpuShard]:
    return [CpuShard(start, stop, DIM, normalised=True, scale=64.0, sub_centres=sub_centres, with_bias=with_bias)
            for start, stop in split_classes(CLASSES, parts)]


def joined(shards: list[CpuShard], name: str) -> np.ndarray:
    return np.concatenate([getattr(shard.state(), name) for shard in shards])


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("saved", [1, 3, 4])
def test_w_of_any_number_of_contexts_fills_any_number_of_shards(tmp_path: Path, parts: int, saved: int) -> None:
    padded = np.zeros((saved * -(-CLASSES // saved) * K, DIM), np.float32)  # as the recipes cut
    padded[: len(W)] = W
    path = tmp_path / "model-0001.params"
    write_arrays(path, {f"arg:fc7_{i}_weight": [part] for i, part in enumerate(np.split(padded, saved))})
    shards = make_shards(parts)
    assert "class centres of 11 classes loaded" in from_checkpoint(path, shards, CLASSES, K, DIM)
    assert np.array_equal(joined(shards, "centres"), W)
    assert not joined(shards, "momentum").any()
    shards[0].centres += 1  # its own memory, not the file's


def test_softmax_brings_its_bias_and_partial_fc_leaves_its_momentum(tmp_path: Path) -> None:
    path = tmp_path / "model-0001.params"
    write_arrays(path, {"arg:x": [W]})
    for i, part in enumerate(np.split(W, [12])):
        write_arrays(tmp_path / f"{i}_centers.param", [[part]])
        write_arrays(tmp_path / f"{i}_centers_mom.param", [[part + 1]])
    shards = make_shards(3)
    line = from_checkpoint(path, shards, CLASSES, K, DIM)
    assert "class centres of 11 classes loaded; their momentum left out, as the backbone's" in line
    assert np.array_equal(joined(shards, "centres"), W) and not joined(shards, "momentum").any()
    write_arrays(path, {"arg:fc7_weight": [W], "arg:fc7_bias": [W[:, 0]]})
    shards = make_shards(2, with_bias=True)
    assert "class centres and their bias of 11" in from_checkpoint(path, shards, CLASSES, K, DIM)
    assert np.array_equal(joined(shards, "bias"), W[:, 0])
    shards = make_shards(2)
    assert "their bias left out" in from_checkpoint(path, shards, CLASSES, K, DIM)
    assert not joined(shards, "bias").any()


def test_w_that_does_not_fit_starts_anew_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "model-0001.params"
    for arrays, words in [({"arg:x": [W]}, "no class centres there; they start anew"),
                          ({"arg:fc7_weight": [W[:10]]}, "found 10 rows in 1 shard, expected 22 for 11 classes of 2"),
                          ({"arg:fc7_weight": [W[:, :2]]}, "found centres of 2 numbers, expected 3"),
                          ({"arg:fc7_1_weight": [W]}, "found no fc7_0_weight, expected all")]:
        write_arrays(path, arrays)
        shards = make_shards(2)
        line = from_checkpoint(path, shards, CLASSES, K, DIM)
        assert words in line and line.endswith("start anew")
        assert np.array_equal(joined(shards, "centres"), initial_centres(0, 0, CLASSES, K, DIM))


def test_images_are_bounded_and_shared_out_to_sub_centres() -> None:
    labels = np.array([2, 0, 0, 2, 0] + [1] * 50)
    images, rows = choose_images(labels, 2)
    assert np.array_equal(images[:3], [1, 2, 4]) and np.array_equal(rows[:3], [0, 1, 0])
    assert (rows // 2 == labels[images]).all()
    assert np.bincount(rows).tolist() == [2, 1, MOST_IMAGES, MOST_IMAGES, 1, 1]


def mean_colour(images: np.ndarray) -> np.ndarray:
    return images.mean(axis=(2, 3)).astype(np.float32)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("parts", [2, 4])
def test_mean_embeddings(tiny_set: Path, tmp_path: Path, parts: int, processes: int) -> None:
    """Against the definition, for shards of one process and for those cut over two; 66 is no multiple of a batch."""
    dataset, path = open_dataset(tiny_set), tmp_path / "model-0001.params"
    write_arrays(path, {"arg:x": [W]})
    config = Config(centres_from="embeddings", pretrained="x", emb_size=DIM, per_batch_size=4,
                    devices=(("cpu", 0), ("cpu", 1)))
    source = centres_source(config)
    shards = make_shards(parts, sub_centres=1)
    line, *_ = together(lambda process: start_centres(source, path, dataset, shards[process.rank::processes],
                                                      mean_colour, process), processes)
    assert line == "class centres: the mean embeddings of 66 images, at most 10 of a class"
    sums = np.zeros((CLASSES, DIM))
    for i in range(len(dataset)):
        label, body, _ = dataset.read(i)
        feature = mean_colour(decode_rgb(body).transpose(2, 0, 1)[None])[0].astype(np.float64)
        sums[label] += feature / np.linalg.norm(feature)
    expected = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    np.testing.assert_allclose(joined(shards, "centres"), expected, rtol=1e-5)  # float32 sums of six


def test_nothing_is_done_where_nothing_is_asked_and_what_is_left_out_is_said(tiny_set: Path, tmp_path: Path) -> None:
    path, whole, dataset = tmp_path / "model-0001.params", tmp_path / "whole-0001.params", open_dataset(tiny_set)
    write_arrays(path, {"arg:x": [W]})
    write_arrays(whole, {"arg:fc7_weight": [W]})
    for centres_from, checkpoint, parts, line in (
            ("random", path, 1, ""), ("checkpoint", None, 1, ""), ("checkpoint", path, 0, ""),
            ("random", whole, 1, f"{whole}: fc7_weight: class centres left out: --centres-from random"),
            ("checkpoint", whole, 0, f"{whole}: fc7_weight: class centres left out: a triplet loss has none")):
        shards = make_shards(parts) if parts else []
        assert start_centres(CentresSource(centres_from), checkpoint, dataset, shards, mean_colour,
                             SingleProcess()) == line
        assert not shards or np.array_equal(joined(shards, "centres"), initial_centres(0, 0, CLASSES, K, DIM))


def test_centres_that_are_named_have_to_be_there_and_to_fit(tiny_set: Path, tmp_path: Path) -> None:
    """Centres of a checkpoint or of a folder, whatever the network starts from."""
    path, dataset = tmp_path / "model-0001.params", open_dataset(tiny_set)

    def fill(place: object, dim: int = DIM) -> tuple[str, np.ndarray]:
        shards = make_shards(2)
        line = start_centres(CentresSource(str(place), K, dim), None, dataset, shards, mean_colour, SingleProcess())
        return line, joined(shards, "centres")

    write_arrays(path, {"arg:fc7_weight": [W]})
    for place in (tmp_path / "model", f"{tmp_path / 'model'},1", path):
        line, centres = fill(place)
        assert line == f"{path}: fc7_weight: class centres of 11 classes loaded" and np.array_equal(centres, W)
    with pytest.raises(UserError, match=r"--centres-from: .*: found centres of 3 numbers, expected 4$"):
        fill(path, dim=4)
    write_arrays(path, {"arg:fc7_weight": [W[:10]]})
    with pytest.raises(UserError, match=r"--centres-from: .*: found 10 rows in 1 shard, expected 22 for 11 classes"):
        fill(path)
    write_arrays(path, {"arg:x": [W]})
    for place in (path, tmp_path):
        with pytest.raises(UserError, match=r"--centres-from: .*: found no class centres there, expected those of a "):
            fill(place)
    for i, part in enumerate(np.split(W, [12])):
        write_arrays(tmp_path / f"{i}_centers.param", [[part]])
    assert np.array_equal(fill(tmp_path)[1], W)


def test_flags_find_the_centres_or_say_that_there_are_none(tmp_path: Path) -> None:
    def parse(place: object, *flags: str) -> Config:
        return parse_args("train", ["--network", "y1", "--dataset", "emore", "--centres-from", str(place), *flags],
                          environ={})

    write_arrays(tmp_path / "model-0001.params", {"arg:fc7_weight": [W]})
    assert parse(tmp_path).centres_from == f"{tmp_path / 'model'},1"
    (tmp_path / "state").mkdir()
    assert parse(tmp_path / "state").centres_from == str(tmp_path / "state")
    with pytest.raises(UserError, match=r"--centres-from: found no embedings-0001.params, .*; expected it or one of "
                                        r"checkpoint, embeddings, random; the nearest is 'embeddings'"):
        parse("embedings")
    with pytest.raises(UserError, match=r"centres_from: found .*, but a triplet loss has no class centres"):
        parse(tmp_path, "--loss", "triplet")
