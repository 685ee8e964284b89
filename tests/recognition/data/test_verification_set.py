# SPDX-License-Identifier: Apache-2.0
"""Verification sets as they are found in the wild, and pickles that must not get anything done."""
from __future__ import annotations

import os
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from recognition.config import memory
from recognition.data.images.image import decode_rgb
from recognition.data.verification_set import load_bin, read_bin, save_bin
from recognition.errors import UserError


@pytest.fixture
def encoded(make_jpeg: Callable[..., bytes]) -> list[bytes]:
    return [make_jpeg(n) for n in range(6)]


def dump(path: Path, content: Any, protocol: int = 3) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def assert_holds(path: Path, encoded: list[bytes], issame: list[bool]) -> None:
    found = load_bin(path)
    assert found.images.dtype == np.uint8 and found.issame.dtype == bool
    assert found.issame.tolist() == issame
    np.testing.assert_array_equal(found.images, [decode_rgb(image).transpose(2, 0, 1) for image in encoded])


@pytest.mark.parametrize("name, issame", [
    ("lfw_sample", [True] * 10), ("python2_pickle", [True, False, True, False, True])])
def test_wild(shared: Path, mx: ModuleType, name: str, issame: list[bool]) -> None:
    """The recipes' way to load it: pickle.load and MXNet's decoder, within one level."""
    path = shared / "data" / "wild" / f"{name}.bin"
    found = load_bin(path)
    assert (found.name, found.issame.tolist()) == (name, issame)
    theirs = pickle.loads(path.read_bytes(), encoding="bytes")[0]
    assert len(found.images) == len(theirs) == 2 * len(issame)
    for ours, image in zip(found.images, theirs):
        expected = mx.image.imdecode(image if isinstance(image, bytes) else image.tobytes()).asnumpy()
        assert abs(ours.astype(int) - expected.transpose(2, 0, 1)).max() <= 1


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("form", [
    "bytes", "arrays", "columns", "numpy booleans", "boolean array", "tuples", "bytearrays"])
def test_every_form_and_protocol(tmp_path: Path, encoded: list[bytes], form: str, protocol: int) -> None:
    issame: Any = [True, False, True]
    images: Any = encoded
    if form == "arrays":
        images = [np.frombuffer(image, np.uint8) for image in encoded]
    if form == "columns":
        images = [np.frombuffer(image, np.uint8)[:, None] for image in encoded]
    if form == "numpy booleans":
        issame = [np.bool_(same) for same in issame]
    if form == "boolean array":
        issame = np.array(issame)
    if form == "tuples":
        images, issame = tuple(encoded), (1, 0, 1)
    if form == "bytearrays":
        images = [bytearray(image) for image in encoded]
    assert_holds(dump(tmp_path / "a.bin", (images, issame), protocol), encoded, [True, False, True])


def python_2(images: list[bytes], issame: list[str], arrays: bool = False) -> bytes:
    """What pickle.dump((images, issame), file) of Python 2 writes: protocol 0, escapes, numbers with an L."""
    def text(data: bytes) -> str:
        return "".join(chr(c) if 32 <= c < 127 and chr(c) not in "'\\" else f"\\x{c:02x}" for c in data)

    start = "cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    code = "((lp0\n"
    for number, image in enumerate(images, 1):
        code += (f"{start}(I1\n(L{len(image)}L\ntcnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\n"
                 f"tbI00\nS'{text(image)}'\ntba" if arrays else f"S'{text(image)}'\np{number}\na")
    return (code + "(lp99\n" + "".join(f"{same}a" for same in issame) + "tp100\n.").encode()


@pytest.mark.parametrize("arrays", [False, True])
@pytest.mark.parametrize("issame", [["I01\n", "I00\n", "I01\n"], ["I1\n", "I0\n", "I2\n"], ["L1L\n", "L0L\n", "L-1L\n"],
                                    ["F1\n", "F0\n", "F1.0\n"]])
def test_the_default_of_python_2(tmp_path: Path, encoded: list[bytes], issame: list[str], arrays: bool) -> None:
    (tmp_path / "a.bin").write_bytes(python_2(encoded, issame, arrays))
    assert_holds(tmp_path / "a.bin", encoded, [True, False, True])
    theirs = pickle.loads((tmp_path / "a.bin").read_bytes(), encoding="bytes")
    assert [bytes(image) for image in theirs[0]] == encoded
    assert list(map(bool, theirs[1])) == [True, False, True]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("form", [
    "int64", "int32 big-endian", "float", "uint8", "column", "other whole numbers", "numbers of numpy", "object array",
    "images as an object array", "images as texts of one length", "all as a list", "all as an array"])
def test_what_says_yes_and_no(tmp_path: Path, encoded: list[bytes], form: str, protocol: int) -> None:
    """Truth values and whole numbers of any kind, of which all but 0 say yes, in lists, tuples and arrays."""
    issame: Any = {
        "int64": np.array([1, 0, 1]), "int32 big-endian": np.array([1, 0, 256], ">i4"), "float": [1.0, 0.0, 1.0],
        "uint8": np.array([1, 0, 1], np.uint8), "column": np.array([[1], [0], [1]]), "other whole numbers": [2, 0, -1],
        "numbers of numpy": [np.int64(1), np.int8(0), np.float32(1)],
        "object array": np.array([True, 0, 7], object)}.get(form, [True, False, True])
    content: Any = (encoded, issame)
    if form == "images as an object array":
        content = (np.array(encoded, object), issame)
    if form == "images as texts of one length":
        content = (np.array(encoded), issame)
    if form == "all as a list":
        content = [tuple(encoded), tuple(issame)]
    if form == "all as an array":
        content = np.array([encoded, issame], object)
    assert_holds(dump(tmp_path / "a.bin", content, protocol), encoded, [True, False, True])


def test_a_number_of_many_digits_in_text(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"L" + b"9" * 100_000 + b"L\n.")
    with pytest.raises(UserError, match="it has a number of many digits"):
        load_bin(tmp_path / "a.bin")


def test_images_that_pairs_share(tmp_path: Path, encoded: list[bytes]) -> None:
    images = [encoded[0], encoded[1]] * 50
    assert_holds(dump(tmp_path / "a.bin", (images, [False] * 50), 2), images, [False] * 50)


def test_an_image_that_is_named_too_often(tmp_path: Path, encoded: list[bytes]) -> None:
    """A pickle names an object again with two bytes."""
    path = dump(tmp_path / "a.bin", ([encoded[0]] * 2000, [True] * 1000), 4)
    with pytest.raises(UserError, match=r"a\.bin: \d+ bytes of images in a file of \d+, expected at most 100 times"):
        load_bin(path)
    with pytest.raises(UserError, match="expected at most 100 times its size"):
        read_bin(path)


def test_too_many_pixels_together(tmp_path: Path, encoded: list[bytes]) -> None:
    large = cv2.imencode(".png", np.zeros((4096, 4096), np.uint8))[1].tobytes()
    path = dump(tmp_path / "a.bin", ([bytes(bytearray(large)) for _ in range(10)] * 60, [True] * 300), 4)
    with pytest.raises(UserError, match=r"a\.bin: its images have 10,066,329,600 pixels together, expected"):
        load_bin(path)


def test_bytes_made_again_and_again(tmp_path: Path) -> None:
    """One bytearray of the file, of which a pickle has bytes made fifty times."""
    array = b"\x96" + struct.pack("<Q", 10000) + b"a" * 10000
    code = b"\x80\5" + array + b"\x94" + b"cbuiltins\nbytes\n\x94" + b"h\1h\0\x85R" * 50 + b"."
    (tmp_path / "a.bin").write_bytes(code)
    with pytest.raises(UserError, match="it unfolds to more than its own size"):
        load_bin(tmp_path / "a.bin")


def test_arrays_that_pairs_share_are_copied_once(tmp_path: Path, encoded: list[bytes]) -> None:
    shared = bytearray(encoded[0])
    images, _ = read_bin(dump(tmp_path / "a.bin", ([shared, shared] * 3, [True] * 3), 5))
    assert images == [encoded[0]] * 6 and len({id(image) for image in images}) == 1


def test_more_images_than_memory_holds(tmp_path: Path, encoded: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    path = dump(tmp_path / "a.bin", (encoded, [True] * 3), 4)
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  4096 kB\nMemAvailable:    200 kB\n")
    with pytest.raises(UserError, match=r"a\.bin: 6 images of 112 x 112 take 0 MB, expected at most the 0 MB of"):
        load_bin(path)
    (tmp_path / "proc/meminfo").write_text("MemAvailable:    400 kB\n")
    assert len(load_bin(path).images) == 6


def test_save(tmp_path: Path, encoded: list[bytes]) -> None:
    path = tmp_path / "lfw.bin"
    save_bin(path, encoded, [True, False, np.bool_(True)])  # type: ignore[list-item]
    assert pickle.loads(path.read_bytes()) == (encoded, [True, False, True])
    assert_holds(path, encoded, [True, False, True])
    assert [file.name for file in tmp_path.iterdir()] == ["lfw.bin"]
    with pytest.raises(ValueError, match="6 images for 2 pairs"):
        save_bin(path, encoded, [True, False])


def test_other_sizes(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> None:
    path = dump(tmp_path / "a.bin", ([make_jpeg(0, (128, 128)), make_jpeg(1)], [True]))
    assert load_bin(path).images.shape == (2, 3, 112, 112)
    assert load_bin(path, (96, 96)).images.shape == (2, 3, 96, 96)
    with pytest.raises(UserError, match=r"a\.bin: image 0: the image is 128 x 128, expected 112 x 96"):
        load_bin(path, (112, 96))


@pytest.mark.parametrize("content, message", [
    (5, "found int; expected a pickle of"), ([], "found list of 0; expected"),
    ((1, 2, 3), "found tuple of 3; expected"), ((b"ab", [True]), "found tuple of 2; expected"),
    (([b"a", b"b"], True), "issame is bool, expected a list of booleans"),
    (([b"a", b"b"], [0.5]), "issame is list of 1, expected a list of booleans"),
    (([b"a", b"b"], [None]), "expected a list of booleans"),
    (([b"a", b"b"], [[]]), "expected a list of booleans"),
    (([b"a", b"b"], [True, True]), "2 images for 2 pairs, expected two a pair"),
    (([], []), "0 images for 0 pairs"),
    (([b"a", b"b"], [True]), "image 0: its 1 bytes are not an image"),
    (([b"", b"b"], [True]), "image 0: its 0 bytes are not an image"),
    ((["text", b"b"], [True]), "image 0: found str of 4, expected bytes"),
    (([None, b"b"], [True]), "image 0: found NoneType, expected bytes"),
    (([np.zeros(4), b"b"], [True]), r"image 0: found numpy array of shape \(4,\), expected bytes"),
    (([np.array([object()]), b"b"], [True]), "it asks for|it has"),
    (([np.array([True]), b"b"], [True]), r"image 0: found numpy array of shape \(1,\), expected bytes"),
    (({}, [True]), "it has the opcode EMPTY_DICT"), (([1.5, 2.5], [True]), "image 0: found float, expected bytes"),
    (([2 ** 9999], [True]), "it has the opcode LONG4")])
def test_other_content(tmp_path: Path, content: object, message: str) -> None:
    path = dump(tmp_path / "a.bin", content)
    with pytest.raises(UserError, match=rf"a\.bin: .*{message}|a\.bin: {message}"):
        load_bin(path)


def test_broken_image_has_its_number(tmp_path: Path, encoded: list[bytes]) -> None:
    encoded[4] = b"\xff\xd8" + b"junk" * 20
    with pytest.raises(UserError, match=r"a\.bin: image 4: its 82 bytes are not an image"):
        load_bin(dump(tmp_path / "a.bin", (encoded, [True] * 3)))


class Runs:
    """Pickles as a call of a function that leaves a trace."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_does_not_run(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "trace"
    for function, arguments in ((os.mkdir, (str(trace),)), (exec, (f"open({str(trace)!r}, 'w')",)),
                                (eval, ("1",)), (getattr, (1, "real")), (np.load, ("x",)), (bytes, (10,))):
        path = dump(tmp_path / "a.bin", ([Runs(function, *arguments)], [True]), protocol)
        with pytest.raises(UserError, match=r"a\.bin: it (asks for .* which was not run|makes bytes from)"):
            load_bin(path)
    assert not trace.exists()


GLOBAL_DTYPE = b"cnumpy\ndtype\n"
U1 = GLOBAL_DTYPE + b"(S'u1'\ntR"


@pytest.mark.parametrize("code, message", [
    (GLOBAL_DTYPE + b"(S'x'\nI1\ntb.", "sets the state of a function"),
    (GLOBAL_DTYPE + b"(N(S'x'\nI1\nttb.", "sets the state of a function"),
    (b"cnumpy\nndarray\n(I9\ntR.", "calls numpy.ndarray"),
    (b"cnumpy\nndarray\n)\x81.", "opcode NEWOBJ"),
    (b"\x80\x02\x82\x01.", "opcode EXT1"), (b"Pname\n.", "opcode PERSID"), (b"\x80\x05\x97.", "opcode NEXT_BUFFER"),
    (b"(ios\ngetcwd\n.", "opcode INST"), (b"(cos\ngetcwd\no.", "opcode OBJ"),
    (b"Nr\xff\xff\xff\x7f.", "stores memo 2147483647 after 1 opcodes"),
    (b"Np99999999999999\n.", "stores memo"), (b"Np-1\n.", "."),
    (b"\x8e" + struct.pack("<Q", 1 << 60) + b"x.", "."), (b"T" + struct.pack("<i", -1) + b".", "."),
    (b"cnumpy.core.multiarray\n_reconstruct\n)R(I1\n(S'ab'\nL" + b"9" * 60 + b"L\nt" + U1 + b"I00\nS'ab'\ntb.", "."),
    (b"cnumpy.core.multiarray\n_reconstruct\n)R(I1\n(S'ab'\nI1000000000\nt" + U1 + b"I00\nS'ab'\ntb.", "shape"),
    (b"cnumpy.core.multiarray\n_reconstruct\n)R(I1\n(I3\nt" + U1 + b"I00\nS'ab'\ntb.", "shape"),
    (b"c_codecs\nencode\n(Vx\nS'rot13'\ntR.", "text in b'rot13'"),
    (b"", "."), (b".", "."), (b"(", "."), (b"not a pickle", "."), (b"\x80\xff.", "."), (b"\xff\xd8\xff", ".")])
def test_hostile_and_broken(tmp_path: Path, code: bytes, message: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(code)
    with pytest.raises(UserError, match=rf"a\.bin: .*{message}.*; expected a pickle of"):
        load_bin(path)


def test_text_encoded_again_and_again(tmp_path: Path) -> None:
    text = b"X" + struct.pack("<I", 10000) + b"a" * 10000
    code = b"\x80\2c_codecs\nencode\nq\0" + text + b"q\1X\6\0\0\0latin1q\2" + b"h\0h\1h\2\x86R" * 50 + b"."
    (tmp_path / "a.bin").write_bytes(code)
    with pytest.raises(UserError, match="it unfolds to more than its own size"):
        load_bin(tmp_path / "a.bin")


def test_damage_raises_user_errors_only(tmp_path: Path, shared: Path) -> None:
    chance = random.Random(2)
    for name in ("lfw_sample", "python2_pickle"):
        content = (shared / "data" / "wild" / f"{name}.bin").read_bytes()[:20000]
        for trial in range(150):
            damaged = bytearray(content[:chance.randrange(1, len(content))] if trial % 3 == 0 else content)
            for _ in range(chance.randint(1, 20)):
                damaged[chance.randrange(len(damaged)) if trial % 2 else chance.randrange(min(200, len(damaged)))] ^= \
                    1 << chance.randrange(8)
            (tmp_path / "a.bin").write_bytes(damaged)
            with pytest.raises(UserError):
                load_bin(tmp_path / "a.bin")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.bin: cannot be read: No such file"):
        load_bin(tmp_path / "no.bin")


def test_of_several_broken_images_the_first_is_named(tmp_path: Path, encoded: list[bytes]) -> None:
    images = [encoded[i % len(encoded)] for i in range(400)]  # several threads decode them
    images[130] = images[131] = images[399] = b"x"
    with pytest.raises(UserError, match=r"image 130: its 1 bytes are not an image"):
        load_bin(dump(tmp_path / "x.bin", (images, [True] * 200)))
