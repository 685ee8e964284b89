# SPDX-License-Identifier: Apache-2.0
"""Building, shuffling and unpacking training sets, read back by MXNet's own recordio."""
from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np
import pytest

from common import build_eval_pack, rec2image, rec2shufrec, rec_builder
from common.rec_builder import RecBuilder, SeqRecBuilder
from recognition.data.records.record_index import read_index
from recognition.data.sets.dataset import open_dataset
from recognition.engines.mxnet.imports import mx
from recognition.errors import UserError

LABELS = [0, 0, 0, 2, 2, 3, 3, 3, 3]  # of identity 1 there is no image


def by_mxnet(folder: Path) -> dict[int, tuple[float, list[float], bytes]]:
    """Flag, labels and body of every record, by key."""
    reader = mx.recordio.MXIndexedRecordIO(str(folder / "train.idx"), str(folder / "train.rec"), "r")
    found = {}
    for key in reader.keys:
        header, body = mx.recordio.unpack(reader.read_idx(key))
        found[key] = header.flag, np.atleast_1d(header.label).tolist(), body
    return found


def in_file_order(folder: Path) -> list[tuple[float, bytes]]:
    reader = mx.recordio.MXRecordIO(str(folder / "train.rec"), "r")
    found = []
    while (payload := reader.read()) is not None:
        header, body = mx.recordio.unpack(payload)
        found.append((float(np.atleast_1d(header.label)[0]), body))
    return found


@pytest.fixture
def images(towards: Callable[..., bytes]) -> list[bytes]:
    random = np.random.RandomState(5)
    return [towards(random.standard_normal(3)) for _ in LABELS]


def groups(images: Sequence[Any]) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for label, image in zip(LABELS, images):
        found.setdefault(label, []).append(image)
    return found


def test_identities_as_mxnet_reads_them(images: list[bytes], tmp_path: Path) -> None:
    with RecBuilder(tmp_path / "new") as builder:
        for label, of_label in groups(images).items():
            builder.add(label, of_label)
        assert not (tmp_path / "new" / "train.rec").exists()  # whole or not at all
    found = by_mxnet(tmp_path / "new")
    assert found[0] == (2, [10, 14], b"") and sorted(found) == list(range(14))
    assert [(found[key][1], found[key][2]) for key in range(1, 10)] == [([label], image) for label, image in zip(
        LABELS, images)]
    assert [found[key][:2] for key in range(10, 14)] == [(2, [1, 4]), (2, [4, 4]), (2, [4, 6]), (2, [6, 10])]
    assert in_file_order(tmp_path / "new")[0] == (10, b"")
    assert (tmp_path / "new" / "property").read_text() == "4,112,112\n"
    dataset = open_dataset(tmp_path / "new")
    assert dataset.form == "identities" and dataset.labels().tolist() == LABELS


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_set_built_over_links_leaves_what_they_lead_to(link: Callable, images: list[bytes], tmp_path: Path) -> None:
    """The library builds in any folder: of a set that shares its files with another, and of what a kill left."""
    (tmp_path / "new").mkdir()
    for name in ("train.rec", "train.idx", "property", "train.rec.tmp", "train.idx.tmp", ".property.writing"):
        (tmp_path / name).write_text("of another")
        link(tmp_path / name, tmp_path / "new" / name)
    with RecBuilder(tmp_path / "new") as builder:
        builder.add(0, images[:2])
    assert len(open_dataset(tmp_path / "new")) == 2
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["property", "train.idx", "train.rec"]
    assert {path.read_text() for path in tmp_path.iterdir() if path.is_file()} == {"of another"}


def test_sequential_with_arrays(noise: np.ndarray, tmp_path: Path) -> None:
    """An array is stored as MXNet's pack_img stores it: the same JPEG."""
    builder = SeqRecBuilder(str(tmp_path / "new"))
    builder.add(3, noise[0])
    builder.add(1, b"\xff\xd8 encoded", is_image=False)
    builder.close()
    builder.close()
    reference = cv2.imencode(".jpg", noise[0], [cv2.IMWRITE_JPEG_QUALITY, 95])[1]  # as pack_img of quality 95 does
    found = by_mxnet(tmp_path / "new")
    decoded = [cv2.imdecode(np.frombuffer(data, np.uint8), 1) for data in (found[0][2], reference)]
    np.testing.assert_array_equal(*decoded)
    assert found[1] == (0, [1], b"\xff\xd8 encoded")
    assert (tmp_path / "new" / "property").read_text() == "4,112,112\n"


def test_what_a_builder_refuses(images: list[bytes], noise: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="label 1 after 2"), RecBuilder(tmp_path / "a") as builder:
        builder.add(2, images[:1])
        builder.add(1, images[1:2])
    with pytest.raises(ValueError, match="no images of identity 0"), RecBuilder(tmp_path / "a") as builder:
        builder.add(0, [])
    with pytest.raises(ValueError, match=r"an image of \(50, 112\)"), SeqRecBuilder(tmp_path / "a") as sequential:
        sequential.add(0, noise[0][:50])
    with pytest.raises(ValueError, match="whole number"), SeqRecBuilder(tmp_path / "a") as sequential:
        sequential.add(-1, images[0])
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.parametrize("form", ["identities", "sequential", "shuffled"])
def test_from_form_to_form(form: str, images: list[bytes], write_set: Callable[..., Path], tmp_path: Path,
                           capsys: pytest.CaptureFixture[str]) -> None:
    order = np.arange(9) if form == "identities" else np.random.RandomState(0).permutation(9)
    data = write_set([LABELS[i] for i in order], [images[i] for i in order], 5, form)
    (data / "identities.txt").write_text("a\nb\nc\nd\ne\n")
    (data / "lfw.bin").write_bytes(b"pairs")
    of_label = groups([images[i] for i in sorted(order)]) if form == "identities" else {
        label: [images[i] for i in order if LABELS[i] == label] for label in (0, 2, 3)}
    assert rec_builder.main([str(data), str(tmp_path / "indexed")]) == 0
    found = by_mxnet(tmp_path / "indexed")
    assert [found[key][2] for key in range(1, 10)] == [image for label in (0, 2, 3) for image in of_label[label]]
    assert open_dataset(tmp_path / "indexed").num_classes == 5
    assert (tmp_path / "indexed" / "lfw.bin").read_bytes() == b"pairs"
    assert rec_builder.main([str(data), str(tmp_path / "closed"), "--form", "sequential", "--renumber"]) == 0
    assert [label for label, _ in in_file_order(tmp_path / "closed")] == [0] * 3 + [1] * 2 + [2] * 4
    assert (tmp_path / "closed" / "identities.txt").read_text() == "a\nc\nd\n"
    assert (tmp_path / "closed" / "property").read_text() == "3,112,112\n"
    assert "9 images of 3 identities, in the form sequential" in capsys.readouterr().out


def test_from_folders(noise: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, person in enumerate(["p10", "p2", "p2"]):
        path = tmp_path / "in" / person / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), noise[i])
    assert rec_builder.main([str(tmp_path / "in"), str(tmp_path / "new"), "--quality", "100"]) == 0
    found = by_mxnet(tmp_path / "new")
    assert [found[key][1] for key in (1, 2, 3)] == [[0], [0], [1]]
    got = cv2.imdecode(np.frombuffer(found[3][2], np.uint8), 1)
    assert np.abs(got.astype(int) - noise[0]).mean() < 2
    assert (tmp_path / "new" / "identities.txt").read_text() == "p2\np10\n"
    assert rec_builder.main([str(tmp_path / "in"), str(tmp_path / "new")]) == 2
    assert "exists already" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert rec_builder.main([str(tmp_path / "empty"), str(tmp_path / "other")]) == 2
    assert "no images there" in capsys.readouterr().err
    (tmp_path / "in" / "p2" / "bad.jpg").write_bytes(b"none")
    assert rec_builder.main([str(tmp_path / "in"), str(tmp_path / "other")]) == 2
    assert "bad.jpg: its 4 bytes" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_shuffled(images: list[bytes], write_set: Callable[..., Path], tmp_path: Path) -> None:
    data = write_set(LABELS, images, 4)
    for seed in (0, 0, 1):
        name = f"new{seed}{len(list(tmp_path.iterdir()))}"
        assert rec2shufrec.main([str(data), str(tmp_path / name), "--seed", str(seed)]) == 0
    first, again, other = (in_file_order(path) for path in sorted(tmp_path.glob("new*")))
    assert first == again != other
    assert sorted(first) == sorted(other) == sorted(zip(map(float, LABELS), images))
    assert first != list(zip(map(float, LABELS), images))
    folder = sorted(tmp_path.glob("new*"))[0]
    assert (folder / "property").read_text() == "4,112,112\n9\nshuffled\n"
    dataset = open_dataset(folder)
    assert dataset.form == "shuffled" and [dataset.read(i)[:2] for i in range(9)] == first
    (folder / "train.idx").unlink()
    assert [open_dataset(folder).read(i)[:2] for i in range(9)] == first
    assert rec2shufrec.main([str(data), str(tmp_path / "x"), "--seed", "-1"]) == 2


def test_images_out_and_in_again(images: list[bytes], write_set: Callable[..., Path], tmp_path: Path) -> None:
    data = write_set(LABELS, images, 4)
    assert rec2image.main(["--include", str(data), "--output", str(tmp_path / "out")]) == 0
    files = {str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in (tmp_path / "out").rglob("*.jpg")}
    assert files == {f"{label}/{key}.jpg": image for key, (label, image) in enumerate(zip(LABELS, images), 1)}
    assert rec_builder.main([str(tmp_path / "out" / "train.lst"), str(tmp_path / "again")]) == 0
    found = by_mxnet(tmp_path / "again")
    assert [found[key][2] for key in range(1, 10)] == images
    assert rec2image.main(["--include", str(data), "--output", str(tmp_path / "few"), "--limit", "2", "--identities",
                           "2-3"]) == 0
    few = sorted(str(path.relative_to(tmp_path / "few")) for path in (tmp_path / "few").rglob("*.jpg"))
    assert few == ["2/4.jpg", "2/5.jpg", "3/6.jpg", "3/7.jpg"]


def test_pairs_out_and_in_again(shared: Path, tmp_path: Path) -> None:
    """Of a set that Python 2 pickled and of one of numpy arrays, as they are found in the wild."""
    for name, encoding in (("python2_pickle", "latin1"), ("lfw_sample", "bytes")):
        source = shared / "data" / "wild" / f"{name}.bin"
        assert rec2image.main(["--include", str(source), "--output", str(tmp_path / name)]) == 0
        packed = tmp_path / f"{name}.bin"
        assert build_eval_pack.main(["--data-dir", str(tmp_path / name), "--output", str(packed)]) == 0
        with open(source, "rb") as file:
            want, issame = pickle.load(file, encoding=encoding)
        with open(packed, "rb") as file:
            got, same = pickle.load(file)
        raw = [image.encode("latin1") if isinstance(image, str) else bytes(image) for image in want]
        assert got == raw and same == [bool(value) for value in issame]


def test_broken_records_are_counted(images: list[bytes], write_set: Callable[..., Path], tmp_path: Path,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    data = write_set(LABELS, images, 4, "sequential")
    keys, offsets = read_index(data / "train.idx")
    with open(data / "train.rec", "rb+") as file:
        file.seek(int(offsets[keys.tolist().index(4)]))
        file.write(b"\0\0\0\0")
    assert rec2image.main(["--include", str(data), "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "record 4" in said and "8 images; 1 broken records left out" in said
    assert rec2shufrec.main([str(data), str(tmp_path / "no")]) == 2
    assert "record 4" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, line in ((["--identities", "5-2"], "expected numbers and ranges"),
                        (["--identities", "9" * 5000], "expected numbers and ranges"),
                        (["--limit", "0"], "--limit: found 0"), ([], "no train.rec there")):
        assert rec2image.main(["--include", str(tmp_path), "--output", str(tmp_path / "out"), *flags]) == 2
        assert line in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot be written"):
        RecBuilder("/proc/none")
