# SPDX-License-Identifier: Apache-2.0
"""The parsers of untrusted files, each as a function of bytes, with good inputs to start from.

A target raises nothing, or its promised error on bad input; anything else is a fault.
"""
from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Callable, NamedTuple

import cv2
import numpy as np

from common.doctor import examine, write_index
from common.embedding.gallery import load_gallery
from common.evaluation.ijb_meta import read_faces, read_subjects
from common.evaluation.ijb_meta import read_pairs as read_ijb_pairs
from common.evaluation.megaface_files import list_images, read_feature, read_noises
from common.faces.landmark_files import read_landmarks
from common.sets.image_sources import read_identities
from common.sets.pair_lists import read_pairs
from common.unpack_parts import unpack
from recognition.config.cli import parse_args
from recognition.config.options import Config
from recognition.data.images.image import decode_rgb
from recognition.data.records.record_index import read_index
from recognition.data.records.recordio import MAGIC, RecordReader, RecordWriter, pack_record
from recognition.data.sets.dataset import open_dataset, read_property
from recognition.data.sets.folder_index import list_images as list_people
from recognition.data.sets.folder_index import read_index as read_listing
from recognition.data.sets.folder_index import write_index as write_listing
from recognition.data.sets.landmarks import read_landmarks_of, write_landmarks_of
from recognition.data.verification_set import load_bin
from recognition.errors import UserError
from recognition.io.embeddings import StoredEmbeddings
from recognition.io.npz import read_npz
from recognition.io.params import read_arrays, write_arrays
from recognition.io.torch_file import read_tensors, write_tensors
from recognition.networks.symbol_file import read_symbol
from recognition.training.watch.run_files import read_history, read_starts

SEPARATOR = b"\n%%%%\n"  # between the files of an input with several files
MOST_PIXELS = 1 << 18  # while fuzzing, for speed
_MAGIC = struct.pack("<I", MAGIC)
_IMAGE = np.random.RandomState(0).randint(0, 256, (24, 24, 3)).astype(np.uint8)


class Target(NamedTuple):
    """A parser: ``run`` parses; ``seeds`` gives good inputs; ``refusal`` is the error that bad inputs may raise."""

    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    refusal: type[Exception] = UserError


def folder() -> Path:
    """This process's folder for the files of parsers."""
    path = Path(tempfile.gettempdir(), f"fuzz-of-recognition-{os.getpid()}")
    path.mkdir(exist_ok=True)
    return path


def _file(read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """The target for a parser that takes a path."""

    def run(data: bytes) -> object:
        path = folder() / "input"
        path.write_bytes(data)
        return read(path)

    return run


def _files(read: Callable[[Path], object], *names: str) -> Callable[[bytes], object]:
    """The target for a parser that takes a folder of these files."""

    def run(data: bytes) -> object:
        for name, part in zip(names, data.split(SEPARATOR)):
            (folder() / name).write_bytes(part)
        return read(folder())

    return run


def _jpeg(*options: int) -> bytes:
    return cv2.imencode(".jpg", _IMAGE, list(options))[1].tobytes()


def _set_files(*names: str) -> list[bytes]:
    """The files of a small training set by name."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place)
        with RecordWriter(path / "train.rec", path / "train.idx") as writer:
            writer.write(0, pack_record((4, 6)))
            for key, label in ((1, 0.0), (2, 0.0)):
                writer.write(key, pack_record(label, _jpeg()))
            writer.write(3, pack_record([1.0, 2.0], _jpeg() + b"\0" * (-len(_jpeg()) & 3) + _MAGIC * 3))
            writer.write(4, pack_record((1, 3)))
            writer.write(5, pack_record((3, 4)))
        (path / "property").write_text("2,24,24\n")
        return [(path / name).read_bytes() for name in names]


def _written(write: Callable[[Path], object]) -> bytes:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "file.npz")
        write(path)
        return path.read_bytes()


def _read_records(path: Path) -> None:
    with RecordReader(path) as reader:
        reader.offsets(lambda error: None)
        for offset in (0, 4, reader.size // 2, reader.size - 4, 1 << 40):
            for read in (reader.read, reader.end, lambda at: reader.peek(at, 36)):
                with contextlib.suppress(UserError):
                    read(offset)
        for _ in reader.scan():
            pass


def _read_set(path: Path) -> None:
    """Open a set and load all of it, with both policies."""
    for policy in ("skip", "stop"):
        dataset = open_dataset(path, on_bad_record=policy, bad_record_share=0.9)
        try:
            dataset.check_labels()
            for i in range(min(len(dataset), 20)):
                dataset.usable(i)
        finally:
            dataset.close()


def _read_flags(data: bytes) -> None:
    words = data.decode("utf-8", "surrogateescape").split("\0")
    with contextlib.suppress(SystemExit):  # --help
        parse_args("train_parall", words[:40], environ={})


def _read_config(data: bytes) -> None:
    """Read a configuration in the form of a training state."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return
    known = {item.name for item in dataclasses.fields(Config)}
    if isinstance(values, dict):
        Config(**{key: value for key, value in values.items() if key in known})


def _read_list(path: Path) -> None:
    """Read a list; its relative paths must stay below its folder."""
    for identity in read_identities(path):
        for image in identity.images:
            below = Path(os.path.normpath(image)).is_relative_to(path.parent)
            absolute = not image.is_relative_to(path.parent)  # pathlib puts no list's folder before these
            assert below or absolute, image


def _diagnose(path: Path) -> None:
    examine(path)
    write_index(path)
    examine(path, decode=False)


def _unpack(path: Path) -> None:
    target = path.parent / "unpacked"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    unpack([path], target, {})


def _archives() -> list[bytes]:
    """Archives of each type, with two files each."""
    found = []
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", kind) as zipped:
            for name in ("a/train.rec", "a/property"):
                zipped.writestr(name, bytes(range(64)) * 4)
        found.append(file.getvalue())
    for ending in ("", "gz", "bz2", "xz"):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode=f"w:{ending}", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
            for name in ("a/train.rec", "a/property"):
                member = tarfile.TarInfo(name)
                member.size, member.pax_headers = 256, {"size": "256"}
                tar.addfile(member, io.BytesIO(bytes(256)))
        found.append(file.getvalue())
    return found


def _read_arrays(data: bytes) -> None:
    """Read the bytes as an array in an ``.npz``. Without that, its checksum would stop most changes before the headers.
    """
    path = folder() / "arrays.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("embeddings.npy", data)
    read_npz(path)


def _array(of: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, of)
    return file.getvalue()


def _graph() -> dict[str, Any]:
    layer = {"op": "Convolution", "name": "fc1", "attrs": {"kernel": "(3, 3)", "num_filter": "4", "no_bias": "True"},
             "inputs": [[0, 0, 0], [1, 0, 0]]}
    return {"nodes": [{"op": "null", "name": "data", "inputs": []}, {"op": "null", "name": "w", "inputs": []}, layer],
            "arg_nodes": [0, 1], "heads": [[2, 0, 0]], "attrs": {"mxnet_version": ["int", 10901]}}


def _gallery() -> bytes:
    file = io.BytesIO()
    np.savez(file, paths=np.array(["a.jpg", "b.jpg"]), embeddings=np.eye(2, dtype=np.float32), model=np.array("m,1"),
             flip=np.array(True))
    return file.getvalue()


def _read_rows(path: Path) -> None:
    """Read a set's embeddings as a run with a teacher does."""
    found = StoredEmbeddings(path)
    assert found.fingerprint() and len(found.of(found.keys)) == len(found.keys) - len(found.missing(found.keys))


def _read_listing(path: Path) -> None:
    """Seeking to an impossible place of an archive is an OSError, after which a folder is listed anew, too."""
    with contextlib.suppress(OSError):
        listing = read_listing(path, path.parent)
        listing.changed()
        assert listing.digest() and all(listing.path(i) for i in range(len(listing.labels)))


def _listing() -> bytes:
    root = folder()
    for name in ("a", "b"):
        (root / "people" / name).mkdir(parents=True, exist_ok=True)
        (root / "people" / name / "1.jpg").touch()
    write_listing(root / "people.images.npz", list_people(root / "people"))
    return (root / "people.images.npz").read_bytes()


def _bins() -> list[bytes]:
    images = [_jpeg(), _jpeg()]
    arrays = [np.frombuffer(image, np.uint8) for image in images]
    return [pickle.dumps((content, [True]), protocol) for content in (images, arrays) for protocol in (0, 2, 4)]


_TENSORS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(3)}
_FIVE = b"107 107 147 111 124 143 103 157 139 161"
_FACES = b"a/1.jpg " + _FIVE + b" 0.9\n2.jpg " + _FIVE + b" 0.5\n"

TARGETS: dict[str, Target] = {
    "records": Target(_file(_read_records), lambda: _set_files("train.rec")),
    "index": Target(_file(read_index), lambda: [*_set_files("train.idx"), b"0\t0\r\n1\t99\r\n"]),
    "property": Target(_file(read_property), lambda: [b"85742,112,112\n", b"10,112,112\n99\nshuffled\n"]),
    "training set": Target(_files(_read_set, "train.rec", "train.idx", "property"),
                           lambda: [SEPARATOR.join(_set_files("train.rec", "train.idx", "property"))]),
    "sets for the doctor": Target(_files(_diagnose, "train.rec", "train.idx", "property"), lambda: [
        SEPARATOR.join([*_set_files("train.rec", "train.idx"), lines])
        for lines in (b"2,24,24\n", b"2,24,24\n5\nshuffled\n")]),
    "archives": Target(_file(_unpack), _archives),
    "histories": Target(_file(read_history), lambda: [
        b'{"kind": "train", "step": 1, "loss": 2.5, "lr": 0.1, "images_per_second": 9}\n']),
    "starts of runs": Target(_file(read_starts), lambda: [b'{"starts": [{"time": "2026", "config": {"lr": 0.1}}]}']),
    "images": Target(lambda data: decode_rgb(data, MOST_PIXELS), lambda: [
        _jpeg(), _jpeg(cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        *(cv2.imencode(ending, _IMAGE)[1].tobytes() for ending in (".png", ".webp", ".bmp", ".ppm", ".tiff"))],
                     ValueError),
    "verification sets": Target(_file(lambda path: load_bin(path, (24, 24))), _bins),
    "PyTorch files": Target(_file(read_tensors), lambda: [_written(lambda path: write_tensors(path, _TENSORS))]),
    "params": Target(_file(lambda path: [np.asarray(array) for array in read_arrays(path).arrays]), lambda: [
        _written(lambda path: write_arrays(path, {"arg:w": [np.ones((2, 3), np.float32)], "aux:m": [np.zeros(1)]}))]),
    "symbols": Target(_file(read_symbol), lambda: [json.dumps(_graph()).encode()]),
    "arrays in .npz": Target(_read_arrays, lambda: [_array(np.eye(2, dtype=np.float32)), _array(np.array(["a"]))],
                             ValueError),
    "lists of folders": Target(_file(_read_listing), lambda: [_listing()], ValueError),
    "embeddings": Target(_file(load_gallery), lambda: [_gallery()]),
    "embeddings of a set": Target(_files(_read_rows, "embeddings.npy", "keys.npy", "embeddings.json"), lambda: [
        SEPARATOR.join([_array(np.eye(2, dtype=np.float16)), _array(np.array([1, 2])), b'{"digest": "1"}'])]),
    "pair lists": Target(_file(read_pairs), lambda: [
        b"a.jpg b.jpg 1\nc.jpg\td.jpg\t0\n", b"2\t1\nA\t1\t2\nA\t1\tB\t1\n"]),
    "image lists": Target(_file(_read_list), lambda: [
        b"a/1.jpg\tann\nb/2.jpg\tbob\n", b"1\ta.jpg\t0\n1\tb.jpg\t1\n", b"a/../b.jpg 9\n/x/c.jpg 10\n"]),
    "landmarks": Target(_file(read_landmarks), lambda: [
        _FACES, b"1\ta.jpg\t0\t1\t1\t9\t9\t" + _FIVE.replace(b" ", b"\t") + b"\n"]),
    "landmarks of sets": Target(_file(lambda path: read_landmarks_of(path, "x")), lambda: [
        _written(lambda path: write_landmarks_of(path, "x", np.ones((3, 5, 2))))]),
    "IJB meta": Target(_files(read_faces, "x_name_5pts_score.txt", "x_face_tid_mid.txt"),
                       lambda: [_FACES + SEPARATOR + b"a/1.jpg 1 1\n2.jpg 1 2\n"]),
    "IJB pairs": Target(_files(read_ijb_pairs, "x_template_pair_label.txt"), lambda: [b"1 2 0\n1 1 1\n"]),
    "IJB subjects": Target(_file(read_subjects), lambda: [b"TEMPLATE_ID,SUBJECT_ID\n1,2,a.jpg\n3,4,b.jpg\n"]),
    "MegaFace features": Target(_file(read_feature), lambda: [
        struct.pack("<4i", 3, 1, 4, 5) + np.ones(3, "<f4").tobytes()]),
    "MegaFace lists": Target(_file(lambda path: (list_images(path.parent, "x", path), read_noises(path))),
                             lambda: [b'{"path": ["a/b.jpg", "c.jpg"]}', b"a/b.jpg\n# note\n1\tc.jpg\n"]),
    "flags": Target(_read_flags, lambda: [b"--network\0r50\0--lr\x000.1", b"--lr-steps=10e,18e\0--devices\0cpu:2",
                                          b"--lr-factor\0stage1*=0.1,pre_fc1*=1\0--resume\0auto\0--val-targets\0lfw"]),
    "configurations": Target(_read_config, lambda: [
        json.dumps(dataclasses.asdict(Config(config_file="", num_layers=50))).encode()]),
}
