# SPDX-License-Identifier: Apache-2.0
"""Options from the Config to what the loaders yield: images, their order, bags of triplets."""
from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from recognition.config.options import Config
from recognition.data import degrade
from recognition.data.loader import Batch, in_memory
from recognition.data.order import BEGINNING
from recognition.data.sets.landmarks import write_landmarks_of
from recognition.engines.choose import choose_engine
from recognition.errors import UserError
from recognition.head.triplet_head import TripletHead
from recognition.processes.communicator import SingleProcess
from recognition.training.parts import make_dataset, make_head, make_loader
from tests.recognition.threads import Thread, together

DIM = 8
TRIPLET = {"loss_name": "triplet", "per_batch_size": 6}


class Mean:
    """A backbone whose features are mean colours, for the loader of triplets."""

    buffer = staticmethod(in_memory)

    def embed(self, images: np.ndarray) -> np.ndarray:
        return images.mean(axis=(2, 3)).astype(np.float32) - 127


def batches(config: Config) -> Iterator[Batch]:
    with make_loader(config, make_dataset(config), Mean(), SingleProcess(), BEGINNING, {}) as loader:  # type: ignore
        yield from loader


def first(config: Config) -> Batch:
    return next(batches(config))


def same(left: np.ndarray, right: np.ndarray) -> list[bool]:
    """Which images are the same."""
    return (left == right).all(axis=(1, 2, 3)).tolist()


def test_data_rand_mirror(make: Callable[..., Config]) -> None:
    plain, mirrored = first(make()).images, first(make(data_rand_mirror=True)).images
    kept, flipped = same(mirrored, plain), same(mirrored[..., ::-1], plain)
    assert all(a != b for a, b in zip(kept, flipped)) and 0 < sum(flipped) < 12


def test_data_cutoff(make: Callable[..., Config]) -> None:
    plain, cut = first(make()).images, first(make(data_cutoff=20)).images
    kept = same(cut, plain)
    grey = ((cut == 128) & (plain != 128)).all(axis=1).sum(axis=(1, 2))
    assert 0 < sum(kept) < 12
    assert all(count == 0 if as_it_was else 80 < count <= 400 for as_it_was, count in zip(kept, grey))


def test_data_color(make: Callable[..., Config]) -> None:
    """1 changes the colours of each image by a little; 2 recompresses half of them before that."""
    plain, jittered, compressed = (first(make(data_color=color)).images for color in (0, 1, 2))
    assert not any(same(jittered, plain))
    assert np.abs(jittered.astype(float) - plain).mean() < 30
    assert 0 < sum(same(compressed, jittered)) < 12


@pytest.mark.parametrize("key", ["data_mask_prob", "data_resize_prob", "data_blur_prob", "data_hsv_prob",
                                 "data_gray_prob"])
def test_images_made_worse(make: Callable[..., Config], key: str) -> None:
    """All of them with 1; with 0.5 some, which then look as with 1; the same again, and others with another seed."""
    def images(share: float, seed: int = 0) -> np.ndarray:
        return first(make(**{key: share}, seed=seed, per_batch_size=60)).images

    plain, every, some = images(0), images(1), images(0.5)
    changed, as_every = ((some != other).any(axis=(1, 2, 3)) for other in (plain, every))
    assert (every != plain).any(axis=(1, 2, 3)).all() and (changed ^ as_every).all()
    assert 12 < changed.sum() < 48  # of 60 fair coins: beyond it one run in a million
    assert np.array_equal(images(0.5), some) and not np.array_equal(images(0.5, seed=1), some)
    if key == "data_gray_prob":
        assert (every[:, 0] == every[:, 1]).all() and (every[:, 0] == every[:, 2]).all()


def test_masks_by_landmarks(make: Callable[..., Config], tiny_set: Path, tmp_path: Path, capsys) -> None:
    """A file beside the set moves the masks, and is told; the images without a mask stay the same."""
    shutil.copytree(tiny_set, tmp_path / "set")
    config = make(data_mask_prob=0.5, dataset_path=str(tmp_path / "set"), per_batch_size=60)
    without = first(config)
    assert "no landmarks beside it, masks lie as on a face that fits the template" in capsys.readouterr().out
    dataset = make_dataset(config)
    points = np.full((67, 5, 2), np.nan)
    points[1:61] = degrade.ARCFACE + 8
    write_landmarks_of(*dataset.landmarks_place, points)  # type: ignore[misc]
    moved = first(config)
    assert "masks follow the landmarks of 60 of 66 images" in capsys.readouterr().out
    masks = (first(make(dataset_path=str(tmp_path / "set"), per_batch_size=60)).images != without.images).any(
        axis=(1, 2, 3))
    assert ((moved.images != without.images).any(axis=(1, 2, 3)) == masks & (moved.records < 61)).all()


def test_processes_whose_sets_have_other_landmarks_do_not_begin(make: Callable[..., Config], tiny_set: Path,
                                                                tmp_path: Path) -> None:
    for name in ("0", "1"):
        shutil.copytree(tiny_set, tmp_path / name)
    place, of = make_dataset(make(dataset_path=str(tmp_path / "1"))).landmarks_place or (None, "")
    write_landmarks_of(place, of, np.ones((67, 5, 2)))  # type: ignore[arg-type]

    def begin(communicator: Thread) -> None:
        config = make(data_mask_prob=0.5, dataset_path=str(tmp_path / str(min(communicator.rank, 1))))
        make_loader(config, make_dataset(config), Mean(), communicator, BEGINNING, {}).close()  # type: ignore[arg-type]

    for found in together(begin):
        assert isinstance(found, UserError) and "landmarks: process 1 has " in str(found)
        assert "process 0 'none', expected the same in all processes of a run" in str(found)


def test_data_images_filter(make: Callable[..., Config], tiny_set: Path) -> None:
    """Each of the eleven identities has six images."""
    assert len(make_dataset(make(data_images_filter=6))) == 66
    with pytest.raises(UserError, match="data_images_filter 7 leaves none"):
        make_dataset(make(data_images_filter=7))


def test_is_shuffled_rec(make: Callable[..., Config]) -> None:
    """A shuffled file is read in its own order: here the labels rise."""
    assert first(make(is_shuffled_rec=True)).labels.tolist() == [0] * 6 + [1] * 6
    assert first(make()).labels.tolist() != [0] * 6 + [1] * 6


def test_dataset_path(make: Callable[..., Config], tiny_set: Path, tmp_path: Path) -> None:
    assert make_dataset(make()).path == tiny_set
    with pytest.raises(UserError, match=f"^{tmp_path}: no train.rec there"):
        make_dataset(make(dataset_path=str(tmp_path)))


def test_batches_of_images(make: Callable[..., Config]) -> None:
    assert first(make(per_batch_size=5)).images.shape == (5, 3, 112, 112)
    assert first(make(per_batch_size=5, devices="cpu:3")).images.shape == (15, 3, 112, 112)


def test_seed_of_the_data(make: Callable[..., Config]) -> None:
    """Order and augmentation are the same for the same seed, others for another."""
    one, again, other = (first(make(seed=seed, data_color=1)) for seed in (1, 1, 2))
    assert np.array_equal(one.records, again.records) and np.array_equal(one.images, again.images)
    assert not np.array_equal(one.records, other.records)
    same_images = set(one.records) & set(other.records)
    assert same_images and not any(np.array_equal(one.images[list(one.records).index(record)],
                                                  other.images[list(other.records).index(record)])
                                   for record in same_images)


def test_decode_threads(make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of the pool: how many of its threads have begun is for the pool to say."""
    sizes: list[int] = []

    class Counted(ThreadPoolExecutor):
        def __init__(self, threads: int, **options: Any) -> None:
            sizes.append(threads)
            super().__init__(threads, **options)

    monkeypatch.setattr("recognition.data.loader.ThreadPoolExecutor", Counted)
    for count in (1, 3):
        loader = batches(make(decode_threads=count))
        next(loader)
        loader.close()
    assert sizes == [1, 3]


def bag(config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Triplets of the first bag, as images of the set; squared distances of the positives and of the negatives."""
    with make_loader(config, make_dataset(config), Mean(), SingleProcess(), BEGINNING, {}) as loader:  # type: ignore
        next(loader)
        triplets = loader.state()["triplets"]
    whole = first(dataclasses.replace(config, loss_name="softmax", per_batch_size=66))
    unit = Mean().embed(whole.images)[np.argsort(whole.records)]
    a, p, n = (unit / np.linalg.norm(unit, axis=1, keepdims=True))[triplets.T]
    return triplets, np.square(a - p).sum(axis=1), np.square(a - n).sum(axis=1)


def test_triplet_alpha(make: Callable[..., Config]) -> None:
    """Negatives lie within the margin beyond the positive, and a larger margin finds more; the loss has it, too."""
    counts = []
    for alpha in (0.2, 1.0):
        triplets, d_ap, d_an = bag(make(**TRIPLET, triplet_alpha=alpha))
        assert (d_an > d_ap - 1e-5).all() and (d_an < d_ap + alpha + 1e-5).all()  # float32 distances
        counts.append(len(triplets))
        made = make_head(make(**TRIPLET, triplet_alpha=alpha), 11, choose_engine(), SingleProcess())
        assert isinstance(made, TripletHead)
        equal = made.forward_backward(np.tile(np.eye(2, DIM, dtype=np.float32), (3, 1)), np.zeros(6))
        assert equal.loss == pytest.approx(alpha, abs=1e-6)  # anchor, positive and negative are one point
    assert counts[0] < counts[1]


def test_triplet_max_ap(make: Callable[..., Config]) -> None:
    _, free, _ = bag(make(**TRIPLET, triplet_max_ap=0))
    most = float(np.median(free))
    _, near, _ = bag(make(**TRIPLET, triplet_max_ap=most))
    assert free.max() > most and 0 < len(near) < len(free) and (near <= most + 1e-5).all()


def test_bags_of_triplets(make: Callable[..., Config], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for images_per_identity, triplet_bag_size, words in ((2, 7200, "22 images of 11 identities"),
                                                         (4, 8, "8 images of 2 identities")):
        next(batches(make(**TRIPLET, images_per_identity=images_per_identity, triplet_bag_size=triplet_bag_size,
                          triplet_alpha=4)))
        assert f"bag 0: {words}" in caplog.text
