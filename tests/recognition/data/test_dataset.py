# SPDX-License-Identifier: Apache-2.0
"""The three forms of a training set, and what is wrong with broken ones."""
from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from recognition.data.records import set_layout
from recognition.data.records.recordio import RecordReader, RecordWriter, pack_record
from recognition.data.sets.dataset import Property, open_dataset, read_property
from recognition.errors import UserError

LABELS = [0, 0, 0, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("form, first_key", [("identities", 1), ("sequential", 0), ("shuffled", 0)])
def test_forms(make_set: Callable[..., Path], make_jpeg: Callable[..., bytes], form: str, first_key: int) -> None:
    dataset = open_dataset(make_set(form))
    assert (dataset.form, dataset.num_classes, dataset.image_shape, len(dataset)) == (form, 3, (112, 112, 3), 8)
    assert [dataset.read(i) for i in range(8)] == [(LABELS[i], make_jpeg(i), i + first_key) for i in range(8)]
    assert dataset.labels().tolist() == LABELS and dataset.labels().dtype == np.int64


def test_shuffled_by_option(make_set: Callable[..., Path]) -> None:
    folder = make_set("sequential")
    index = (folder / "train.idx").read_text().splitlines()
    offsets = [line.split("\t")[1] for line in index]
    keys = [5, 3, 0, 7, 6, 1, 2, 4]  # an index by key is not in the order of the file
    (folder / "train.idx").write_text("".join(f"{key}\t{offset}\n" for key, offset in zip(keys, offsets)))
    assert open_dataset(folder, shuffled=True).labels().tolist() == LABELS
    assert [open_dataset(folder, shuffled=True).read(i)[2] for i in range(8)] == keys
    assert [open_dataset(folder).read(i)[2] for i in range(8)] == list(range(8))


def test_a_set_with_a_header_read_in_its_own_order(make_set: Callable[..., Path]) -> None:
    dataset = open_dataset(make_set("identities"), shuffled=True)
    assert (dataset.form, dataset.labels().tolist()) == ("shuffled", LABELS)


@pytest.mark.parametrize("form", ["identities", "sequential", "shuffled"])
@pytest.mark.parametrize("least, labels", [(0, LABELS), (1, LABELS), (3, [0, 0, 0, 2, 2, 2, 2]), (4, [2, 2, 2, 2])])
def test_images_filter(make_set: Callable[..., Path], form: str, least: int, labels: list[int]) -> None:
    dataset = open_dataset(make_set(form), images_filter=least)
    assert dataset.labels().tolist() == [dataset.read(i)[0] for i in range(len(dataset))] == labels
    assert dataset.num_classes == 3


def test_take(make_set: Callable[..., Path]) -> None:
    dataset = open_dataset(make_set()).take(np.array([7, 0, 0]))
    assert [dataset.read(i)[::2] for i in range(len(dataset))] == [(2, 8), (0, 1), (0, 1)]
    assert (dataset.num_classes, dataset.image_shape, dataset.form) == (3, (112, 112, 3), "identities")


def test_images_filter_of_everything(make_set: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"train\.rec: no images there, or data_images_filter 5 leaves none"):
        open_dataset(make_set(), images_filter=5)


@pytest.mark.parametrize("classes", [2, 4, 300])
def test_a_property_file_of_another_number_of_identities(make_set: Callable[..., Path], classes: int) -> None:
    """Too few: by the first label out of range; too many: by the records of the identities."""
    folder = make_set()
    (folder / "property").write_text(f"{classes},112,112\n")
    message = (r"train\.rec: record 5: label 2, expected a whole number from 0 to 1" if classes == 2 else
               rf"property: found {classes} identities, but train\.rec describes 3 and its labels end at 2, expected 3")
    with pytest.raises(UserError, match=message):
        open_dataset(folder)


def test_a_property_file_of_fewer_identities_than_are_described(make_set: Callable[..., Path],
                                                                caplog: pytest.LogCaptureFixture) -> None:
    """The labels fit it, and count, as with the old trainer."""
    folder = make_set(labels=dict.fromkeys(range(4, 8), 1))
    (folder / "property").write_text("2,112,112\n")
    assert open_dataset(folder).num_classes == 2
    assert "3 identity records for 2 identities: some are empty, or several of one identity" in caplog.text


def test_identities_without_images_are_said(make_set: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    """Images were dropped and the labels kept: seven identities, of which 1, 5 and 6 are left."""
    folder = make_set(labels={**dict.fromkeys(range(3), 1), 3: 5, **dict.fromkeys(range(4, 8), 6)})
    (folder / "property").write_text("7,112,112\n")
    with caplog.at_level(logging.INFO):
        dataset = open_dataset(folder)
    assert dataset.num_classes == 7
    (line,) = caplog.records
    assert line.message == f"{folder}/property: 7 identities, of which 4 have no image"


@pytest.mark.parametrize("form", ["identities", "sequential", "shuffled"])
def test_identities_beyond_the_last_label_are_said(make_set: Callable[..., Path], form: str,
                                                   caplog: pytest.LogCaptureFixture) -> None:
    folder = make_set(form)
    caplog.set_level(logging.INFO)
    open_dataset(folder).check_labels()
    assert "no image" not in caplog.text
    if form == "identities":  # the last identity has the most images; without the others it would be the first
        folder = make_set(form, (4, 1, 2))
        open_dataset(folder, images_filter=3).check_labels()
        assert f"{folder}/property: 3 identities, but the labels end at 0: those beyond it have no image" in caplog.text
    else:
        text = (folder / "property").read_text()
        (folder / "property").write_text("9" + text[1:])
        open_dataset(folder).check_labels()
        assert f"{folder}/property: 9 identities, but the labels end at 2: those beyond it have no image" in caplog.text


def test_label_vectors(make_set: Callable[..., Path]) -> None:
    """The class stands first; two labels on record 0 do not make it a header, for it has an image."""
    dataset = open_dataset(make_set("sequential", labels={0: (2, 0.5), 3: (1,), 4: (0, 1, 2, 3)}))
    assert dataset.form == "sequential"
    assert dataset.labels().tolist() == [dataset.read(i)[0] for i in range(8)] == [2, 0, 0, 1, 0, 2, 2, 2]


@pytest.mark.parametrize("form", ["identities", "sequential"])
def test_index_missing(make_set: Callable[..., Path], form: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_set(form)
    (folder / "train.idx").unlink()
    with caplog.at_level(logging.WARNING):
        assert open_dataset(folder).labels().tolist() == LABELS
    assert "train.idx: not found" in caplog.text


@pytest.mark.parametrize("label, shown", [
    (float("nan"), "nan"), (float("inf"), "inf"), (3, "3"), (-1, "-1"), (0.5, "0.5"), (1e30, "1e[+]30"), ((7, 1), "7")])
def test_bad_label(make_set: Callable[..., Path], label: float, shown: str) -> None:
    dataset = open_dataset(make_set(labels={4: label}))
    message = rf"train\.rec: record 5: label {shown}, expected a whole number from 0 to 2"
    for read in (lambda: dataset.read(4), dataset.labels):
        with pytest.raises(UserError, match=message):
            read()


def test_record_without_an_image(make_set: Callable[..., Path]) -> None:
    dataset = open_dataset(make_set("sequential", bodies={2: b""}))
    with pytest.raises(UserError, match=r"record 2: it has no image \(flag 0, label \[0.0\]\)"):
        dataset.read(2)
    with pytest.raises(UserError, match=r"record 2: its 24 bytes hold no image"):
        dataset.labels()


@pytest.mark.parametrize("at, data, message", [
    (0, b"?", r"record 3: .*train\.rec: offset \d+: found 0xced7233f"),
    (4, b"\4\0\0\0", "record 3: (record of|its) 4 bytes"),
    (8, b"\xff\xff\xff\xff", "record 3: record says 4294967295 labels")])
def test_damaged_record(make_set: Callable[..., Path], at: int, data: bytes, message: str) -> None:
    folder = make_set("sequential")
    dataset = open_dataset(folder)
    with open(folder / "train.rec", "r+b") as file:
        file.seek(dataset._offsets[3] + at)
        file.write(data)
    with pytest.raises(UserError, match=message):
        dataset.read(3)
    if at < 8:
        with pytest.raises(UserError, match=message.replace("record 3: .*", "")):
            dataset.labels()


def test_disk_that_fails(make_set: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(make_set())

    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("recognition.data.records.recordio.os.pread", fail)
    with pytest.raises(UserError, match=r"train\.rec: record 3: .*Input/output error"):
        dataset.read(2)


def test_an_index_of_another_file(make_set: Callable[..., Path]) -> None:
    folder = make_set()
    with open(folder / "train.idx", "a") as file:
        file.write("99\t999999\n")
    with pytest.raises(UserError, match=r"train\.idx: line 13: offset 999999, but .*train\.rec has only \d+ bytes"):
        open_dataset(folder)


def test_an_index_that_is_larger_than_any_of_the_file(make_set: Callable[..., Path]) -> None:
    """A file with holes can say that it has terabytes."""
    folder = make_set()
    os.truncate(folder / "train.idx", 1 << 40)
    with pytest.raises(UserError, match=r"train\.idx: found 1099511627776 bytes, which no index of a file of \d+ has"):
        open_dataset(folder)


def test_index_lacks_images(make_set: Callable[..., Path]) -> None:
    folder = make_set()
    lines = (folder / "train.idx").read_text().splitlines(keepends=True)
    (folder / "train.idx").write_text("".join(lines[:4] + lines[5:]))
    with pytest.raises(UserError, match=r"the index has 7 of the images 1 \.\. 8"):
        open_dataset(folder)


@pytest.mark.parametrize("form", ["sequential", "shuffled"])
def test_an_index_that_stops_before_the_records_do(make_set: Callable[..., Path], form: str) -> None:
    folder = make_set("sequential")
    index, size = folder / "train.idx", (folder / "train.rec").stat().st_size
    lines = index.read_text().splitlines(keepends=True)
    for kept in (lines[:5], []):
        index.write_text("".join(kept))
        with pytest.raises(UserError, match=rf"train\.idx: its last record ends at .*, but .*train\.rec has {size}"):
            open_dataset(folder, shuffled=form == "shuffled")


@pytest.mark.parametrize("label", [(0, 5), (9, 5), (float("nan"), 9), (1e30, 2e30), (500, 600)])
def test_bad_header(tmp_path: Path, label: tuple[float, float]) -> None:
    with RecordWriter(tmp_path / "train.rec", tmp_path / "train.idx") as writer:
        writer.write(0, pack_record(label))
        writer.write(1, pack_record(0, b"x"))
    (tmp_path / "property").write_text("1,112,112")
    with pytest.raises(UserError, match=r"record 0: header \(.*\) for 2 records, expected"):
        open_dataset(tmp_path)


def test_header_rounded_to_float32(tmp_path: Path) -> None:
    """More than 2**24 images: the header is off by up to half the spacing of float32, the records tell."""
    true, count = 2 ** 25 + 2, 12
    for announced in (true - 2, true, true + 2):
        with RecordWriter(tmp_path / "train.rec", tmp_path / "train.idx") as writer:
            for key in range(true - 6, true + 6):
                writer.write(key, pack_record(0, b"image") if key < true else pack_record((1, 2)))
        keys = np.arange(true - 6, true - 6 + count)
        with RecordReader(tmp_path / "train.rec") as reader:
            assert set_layout._first_identity(reader, keys, reader.offsets(), announced) == true


@pytest.mark.parametrize("name", ["train.rec", "property"])
def test_missing_file(make_set: Callable[..., Path], name: str) -> None:
    folder = make_set()
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        open_dataset(folder)


def test_empty(tmp_path: Path) -> None:
    for name in ("train.rec", "train.idx"):
        (tmp_path / name).touch()
    (tmp_path / "property").write_text("1,112,112")
    with pytest.raises(UserError, match="no images there"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("text, expected", [
    ("85742,112,112", Property(85742, 112, 112, False)), (" 10, 112 ,96 \r\n\n", Property(10, 112, 96, False)),
    ("10,112,112\n200\nshuffled\n2020-01-01 10:00:00.123\n", Property(10, 112, 112, True))])
def test_property(tmp_path: Path, text: str, expected: Property) -> None:
    (tmp_path / "property").write_text(text)
    assert read_property(tmp_path / "property") == expected


@pytest.mark.parametrize("text", [
    "", "85742", "85742,112", "85742,112,112,3", "a,112,112", "-5,112,112", "1.5,112,112", "0,112,112", "5,0,112",
    "99999999,112,112", "10,112,100000", "\n10,112,112", "10,112,112x", "\0\xff\xfe", "1,,2,3"])
def test_bad_property(tmp_path: Path, text: str) -> None:
    (tmp_path / "property").write_bytes(text.encode("latin1"))
    with pytest.raises(UserError, match=r"property: found '.*', expected"):
        read_property(tmp_path / "property")


def test_the_digest_is_of_the_records_and_their_order(make_set: Callable[..., Path]) -> None:
    folder = make_set()
    dataset = open_dataset(folder)
    assert dataset.digest() == open_dataset(folder).digest() and len(dataset.digest()) == 16
    others = [dataset.take(np.arange(len(dataset))[::-1]), dataset.take(np.arange(len(dataset) - 1))]
    assert len({dataset.digest(), *(other.digest() for other in others)}) == 3
