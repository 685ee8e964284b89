# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from common.pack_folder import encode_image, fit_square, main
from common.sets.image_sources import read_identities
from recognition.data.images.image_files import read_file
from recognition.data.records.recordio import RecordReader, read_index, unpack_record
from recognition.data.sets.dataset import open_dataset
from recognition.data.verification_set import load_bin
from recognition.errors import UserError


def write_image(path, seed, shape=(112, 112, 3), quality=90):
    """Smooth noise, so that JPEG keeps it."""
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.integers(0, 256, (6, 6, *shape[2:]), np.uint8), shape[1::-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix == ".jpg" else []
    assert cv2.imwrite(str(path), image, options)
    return image


@pytest.fixture
def photographs(tmp_path):
    """Persons p1 .. p12 of 4 images each, in natural order."""
    source = tmp_path / "photographs"
    for person in range(1, 13):
        for i in range(4):
            write_image(source / f"p{person}" / f"{i}.jpg", (person, i))
    return source


def records(folder):
    keys, offsets = read_index(folder / "train.idx")
    with RecordReader(folder / "train.rec") as reader:
        return dict(zip(keys.tolist(), (unpack_record(reader.read(offset)) for offset in offsets.tolist())))


def fails(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_records_follow_the_contract(photographs, tmp_path):
    assert main([str(photographs), str(tmp_path / "set")]) == 0
    found = records(tmp_path / "set")
    assert (found[0].flag, found[0].label.tolist()) == (2, [49, 61])
    for key in range(1, 49):
        person, i = divmod(key - 1, 4)
        assert (found[key].flag, found[key].label.tolist(), found[key].id) == (0, [person], key)
        assert found[key].body == (photographs / f"p{person + 1}" / f"{i}.jpg").read_bytes()  # not encoded again
    for person in range(12):
        record = found[49 + person]
        assert (record.flag, record.label.tolist(), record.body) == (2, [1 + 4 * person, 5 + 4 * person], b"")
    assert len(found) == 61
    assert (tmp_path / "set" / "property").read_text() == "12,112,112\n"
    assert (tmp_path / "set" / "identities.txt").read_text().split() == [f"p{i}" for i in range(1, 13)]
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [
        "identities.txt", "property", "train.idx", "train.rec"]
    dataset = open_dataset(tmp_path / "set")
    assert (dataset.form, dataset.num_classes, len(dataset)) == ("identities", 12, 48)


def test_mxnet_reads_the_records(photographs, tmp_path):
    from recognition.engines.mxnet.imports import mx
    assert main([str(photographs), str(tmp_path / "set")]) == 0
    reader = mx.recordio.MXIndexedRecordIO(str(tmp_path / "set/train.idx"), str(tmp_path / "set/train.rec"), "r")
    header, _ = mx.recordio.unpack(reader.read_idx(0))
    assert (header.flag, header.label.tolist()) == (2, [49, 61])
    identity, body = mx.recordio.unpack(reader.read_idx(49 + 7))
    assert (identity.flag, identity.label.tolist(), body) == (2, [29, 33], b"")
    image, body = mx.recordio.unpack(reader.read_idx(29))
    assert image.label == 7
    assert mx.image.imdecode(body).shape == (112, 112, 3)


def test_held_out_people_are_verified_not_trained(photographs, tmp_path):
    assert main([str(photographs), str(tmp_path / "set"), "--held-out", "0.25", "--folds", "3"]) == 0
    folder = tmp_path / "set"
    trained, held_out = ((folder / name).read_text().split() for name in ("identities.txt", "set.txt"))
    assert len(held_out) == 3
    assert not set(trained) & set(held_out)
    assert open_dataset(folder).num_classes == len(trained) == 9
    with open(folder / "set.bin", "rb") as file:
        images, issame = pickle.load(file)  # as the legacy code reads it
    owner = {image.read_bytes(): image.parent.name for image in photographs.rglob("*.jpg")}
    owners = [owner[image] for image in images]
    assert set(owners) == set(held_out)
    assert [a == b for a, b in zip(owners[::2], owners[1::2])] == issame
    assert issame == ([True] * 6 + [False] * 6) * 3  # 18 pairs of the same person there are
    assert load_bin(folder / "set.bin").images.shape == (72, 3, 112, 112)


def test_held_out_as_number_and_as_file_agree(photographs, tmp_path):
    for name, held_out in (("a", "3"), ("b", str(tmp_path / "a" / "val.txt"))):
        options = ["--held-out", held_out, "--target", "val", "--pairs-per-fold", "1", "--seed", "5"]
        assert main([str(photographs), str(tmp_path / name), *options]) == 0
    for file in ("train.rec", "train.idx", "property", "identities.txt", "val.bin", "val.txt"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("line", [
    "{path}\t{label}", "{path} {label}", "1\t{path}\t{label}", "1\t{path}\t{label}\t0\t0\r"])
def test_list_file(photographs, tmp_path, line):
    people = [("p10/1.jpg", 1), ("p3/0.jpg", 0), ("p3/2.jpg", 0), ("p10/0.jpg", 1), ("p2/3.jpg", 2)]
    lines = [line.format(path=path, label=label) + "\n" for path, label in people]
    (photographs / "list.lst").write_bytes("".join(lines).encode())
    assert main([str(photographs / "list.lst"), str(tmp_path / "set")]) == 0
    found = records(tmp_path / "set")
    assert [found[key].label.tolist() for key in range(1, 6)] == [[0], [0], [1], [1], [2]]
    assert found[3].body == (photographs / "p10/1.jpg").read_bytes()  # the list's order within a person


@pytest.mark.parametrize(("line", "what"), [
    ("p1/0.jpg", "expected 'path<TAB>label'"), ("0\tp1/0.jpg\t4", "not aligned"),
    ("7\t12.0\tp1/0.jpg", "line 2: found"), ("p1/1.jpg\t3", "listed 2 times"),
    ("p1/\0.jpg\t4", r"line 2: found 'p1/\x00.jpg', expected a path below the list's folder"),
    ("../elsewhere/secret.jpg p2", "list.txt: line 2: found '../elsewhere/secret.jpg', expected a path below"),
    ("1\tp1/../../secret.jpg\t3", "line 2: found 'p1/../../secret.jpg'")])
def test_bad_lines(photographs, tmp_path, capsys, line, what):
    (photographs / "list.txt").write_text(f"p1/1.jpg\t3\n{line}\n")
    assert what in fails(capsys, photographs / "list.txt", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_labels_and_names_may_have_numbers_of_any_length(photographs, tmp_path):
    """Python makes no number of more than 4300 digits."""
    long = "9" * 5000
    (photographs / "list.lst").write_text(f"p1/../p2/1.jpg {long}0\np1/1.jpg {long}\np1/2.jpg 10\np1/3.jpg 0009\n")
    names = [identity.name for identity in read_identities(photographs / "list.lst")]
    assert names == ["0009", "10", long, long + "0"]


def test_absolute_paths_are_said(photographs, tmp_path, caplog):
    lines = f"1\t{photographs / 'p1' / '0.jpg'}\t0\n1\tp2/0.jpg\t1\n1\t{photographs / 'p3' / '0.jpg'}\t1\n"
    (photographs / "list.lst").write_text(lines)
    read_identities(photographs / "list.lst")
    assert [record.getMessage() for record in caplog.records] == [
        f"{photographs / 'list.lst'}: 2 of its 3 images have absolute paths, which are read wherever they lead; the "
        f"first: {photographs / 'p1' / '0.jpg'}"]


def test_broken_image_stops_or_is_left_out(photographs, tmp_path, capsys):
    cut, empty = photographs / "p4" / "2.jpg", photographs / "p5" / "0.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    assert str(cut) in fails(capsys, photographs, tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["photographs"]
    empty.write_bytes(b"")
    assert main([str(photographs), str(tmp_path / "set"), "--skip-broken"]) == 0
    said = capsys.readouterr().out
    assert said.count("left out: ") == 2
    assert str(cut) in said
    assert str(empty) in said
    assert len(open_dataset(tmp_path / "set")) == 46


def test_images_that_are_there_twice(photographs, tmp_path, capsys):
    copy = photographs / "p4" / "0.png"
    assert cv2.imwrite(str(copy), cv2.imread(str(photographs / "p4" / "0.jpg")))  # other bytes, same pixels
    (photographs / "p6" / "9.jpg").write_bytes((photographs / "p1" / "1.jpg").read_bytes())
    assert main([str(photographs), str(tmp_path / "set")]) == 0
    said = capsys.readouterr().out
    assert f"left out: 1 images that repeat another of the same person, such as {copy}" in said
    assert "mind: 1 images are there under more than one person" in said
    assert len(open_dataset(tmp_path / "set")) == 49


def test_other_formats_and_sizes(tmp_path):
    image = write_image(tmp_path / "grey.pgm", 1, (112, 92))
    decoded = cv2.imdecode(np.frombuffer(encode_image(tmp_path / "grey.pgm"), np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (112, 112, 3)
    # JPEG at quality 95 of smooth noise: a few grey levels, more beside the black border
    np.testing.assert_allclose(decoded[:, 16:96, 0].astype(int), image[:, 6:86], atol=8)
    assert decoded[:, :8].max() < 10
    write_image(tmp_path / "small.jpg", 2, (64, 64, 3))
    assert cv2.imdecode(np.frombuffer(encode_image(tmp_path / "small.jpg", 96), np.uint8), 1).shape == (96, 96, 3)


@pytest.mark.parametrize(("fit", "columns"), [("pad", 28), ("crop", 112), ("stretch", 56)])
def test_fit(fit, columns):
    image = np.zeros((224, 112, 3), np.uint8)
    image[:, 28:84] = 255  # half of the width
    fitted = fit_square(image, 112, fit)
    assert fitted.shape == (112, 112, 3)
    widths = (fitted[..., 0] > 127).sum(axis=1)
    assert set(widths.tolist()) == {columns if fit != "crop" else 56}


@pytest.mark.parametrize("shape", [(1, 500, 3), (500, 1, 3), (111, 112, 3), (113, 97, 3), (1, 1, 3)])
@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_any_shape_fits(shape, fit):
    assert fit_square(np.full(shape, 200, np.uint8), 112, fit).shape == (112, 112, 3)


@pytest.mark.parametrize(("options", "what"), [
    (("--held-out", "12"), "none is left to train on"), (("--held-out", "13"), "up to 12"),
    (("--held-out", "1.5"), "up to 12"), (("--held-out", "nan"), "up to 12"),
    (("--held-out", "absent.txt"), "absent.txt"),
    (("--held-out", "2", "--pairs-per-fold", "2"), "2 held-out identities make 12 pairs"),
    (("--held-out", "1"), "0 of different identities"), (("--quality", "0"), "--quality: found 0"),
    (("--quality", "x"), "argument --quality: invalid int value: 'x'; python -m common.pack_folder --help"),
    (("--target", "a/b"), "--target")])
def test_bad_options(photographs, tmp_path, capsys, options, what):
    assert what in fails(capsys, photographs, tmp_path / "set", *options)
    assert [path.name for path in tmp_path.iterdir()] == ["photographs"]


def test_nothing_to_pack(tmp_path, capsys):
    (tmp_path / "source" / "someone").mkdir(parents=True)
    assert "expected a folder of images" in fails(capsys, tmp_path / "source", tmp_path / "set")
    assert "cannot be read" in fails(capsys, tmp_path / "absent", tmp_path / "set")


def test_unknown_name_held_out(photographs, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("p1\nnobody\n")
    assert "'nobody' is none of the 12 people" in fails(
        capsys, photographs, tmp_path / "set", "--held-out", tmp_path / "names.txt")


def test_real_photographs(shared, tmp_path):
    """20 of the 30 people are there as .pgm and again as .png of the same pixels: 300 photographs remain."""
    assert main([str(shared / "data" / "orl"), str(tmp_path / "orl"), "--held-out", "5"]) == 0
    dataset, verification = open_dataset(tmp_path / "orl"), load_bin(tmp_path / "orl" / "orl.bin")
    assert (dataset.num_classes, len(dataset)) == (25, 250)
    assert len(verification.issame) == 440
    pairs = verification.images.reshape(440, 2, -1)
    assert (pairs[:, 0] != pairs[:, 1]).any(axis=1).all()


def test_names_and_files_of_strangers(tmp_path: Path) -> None:
    """A person's name that is two lines of names.txt, and an image that is a pipe without end."""
    (tmp_path / "in" / "ann\nbob").mkdir(parents=True)
    (tmp_path / "in" / "ann\nbob" / "1.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"found a person named 'ann\\nbob', expected names without control characters"):
        read_identities(tmp_path / "in")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UserError, match=r"pipe\.jpg: found 0 bytes in what is prw.*, expected a file"):
        read_file(tmp_path / "pipe.jpg")
