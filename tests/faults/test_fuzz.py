# SPDX-License-Identifier: Apache-2.0
"""The short form of faults.fuzz: broken inputs of every parser, made by Hypothesis; and faults that were found once."""
from __future__ import annotations

import contextlib
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.embedding.gallery import load_gallery
from faults.fuzz_targets import SEPARATOR, TARGETS
from recognition.data.records.recordio import MAGIC
from recognition.errors import UserError
from recognition.io.npz import read_npz

INTERESTING = [b"\0", b"\xff" * 4, b"\xff\xff\xff\x7f", b"-1", b"nan", b"1e999", b"9" * 30, b"9" * 5000, b"\n", b"\r",
               b"\x1c", b"..", b"/", b"../../x", b"(" * 300, b"[" * 20_000, b"\xed\xb3\x80", "²".encode(), "١".encode(),
               b"\0" * 64, b""]


@st.composite
def broken(draw: st.DrawFn, name: str) -> bytes:
    """A good input with some bytes replaced, inserted, left out or repeated; or any bytes at all."""
    data = bytearray(draw(st.sampled_from(TARGETS[name].seeds())) if draw(st.integers(0, 9)) else draw(st.binary()))
    for _ in range(draw(st.integers(1, 5))):
        at, length = draw(st.integers(0, len(data))), draw(st.sampled_from((0, 1, 2, 4, 8, 40, 4000)))
        piece = draw(st.one_of(st.sampled_from(INTERESTING), st.binary(max_size=8),
                               st.just(bytes(data[at:at + length]) * 2)))
        data[at:at + length] = piece
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_good_inputs_are_no_bad_ones(name: str) -> None:
    for seed in TARGETS[name].seeds():
        TARGETS[name].run(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_broken_inputs_are_refused_in_the_parsers_own_way(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=40, deadline=None, database=None)
    @given(broken(name))
    def run(data: bytes) -> None:
        with contextlib.suppress(target.refusal):
            target.run(data)

    run()


@pytest.mark.parametrize("name, data", [
    ("property", b"1\x1f,112,112"),
    ("IJB subjects", b"99999999999999999999,2\n"),
    ("sets for the doctor", SEPARATOR.join((b"", b"", b"2,24,24\nshuffled\n" + b"9" * 5000))),
    ("sets for the doctor", SEPARATOR.join((struct.pack("<2I4s", MAGIC, 3, b"abc"), b"", b"2,24,24\n"))),
    ("pair lists", b"10 300\na " + b"9" * 5000 + b" 1\n"), ("image lists", b"a.jpg " + b"9" * 5000 + b"\nb.jpg 1\n"),
    ("image lists", b"../../x.jpg 1\n"), ("MegaFace lists", b'{"path": ' + b"[" * 200_000),
    ("histories", b"[" * 100_000 + b"\n"), ("starts of runs", b"[" * 100_000),
])
def test_faults_that_fuzzing_found(name: str, data: bytes) -> None:
    with contextlib.suppress(TARGETS[name].refusal):
        TARGETS[name].run(data)


def npz(path: Path, shape: str, size: int, compression: int = zipfile.ZIP_STORED) -> Path:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (3,)})
    content = head.getvalue().replace(b"(3,), }" + b" " * len(shape), shape.encode() + b", }" + b" " * 4)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("embeddings.npy", content + bytes(size))
    return path


def test_npz_bombs(tmp_path: Path) -> None:
    assert read_npz(npz(tmp_path / "good.npz", "(3,)", 12))["embeddings"].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"'embeddings\.npy' is compressed"):
        read_npz(npz(tmp_path / "deflated.npz", "(3,)", 1 << 20, zipfile.ZIP_DEFLATED))
    with pytest.raises(ValueError, match=r"an array of float32 \(4000000000000,\) with 12 bytes"):
        read_npz(npz(tmp_path / "huge.npz", "(4000000000000,)", 12))


def test_headers_that_are_no_shapes(tmp_path: Path) -> None:
    path = npz(tmp_path / "true.npz", "(True,)", 4)
    with pytest.raises(ValueError, match=r"an array of shape \(True,\)"):
        read_npz(path)
    with zipfile.ZipFile(path) as archive:
        content = archive.read("embeddings.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("embeddings.npy", content[:10] + b"\xff\xfe{".ljust(len(content) - 14) + bytes(4))
    with pytest.raises(ValueError, match="a header of an array that cannot be read"):
        read_npz(path)


def test_members_that_lie_on_each_other(tmp_path: Path) -> None:
    """A thousand entries of one member's bytes: 20 MB out of 100 KB, were they read."""
    path = npz(tmp_path / "one.npz", "(3,)", 20_000)
    with zipfile.ZipFile(path, "a") as archive:
        for n in range(1000):
            entry = zipfile.ZipInfo(f"data/{n}")
            first = archive.infolist()[0]
            for key in ("compress_size", "file_size", "CRC", "header_offset"):
                setattr(entry, key, getattr(first, key))
            archive.filelist.append(entry)
            archive.NameToInfo[entry.filename] = entry
        archive._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"unfolds to more than its own size|cannot be read|bytes"):
        read_npz(path)


def test_gallery_files_are_refused_with_their_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"huge\.npz: not a file of embeddings: an array of float32"):
        load_gallery(npz(tmp_path / "huge.npz", "(4000000000000,)", 12))
