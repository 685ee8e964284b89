# SPDX-License-Identifier: Apache-2.0
"""Batches: content and order whatever the threads and parts, errors, and ends that do not hang."""
from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from itertools import islice
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from recognition.data.augment import Augmentation
from recognition.data.images.image import decode_rgb
from recognition.data.loader import Batch, BatchLoader
from recognition.data.order import EpochOrder, Position
from recognition.data.sets.dataset import FaceDataset, open_dataset
from recognition.errors import UserError

EVERYTHING = Augmentation(mirror=True, cutoff=32, color=2)
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def dataset(make_set: Callable[..., Path]) -> FaceDataset:
    return open_dataset(make_set(counts=(20, 30, 20)))


def batches(dataset: FaceDataset, count: int, augmentation: Augmentation | None = EVERYTHING, batch: int = 20,
            **options: object) -> list[Batch]:
    order = EpochOrder(len(dataset), seed=5)
    with BatchLoader(dataset, order, augmentation, batch, **options) as loader:  # type: ignore[arg-type]
        return list(islice(loader, count))


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert (a.epoch, a.index, a.next_position) == (b.epoch, b.index, b.next_position)
        for name in ("images", "labels", "records"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_labels_ahead_are_those_of_the_next_batch(dataset: FaceDataset) -> None:
    with BatchLoader(dataset, EpochOrder(len(dataset), seed=5), EVERYTHING, 20, prefetch=0) as loader:
        ahead = [(loader.labels_ahead().copy(), next(loader)) for _ in range(5)]
    for labels, batch in ahead:
        np.testing.assert_array_equal(labels, batch.labels)
    assert_same([batch for _, batch in ahead], batches(dataset, 5))


def test_batches(dataset: FaceDataset) -> None:
    found = batches(dataset, 7, augmentation=None)
    assert [(batch.epoch, batch.index) for batch in found] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert [batch.next_position for batch in found[:4]] == [(0, 20), (0, 40), (1, 0), (1, 20)]
    orders = {epoch: EpochOrder(70, 5).permutation(epoch) for epoch in range(3)}
    for batch in found:
        indices = orders[batch.epoch][batch.index * 20:][:20]
        assert batch.images.dtype == np.uint8 and batch.images.shape == (20, 3, 112, 112)
        assert batch.images.flags.c_contiguous and batch.labels.dtype == batch.records.dtype == np.int64
        for i, image, label, record in zip(indices, batch.images, batch.labels, batch.records):
            expected_label, encoded, key = dataset.read(i)
            assert (label, record) == (expected_label, key)
            np.testing.assert_array_equal(image, decode_rgb(encoded).transpose(2, 0, 1))


def test_same_pixels_as_mxnet(dataset: FaceDataset, mx: ModuleType) -> None:
    """libjpeg-turbo in two versions: equal, one level is allowed."""
    [batch] = batches(dataset, 1, augmentation=None)
    for image, record in zip(batch.images, batch.records):
        theirs = mx.image.imdecode(dataset.read(record - 1)[1]).asnumpy().transpose(2, 0, 1)
        assert abs(image.astype(int) - theirs).max() <= 1


def test_content_does_not_depend_on_threads_or_prefetch(dataset: FaceDataset) -> None:
    expected = batches(dataset, 5, threads=1, prefetch=0)
    assert_same(batches(dataset, 5, threads=4, prefetch=1), expected)
    assert_same(batches(dataset, 5, threads=3, prefetch=6), expected)


def test_parts_make_the_batch(dataset: FaceDataset) -> None:
    whole = batches(dataset, 5)
    parts = [batches(dataset, 5, part=part) for part in ((0, 7), (7, 8), (8, 20))]
    for n, batch in enumerate(whole):
        for name in ("images", "labels", "records"):
            joined = np.concatenate([getattr(part[n], name) for part in parts])
            np.testing.assert_array_equal(joined, getattr(batch, name))


def test_an_image_looks_the_same_in_batches_of_another_size(dataset: FaceDataset) -> None:
    small, large = batches(dataset, 6, batch=10), batches(dataset, 3, batch=20)
    np.testing.assert_array_equal(np.concatenate([batch.images for batch in small]),
                                  np.concatenate([batch.images for batch in large]))


def test_going_on(dataset: FaceDataset) -> None:
    through = batches(dataset, 8)
    for stop in range(1, 8):
        assert_same(batches(dataset, 8 - stop, start=through[stop - 1].next_position), through[stop:])


@pytest.mark.parametrize("start, first", [
    (Position(0, 60), (1, 0)), (Position(0, 5), (0, 0)), (Position(0, 50), (0, 2))])
def test_a_position_between_batches(dataset: FaceDataset, start: Position, first: tuple[int, int]) -> None:
    [batch] = batches(dataset, 1, start=start)
    assert (batch.epoch, batch.index) == first
    offset = start.offset if batch.epoch == start.epoch else 0
    np.testing.assert_array_equal(batch.records - 1, EpochOrder(70, 5).permutation(batch.epoch)[offset:offset + 20])


def test_epochs_visit_each_image_once(dataset: FaceDataset) -> None:
    found = batches(dataset, 10, batch=7, augmentation=None)
    assert sorted(np.concatenate([batch.records for batch in found])) == list(range(1, 71))


def test_the_order_of_the_next_epoch_is_made_by_a_thread(dataset: FaceDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, made, permutation = batches(dataset, 12, batch=7), [], EpochOrder.permutation

    def told(self: EpochOrder, epoch: int) -> np.ndarray:
        made.append((epoch, threading.current_thread().name.startswith("decode")))
        return permutation(self, epoch)

    monkeypatch.setattr("recognition.data.loader._LARGE_SET_IMAGES", 70)
    monkeypatch.setattr(EpochOrder, "permutation", told)
    assert_same(batches(dataset, 12, batch=7), expected)
    assert made == [(0, False), (1, True)]
    made.clear()
    assert_same(batches(dataset, 2, batch=7, start=expected[9].next_position), expected[10:])
    assert made == [(1, False)]


def test_images_of_another_size(make_set: Callable[..., Path], make_jpeg: Callable[..., bytes]) -> None:
    dataset = open_dataset(make_set(bodies={3: make_jpeg(3, (128, 128))}))
    assert batches(dataset, 1, batch=8)[0].images.shape == (8, 3, 112, 112)


@pytest.mark.parametrize("body, message", [
    (b"no image", "its 8 bytes are not an image that OpenCV can decode"),
    ((112, 96), "the image is 112 x 96, expected 112 x 112"), (b"", "it has no image")])
def test_errors_name_the_record(make_set: Callable[..., Path], make_jpeg: Callable[..., bytes], body: bytes,
                                message: str) -> None:
    body = make_jpeg(0, body) if isinstance(body, tuple) else body
    dataset = open_dataset(make_set(counts=(40,), bodies={17: body}))
    loader = BatchLoader(dataset, EpochOrder(40, 0), None, 8)
    with pytest.raises(UserError, match=rf"train\.rec: record 18: {message}"):
        list(loader)
    assert list(loader) == []


def test_an_error_ahead_surfaces_from_the_next_call(make_set: Callable[..., Path]) -> None:
    dataset = open_dataset(make_set("shuffled", counts=(60,), bodies={30: b"x"}))
    loader, got = BatchLoader(dataset, EpochOrder(60, 0, shuffle=False), None, 10, prefetch=3), 0
    with pytest.raises(UserError, match="record 30"):
        for got, _ in enumerate(loader, 1):  # noqa: B007
            wait([task for _, tasks in loader._pending for task in tasks])  # batch 3, which holds it, is made ahead
    assert got < 3


def test_too_few_images(dataset: FaceDataset) -> None:
    with pytest.raises(UserError, match="70 images, fewer than one batch of 71"):
        BatchLoader(dataset, EpochOrder(70, 0), None, 71)


def test_wrong_arguments(dataset: FaceDataset) -> None:
    with pytest.raises(ValueError, match="an order of 69 images for a data set of 70"):
        BatchLoader(dataset, EpochOrder(69, 0), None, 8)
    for part in ((0, 9), (3, 3), (-1, 2)):
        with pytest.raises(ValueError, match="part"):
            BatchLoader(dataset, EpochOrder(70, 0), None, 8, part=part)


def decoders() -> int:
    return sum(thread.name.startswith("decode") for thread in threading.enumerate())


def test_closing_ends_the_threads(dataset: FaceDataset) -> None:
    loader = BatchLoader(dataset, EpochOrder(70, 0), EVERYTHING, 70, threads=4, prefetch=8)
    next(loader)
    assert decoders() == 4
    loader.close()
    loader.close()
    assert decoders() == 0
    assert list(loader) == []


def test_a_dropped_loader_ends_its_threads(dataset: FaceDataset) -> None:
    loader = BatchLoader(dataset, EpochOrder(70, 0), None, 20)
    next(loader)
    del loader
    deadline = time.monotonic() + 120
    while decoders() and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert decoders() == 0


def test_closing_wakes_a_waiting_consumer(dataset: FaceDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(FaceDataset, "read", lambda self, i: release.wait(120) and (0, cv2.imencode(
        ".png", np.zeros((112, 112, 3), np.uint8))[1].tobytes(), 1))
    loader = BatchLoader(dataset, EpochOrder(70, 0), None, 70, threads=1)
    got: list[Batch] = []
    consumer = threading.Thread(target=lambda: got.extend(loader))
    consumer.start()
    time.sleep(0.05)
    closer = threading.Thread(target=loader.close)
    closer.start()
    release.set()
    consumer.join(120)
    closer.join(120)
    assert not consumer.is_alive() and not closer.is_alive() and got == []


@pytest.mark.parametrize("ending", ["", "raise SystemExit(3)", "1 / 0"])
def test_the_interpreter_ends_with_a_loader_open(make_set: Callable[..., Path], ending: str) -> None:
    code = f"""
from recognition.data.sets.dataset import open_dataset
from recognition.data.loader import BatchLoader
from recognition.data.order import EpochOrder
dataset = open_dataset({str(make_set(counts=(70,)))!r})
loader = BatchLoader(dataset, EpochOrder(70, 0), None, 70, prefetch=20)
next(loader)
{ending}
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=300, stderr=subprocess.PIPE)
    assert ended.returncode == {"": 0, "raise SystemExit(3)": 3, "1 / 0": 1}[ending]


def test_memory_is_bounded(dataset: FaceDataset) -> None:
    """With a slow consumer no more than the batches ahead and the one in hand are made."""
    with BatchLoader(dataset, EpochOrder(70, 0), None, 35, prefetch=2) as loader:
        next(loader)
        time.sleep(0.2)
        assert len(loader._pending) == 2


def test_images_lie_in_the_buffers_given_and_are_told_once_decoded(dataset: FaceDataset,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[np.ndarray] = []
    go_on = threading.Event()

    def buffer(shape: tuple[int, ...]) -> np.ndarray:
        made.append(np.full(shape, 77, np.uint8))
        return made[-1]

    with BatchLoader(dataset, EpochOrder(len(dataset), seed=5), EVERYTHING, 20, prefetch=1, buffer=buffer) as loader:
        found = [next(loader)]
        wait(loader._pending[0][1])
        usable = dataset.usable
        monkeypatch.setattr(dataset, "usable", lambda index: usable(index) if go_on.wait(60) else None)
        assert loader.coming() is made[1]
        assert len(made) == 3  # it has begun the third one, which waits
        found += [next(loader)]
        assert len(made) == 3
        assert loader.coming() is None
        go_on.set()
        wait(loader._pending[0][1])
        assert loader.coming() is made[2]
        found += [next(loader)]
    assert all(batch.images is images for batch, images in zip(found, made))
    assert_same(found, batches(dataset, 3))


def test_no_batch_is_told_where_an_image_ends_the_iterator(dataset: FaceDataset) -> None:
    with BatchLoader(dataset, EpochOrder(len(dataset), seed=5), EVERYTHING, 20, prefetch=1) as loader:
        next(loader)
        wait(loader._pending[0][1])
        loader._failure = UserError("an image of a later batch")
        assert loader.coming() is None
        with pytest.raises(UserError, match="later batch"):
            next(loader)
