# SPDX-License-Identifier: Apache-2.0
"""Records that cannot be used: what stands in for them, whatever the threads and processes, and when it is enough."""
from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from recognition.data.augment import Augmentation
from recognition.data.images.image import decode_rgb
from recognition.data.loader import Batch, BatchLoader
from recognition.data.order import EpochOrder, Position
from recognition.data.records.record_index import read_index
from recognition.data.records.recordio import MAGIC
from recognition.data.sets.dataset import FaceDataset, open_dataset
from recognition.data.triplets import Bags, TripletLoader
from recognition.errors import UserError

COUNTS = (20, 30, 20)  # images 0 to 69 are records 1 to 70
BAD = {3: b"no JPEG", 4: b"", 40: b"\xff\xd8\xff\xe0 cut", 69: b"\0" * 1000}  # by image
AFTER = {3: 5, 4: 5, 40: 41, 69: 0}  # which image stands in
LABELS = {41: float("nan"), 10: -1.0, 11: 3.0, 12: 1e30, 13: 0.5}


def open_skipping(folder: Path, share: float = 0.2, **options: object) -> FaceDataset:
    return open_dataset(folder, on_bad_record="skip", bad_record_share=share, **options)  # type: ignore[arg-type]


def batches(dataset: FaceDataset, count: int, **options: object) -> list[Batch]:
    order = EpochOrder(len(dataset), seed=5)
    with BatchLoader(dataset, order, Augmentation(cutoff=32, color=2), 20, **options) as loader:  # type: ignore
        return list(islice(loader, count))


def bits(found: list[Batch]) -> list[object]:
    return [(b.images.tobytes(), b.labels.tolist(), b.records.tolist(), b.epoch, b.index, b.next_position)
            for b in found]


@pytest.fixture
def bad_set(make_set: Callable[..., Path]) -> Path:
    return make_set(counts=COUNTS, bodies=BAD)


def test_the_next_image_stands_in(bad_set: Path, make_jpeg: Callable[..., bytes]) -> None:
    dataset = open_skipping(bad_set)
    for i in range(70):
        label, image, key = dataset.usable(i)
        actual = AFTER.get(i, i)
        assert (label, key) == (int(np.searchsorted(np.cumsum(COUNTS), actual, "right")), actual + 1)
        np.testing.assert_array_equal(image, decode_rgb(make_jpeg(actual)))
    assert len(dataset.bad) == 4
    assert str(dataset.bad) == "4 of 70 records cannot be used (the first met: 4, 5, 41, 70)"
    order = EpochOrder(70, 5).permutation(0)
    batch = batches(dataset, 1)[0]
    assert batch.records.tolist() == [AFTER.get(i, i) + 1 for i in order[:20].tolist()]
    assert dataset.is_image(order[:20], batch.records).tolist() == [i not in BAD for i in order[:20].tolist()]


def test_a_jpeg_cut_short_is_not_trained_on_half_grey(make_set: Callable[..., Path],
                                                      make_jpeg: Callable[..., bytes]) -> None:
    """With zeros for its second half, as after a copy that broke off, OpenCV decodes it; bytes behind a whole JPEG
    change nothing."""
    cut, longer = make_jpeg(3)[: len(make_jpeg(3)) // 2] + b"\0" * 20000, make_jpeg(4) + b"more"
    dataset = open_skipping(make_set(counts=COUNTS, bodies={3: cut, 4: longer}))
    assert decode_rgb(cut).shape == decode_rgb(longer).shape == dataset.image_shape
    assert [dataset.usable(i)[2] for i in (3, 4)] == [5, 5]
    np.testing.assert_array_equal(dataset.usable(3)[1], decode_rgb(make_jpeg(4)))
    with pytest.raises(UserError, match=r"train\.rec: record 4: the JPEG is cut short, it has no end marker"):
        dataset.load(3)


def test_bits_do_not_depend_on_threads_processes_or_where_a_run_began(bad_set: Path) -> None:
    whole = bits(batches(open_skipping(bad_set), 7))
    assert bits(batches(open_skipping(bad_set), 7, threads=5, prefetch=0)) == whole
    assert bits(batches(open_skipping(bad_set), 3, start=Position(1, 20))) == whole[4:]
    halves = [batches(open_skipping(bad_set), 7, part=part) for part in ((0, 8), (8, 20))]
    assert bits([Batch(np.concatenate([a.images, b.images]), np.concatenate([a.labels, b.labels]),
                       np.concatenate([a.records, b.records]), a.epoch, a.index, a.next_position)
                 for a, b in zip(*halves)]) == whole


def test_stop_is_an_error_that_names_the_record(bad_set: Path) -> None:
    with pytest.raises(UserError, match=r"train\.rec: record (4|5|41|70): "):
        batches(open_dataset(bad_set), 4)


def test_what_is_said(make_set: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    dataset = open_skipping(make_set(counts=(200,), bodies=dict.fromkeys([*range(0, 198, 2), 1], b"bad")), 0.5)
    for i in range(200):
        dataset.usable(i)
    lines = [record.message for record in caplog.records]
    assert len(lines) == 11 and "train.rec: record 1: its 3 bytes are not an image" in lines[0]
    assert lines[-1] == ("left out: 100 of 200 records cannot be used (the first met: 1, 2, 3, 5, 7, 9, 11, 13, 15, "
                         "17, ...)")


def test_too_many(bad_set: Path) -> None:
    with pytest.raises(UserError, match=r"record \d+: .*; 4 of 70 records cannot be used \(the first met: .*\), "
                                        r"expected at most 3, which is --bad-record-share 0\.04"):
        batches(open_skipping(bad_set, share=0.04), 7)
    assert len(batches(open_skipping(bad_set, share=4 / 70), 7)) == 7


def test_a_set_of_nothing_but_bad_records_ends(make_set: Callable[..., Path]) -> None:
    dataset = open_skipping(make_set(counts=COUNTS, bodies=dict.fromkeys(range(70), b"x")), share=1)
    with pytest.raises(UserError, match="none of its 70 images can be used; 70 of 70"):
        batches(dataset, 1)


def test_labels_of_no_class(make_set: Callable[..., Path]) -> None:
    dataset = open_skipping(make_set(counts=COUNTS, labels=LABELS, bodies={}))
    assert np.flatnonzero(dataset.labels() < 0).tolist() == sorted(LABELS) and len(dataset.bad) == 5
    dataset.check_labels()
    assert dataset.usable(10)[2] == 15 and dataset.usable(41)[2] == 43
    assert set(Bags(dataset, 5, 70, 0).images(0).tolist()).isdisjoint(LABELS)
    assert len(open_skipping(dataset.path, images_filter=2)) == 65
    with pytest.raises(UserError, match="label"):
        open_dataset(dataset.path).labels()


def test_a_property_file_of_another_set_is_no_matter_of_bad_records(make_set: Callable[..., Path]) -> None:
    """Of five million records, 1,000 labels are looked at: no more of these may be bad than the share of them."""
    folder = make_set(form="sequential", counts=COUNTS)
    (folder / "property").write_text("2,112,112\n")
    dataset = open_skipping(folder, share=0.1)
    dataset.bad.images = 5_000_000
    with pytest.raises(UserError, match="record 57: label 2, expected a whole number from 0 to 1"):
        dataset.check_labels()


def test_triplets_leave_bad_images_out(bad_set: Path) -> None:
    dataset, seen = open_skipping(bad_set), []

    def embed(images: np.ndarray) -> np.ndarray:
        return images.mean(axis=(2, 3)).astype(np.float32) - 127

    bags = Bags(dataset, 30, 70, 0)
    with TripletLoader(dataset, bags, embed, None, 50.0, 0.0, 12, 12) as loader:
        seen = [batch.records for batch in islice(loader, 3)]
    assert not set(np.concatenate(seen).tolist()) & {i + 1 for i in BAD}


@pytest.mark.parametrize("name, options", [
    ("grey", None), ("progressive", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]), ("larger", None), ("16 bits", None)])
def test_unusual_images_that_can_be_used(make_set: Callable[..., Path], make_jpeg: Callable[..., bytes], name: str,
                                         options: list[int] | None) -> None:
    image = decode_rgb(make_jpeg(1, (224, 224) if name == "larger" else (112, 112)))
    image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if name == "grey" else image
    ending = ".png" if name == "16 bits" else ".jpg"
    image = image.astype(np.uint16) * 257 if name == "16 bits" else image
    body = cv2.imencode(ending, image, options or [])[1].tobytes()
    dataset = open_dataset(make_set(bodies={2: body}))
    assert dataset.load(2)[1].shape == (112, 112, 3)


def write(path: Path, at: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.parametrize("at, data", [(0, b"\0"), (4, struct.pack("<I", (1 << 29) - 1)), (4, struct.pack("<I", 0)),
                                      (4, struct.pack("<I", 3 << 29 | 100)), (8, b"\xff\xff\xff\x7f")],
                         ids=["magic", "huge length", "zero length", "last part first", "number of labels"])
def test_damaged_framing(make_set: Callable[..., Path], at: int, data: bytes) -> None:
    folder = make_set(counts=COUNTS)
    write(folder / "train.rec", int(read_index(folder / "train.idx")[1][8]) + at, data)
    dataset = open_skipping(folder)
    assert dataset.usable(7)[2] == 9 and list(dataset.bad._keys) == [8]
    assert dataset.usable(6)[2] == 7


def test_offsets_that_point_elsewhere(make_set: Callable[..., Path]) -> None:
    folder = make_set(counts=COUNTS)
    lines = (folder / "train.idx").read_text().splitlines()
    lines[8], lines[9] = "8\t999999999999", "9\t13"
    (folder / "train.idx").write_text("\n".join([*lines, "20\t0"]))
    dataset = open_skipping(folder)
    assert [dataset.usable(i)[2] for i in (6, 7, 8, 9, 19)] == [7, 10, 10, 10, 20]
    assert sorted(dataset.bad._keys) == [8, 9]
    with pytest.raises(UserError, match=r"train\.idx: line 75: key 20 stands there a second time"):
        open_dataset(folder)
    with pytest.raises(UserError, match=r"train\.idx: line 9: offset 999999999999, but .* bytes; 1 such, expected at "
                                        r"most 0, which is --bad-record-share 0"):
        (folder / "train.idx").write_text("\n".join(lines))
        open_skipping(folder, share=0)


@pytest.mark.parametrize("cut", [1, 5000])
def test_a_file_cut_short(make_set: Callable[..., Path], cut: int) -> None:
    folder = make_set(form="sequential", counts=COUNTS)
    os.truncate(folder / "train.rec", (folder / "train.rec").stat().st_size - cut)
    dataset = open_skipping(folder)
    assert dataset.usable(69)[2] == 0 and len(dataset) == 70
    with pytest.raises(UserError):
        open_dataset(folder).load(69)


def test_a_scan_goes_on_behind_damage(make_set: Callable[..., Path]) -> None:
    folder = make_set(form="sequential", counts=COUNTS)
    offsets = read_index(folder / "train.idx")[1]
    (folder / "train.idx").unlink()
    write(folder / "train.rec", int(offsets[5]) + 4, struct.pack("<I", 77777))
    write(folder / "train.rec", int(offsets[30]), struct.pack("<I", MAGIC + 1))
    dataset = open_skipping(folder)
    assert dataset._offsets.tolist() == np.delete(offsets, [5, 30]).tolist()
    with pytest.raises(UserError, match="offset"):
        open_dataset(folder)


def test_a_file_that_is_written_to_ends_the_run_where_it_shows(make_set: Callable[..., Path]) -> None:
    folder = make_set(counts=COUNTS)
    dataset = open_skipping(folder)
    assert dataset.usable(0)[2] == 1
    os.truncate(folder / "train.rec", 50_000)
    with pytest.raises(UserError, match=r"train\.rec: written to while it is read: \d+ bytes when .*, 50000 now"):
        dataset.usable(69)
    with pytest.raises(UserError, match="written to while it is read"):
        batches(dataset, 1)


def test_a_file_that_another_replaces_is_read_to_the_end(make_set: Callable[..., Path]) -> None:
    folder = make_set(counts=COUNTS)
    dataset = open_skipping(folder)
    whole = bits(batches(dataset, 2))
    shutil.copy(folder / "property", folder / "new")
    os.replace(folder / "new", folder / "train.rec")
    assert bits(batches(dataset, 2)) == whole


@pytest.mark.parametrize("form", ["identities", "sequential"])
def test_two_keys_of_one_record_are_said(make_set: Callable[..., Path], caplog: pytest.LogCaptureFixture,
                                         form: str) -> None:
    folder = make_set(form=form, counts=COUNTS)
    open_dataset(folder).close()
    assert not caplog.records
    lines = (folder / "train.idx").read_text().splitlines()
    for key, other in ((9, 30), (12, 9), (40, 41)):
        lines[key] = f"{key}\t{lines[other].split()[1]}"
    (folder / "train.idx").write_text("\n".join(lines) + "\n")
    open_dataset(folder).close()
    (line,) = (record.message for record in caplog.records)
    assert line.startswith(f"{folder / 'train.idx'}: 3 of {len(lines)} keys lead to a record that another key leads "
                           f"to, such as 9 and 12, offset {lines[30].split()[1]}: it is used more than once")
