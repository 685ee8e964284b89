# SPDX-License-Identifier: Apache-2.0
"""Against MXNet itself: what it writes is read, and what is written it reads, bit for bit."""
from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from recognition.engines.mxnet.imports import mx
from recognition.errors import UserError
from recognition.io.params import read_arrays, write_arrays


def test_reads_what_mxnet_writes(tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    arrays = {f"arg:{dtype}": mx.nd.array(random.rand(3, 4) * 9, dtype=dtype)
              for dtype in ("float32", "float64", "float16", "uint8", "int32", "int8", "int64")}
    mx.nd.save(str(tmp_path / "named"), arrays)
    file = read_arrays(tmp_path / "named")
    assert file.names == list(arrays)
    for name, array in zip(file.names, file.arrays):
        assert array.dtype == arrays[name].dtype and np.array_equal(array, arrays[name].asnumpy())
    mx.nd.save(str(tmp_path / "list"), list(arrays.values()))
    file = read_arrays(tmp_path / "list")
    assert file.names == [] and [array.shape for array in file.arrays] == [(3, 4)] * 7


def test_reads_arrays_of_numpy_shapes(tmp_path: Path) -> None:
    with mx.util.np_shape(True):
        mx.nd.save(str(tmp_path / "file"), {"a": mx.np.array(3.0).as_nd_ndarray(),
                                            "b": mx.np.zeros((0, 3)).as_nd_ndarray()})
    scalar, empty = map(np.asarray, read_arrays(tmp_path / "file").arrays)
    assert scalar == 3 and scalar.shape == () and empty.shape == (0, 3)


@pytest.mark.parametrize("head", [struct.pack("<IIqq", 0xF993FAC8, 2, 2, 3), struct.pack("<III", 2, 2, 3)])
def test_reads_files_of_old_versions_as_mxnet_does(tmp_path: Path, head: bytes) -> None:
    values = np.arange(6, dtype="<f4")
    (tmp_path / "file").write_bytes(struct.pack("<QQQ", 0x112, 0, 1) + head + struct.pack("<iii", 1, 0, 0)
                                    + values.tobytes() + struct.pack("<QQ", 1, 1) + b"w")
    theirs = mx.nd.load(str(tmp_path / "file"))["w"].asnumpy()
    assert np.array_equal(read_arrays(tmp_path / "file").arrays[0], theirs)


def test_mxnet_reads_what_is_written_in_pieces(tmp_path: Path) -> None:
    whole = np.random.RandomState(0).rand(7, 5).astype(np.float32)
    write_arrays(tmp_path / "ours", {"arg:w": [whole[:2], whole[2:2], whole[2:]], "arg:b": [np.ones(3, np.float16)]})
    mx.nd.save(str(tmp_path / "theirs"), {"arg:w": mx.nd.array(whole), "arg:b": mx.nd.ones(3)})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    write_arrays(tmp_path / "ours", [[whole]])
    mx.nd.save(str(tmp_path / "theirs"), mx.nd.array(whole))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_file_that_is_cut_short_anywhere_is_refused_in_one_line(tmp_path: Path) -> None:
    write_arrays(tmp_path / "file", {"arg:w": [np.ones((2, 3), np.float32)], "aux:m": [np.ones(2, np.float32)]})
    content = (tmp_path / "file").read_bytes()
    for length in range(len(content)):
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(UserError, match=r"cut: not a file of MXNet's arrays that can be read: .+$"):
            read_arrays(tmp_path / "cut")


def test_bad_files_are_refused(tmp_path: Path) -> None:
    begin = struct.pack("<QQQ", 0x112, 0, 1)
    array = struct.pack("<Ii", 0xF993FAC9, 0)
    for content, words in [(b"not arrays at all, but a text", "does not begin"),
                           (struct.pack("<QQQ", 0x112, 0, 2**60), "it has 1152921504606846976 arrays"),
                           (begin + struct.pack("<Ii", 0xF993FAC9, 1), "sparse"),
                           (begin + array + struct.pack("<I", 999), "999 dimensions"),
                           (begin + array + struct.pack("<Iqq", 2, -1, 4) + bytes(12), "the shape"),
                           (begin + array + struct.pack("<Iqq", 2, 2**40, 2**40) + bytes(12), "more are expected"),
                           (begin + array + struct.pack("<Iqiii", 1, 1, 1, 0, 12) + bytes(99), "type 12")]:
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(UserError, match=words):
            read_arrays(tmp_path / "bad")
    mx.nd.save(str(tmp_path / "sparse"), mx.nd.zeros((2, 2)).tostype("row_sparse"))
    with pytest.raises(UserError, match="sparse"):
        read_arrays(tmp_path / "sparse")
    with pytest.raises(UserError, match="No such file"):
        read_arrays(tmp_path / "none")


def test_a_file_that_is_cut_short_while_it_is_used(tmp_path: Path) -> None:
    """Mapped, it would kill the process with SIGBUS."""
    path = tmp_path / "a.params"
    write_arrays(path, {"arg:w": [np.arange(100_000, dtype=np.float32).reshape(1000, 100)]})
    (array,) = read_arrays(path).arrays
    os.truncate(path, 40_000)
    assert np.asarray(array[50:60])[0, 0] == 5000
    for use in (np.asarray, lambda array: np.concatenate([array[900:]]), lambda array: array[np.array([0, 999])]):
        with pytest.raises(UserError, match=r"a\.params: it was cut short while it was used: it ends at byte 40000, "):
            use(array)


def test_a_shape_that_numpy_has_no_arrays_of(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(struct.pack("<QQQIiI3qiii", 0x112, 0, 1, 0xF993FAC9, 0, 3, 2**40, 2**40, 0, 1, 0, 0)
                                   + struct.pack("<Q", 0))
    with pytest.raises(UserError, match="the shape"):
        read_arrays(tmp_path / "bad")


def test_a_name_twice_more_names_than_arrays_and_very_many_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.params"
    write_arrays(path, {"arg:a": [np.ones((2, 3), np.float32)], "arg:b": [np.ones((2, 3), np.float32)]})
    (tmp_path / "a.params.sha256").unlink()
    content = path.read_bytes()
    for changed, message in ((content.replace(b"arg:b", b"arg:a"), "two arrays have the name 'arg:a'"),
                             (content[:16] + b"\1\0\2" + content[19:], "it has 131073 arrays, expected at most"),
                             (content.replace(b"\2\0\0\0\0\0\0\0\5", b"\1\0\0\0\0\0\0\0\5"), "2 arrays and 1 names")):
        path.write_bytes(changed)
        with pytest.raises(UserError, match=message):
            read_arrays(path)
