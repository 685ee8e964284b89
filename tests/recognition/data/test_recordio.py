# SPDX-License-Identifier: Apache-2.0
"""Records, both ways against MXNet's own reader and writer, and files that are broken."""
from __future__ import annotations

import random
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recognition.data.records import record_index, recordio
from recognition.data.records.recordio import MAGIC, RecordReader, RecordWriter, pack_record, read_index, unpack_record
from recognition.errors import UserError

WORD = struct.pack("<I", MAGIC)
PAYLOADS = [
    b"", b"a", b"abcd", WORD, WORD * 3, b"abcd" + WORD, b"abcd" + WORD + b"xyz", b"ab" + WORD + b"cd",
    WORD + b"abcd" + WORD + WORD + b"x", b"x" * 20000, b"x" * 16376, b"x" * 16380 + WORD + b"y" * 40001,
    b"\0" * 3 + WORD, WORD[:3], bytes(range(256)) * 5000,
]


def write(folder: Path, payloads: list[bytes]) -> tuple[Path, Path]:
    rec, idx = folder / "a.rec", folder / "a.idx"
    with RecordWriter(rec, idx) as writer:
        for key, payload in enumerate(payloads):
            writer.write(key, payload)
    return rec, idx


def test_same_bytes_as_mxnet(tmp_path: Path, mx: ModuleType) -> None:
    rec, idx = write(tmp_path, PAYLOADS)
    theirs = mx.recordio.MXIndexedRecordIO(str(tmp_path / "b.idx"), str(tmp_path / "b.rec"), "w")
    for key, payload in enumerate(PAYLOADS):
        theirs.write_idx(key, payload)
    theirs.close()
    assert rec.read_bytes() == (tmp_path / "b.rec").read_bytes()
    assert idx.read_bytes() == (tmp_path / "b.idx").read_bytes()


def test_mxnet_reads_ours(tmp_path: Path, mx: ModuleType) -> None:
    rec, idx = write(tmp_path, PAYLOADS)
    theirs = mx.recordio.MXIndexedRecordIO(str(idx), str(rec), "r")
    assert [theirs.read_idx(key) for key in range(len(PAYLOADS))] == PAYLOADS


@pytest.mark.parametrize("label", [0, 7.0, 85741, (1.0,), (3, 4), (5, 0.5, -2.5)])
def test_pack_as_mxnet(mx: ModuleType, label: float, monkeypatch: pytest.MonkeyPatch) -> None:
    class Labels(np.ndarray):
        tostring = np.ndarray.tobytes  # the name that MXNet's pack calls, gone from arrays with NumPy 2.3

    monkeypatch.setattr(mx.recordio, "np", SimpleNamespace(
        float32=np.float32, asarray=lambda label, dtype: np.asarray(label, dtype).view(Labels)))
    ours = pack_record(label, b"body", 2 ** 40)
    assert ours == mx.recordio.pack(mx.recordio.IRHeader(0, label, 2 ** 40, 0), b"body")
    record = unpack_record(ours)
    assert record.flag == (0 if np.isscalar(label) else len(label))  # type: ignore[arg-type]
    np.testing.assert_array_equal(record.label, np.atleast_1d(np.float32(label)))
    assert (record.id, record.body) == (2 ** 40, b"body")


def test_read_scan_offsets_peek(tmp_path: Path) -> None:
    rec, idx = write(tmp_path, PAYLOADS)
    keys, offsets = read_index(idx)
    with RecordReader(rec) as reader:
        assert [reader.read(offset) for offset in offsets] == PAYLOADS
        assert list(reader.scan()) == list(zip(offsets, PAYLOADS))
        np.testing.assert_array_equal(reader.offsets(), offsets)
        assert [reader.peek(offset, 6) for offset in offsets] == [payload[:6] for payload in PAYLOADS]
    np.testing.assert_array_equal(keys, np.arange(len(PAYLOADS)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from([WORD, b"a", b"bcd", b"\0" * 4]), max_size=12).map(b"".join), max_size=6))
def test_any_payloads(tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes]) -> None:
    rec, _ = write(tmp_path_factory.mktemp("rec"), payloads)
    with RecordReader(rec) as reader:
        assert [payload for _, payload in reader.scan()] == payloads


def test_scan_crosses_its_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordio, "_SCAN_READ_BYTES", 20000)
    payloads = [bytes([n % 251]) * (37 * n % 9000) for n in range(60)] + [b"z" * 50000, b"end"]
    rec, _ = write(tmp_path, payloads)
    with RecordReader(rec) as reader:
        assert [payload for _, payload in reader.scan()] == payloads


def test_many_threads_one_reader(tmp_path: Path) -> None:
    rec, idx = write(tmp_path, PAYLOADS * 5)
    offsets = read_index(idx)[1].tolist() * 4
    with RecordReader(rec) as reader, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(reader.read, offsets)) == PAYLOADS * 20


def corrupt(rec: Path, at: int, data: bytes) -> None:
    content = bytearray(rec.read_bytes())
    content[at:at + len(data)] = data
    rec.write_bytes(content)


@pytest.mark.parametrize("at, data, message", [
    (12, b"\1\2\3\4", r"a\.rec: offset 12: found 0x04030201, expected the record magic 0xced7230a"),
    (16, struct.pack("<I", 1 << 28), "a part of 268435456 bytes, the file ends at 32"),
    (16, struct.pack("<I", 2 << 29), "part of kind 2, expected 0 or 1"),
    (16, struct.pack("<I", 1 << 29 | 4), "offset 24: found 0x"),  # a first part, and no part after it
])
def test_broken_framing(tmp_path: Path, at: int, data: bytes, message: str) -> None:
    rec, _ = write(tmp_path, [b"abcd", b"0123456789ab"])  # the second record is at 12, the file ends at 32
    corrupt(rec, at, data)
    with RecordReader(rec) as reader:
        for read in (lambda: reader.read(12), lambda: reader.peek(12, 8), lambda: list(reader.scan()), reader.offsets):
            with pytest.raises(UserError, match=message):
                read()


def test_whole_part_inside_a_split_record(tmp_path: Path) -> None:
    rec, _ = write(tmp_path, [b"abcd" + WORD + b"efgh"])
    corrupt(rec, 16, struct.pack("<I", 4))
    with RecordReader(rec) as reader, pytest.raises(UserError, match="offset 12: part of kind 0, expected 2 or 3"):
        reader.read(0)


@pytest.mark.parametrize("offset", [-4, 32, 1 << 40])
def test_offset_outside(tmp_path: Path, offset: int) -> None:
    rec, _ = write(tmp_path, [b"abcd", b"0123456789ab"])
    with RecordReader(rec) as reader:
        for read in (reader.read, lambda at: reader.peek(at, 4)):
            with pytest.raises(UserError, match=f"offset {offset}: 8 bytes expected, the file ends at 32"):
                read(offset)


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    rec, _ = write(tmp_path, [b"abcd" + WORD + b"efg", b"x" * 9])
    content = rec.read_bytes()
    starts = {0, len(content) - 20}
    for length in range(len(content)):
        rec.write_bytes(content[:length])
        with RecordReader(rec) as reader:
            if length in starts:
                assert len(list(reader.scan())) == len(reader.offsets())
                continue
            for read in (lambda: list(reader.scan()), reader.offsets):
                with pytest.raises(UserError, match=r"a\.rec: offset"):
                    read()


def test_random_damage_raises_user_errors_only(tmp_path: Path) -> None:
    rec, _ = write(tmp_path, [payload[:500] for payload in PAYLOADS])
    content = rec.read_bytes()
    chance = random.Random(1)
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        rec.write_bytes(damaged)
        with RecordReader(rec) as reader:
            try:
                found = list(reader.scan())
            except UserError:
                continue
            assert sum(len(payload) for _, payload in found) <= len(damaged)


@pytest.mark.parametrize("payload, message", [
    (b"", "record of 0 bytes"), (b"x" * 23, "record of 23 bytes"),
    (struct.pack("<IfQQ", 1 << 31, 0, 0, 0) + b"abcd", "says 2147483648 labels and has only 4 bytes"),
])
def test_unpack_too_short(payload: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unpack_record(payload)


def test_writer_leaves_nothing_on_an_error(tmp_path: Path) -> None:
    write(tmp_path, [b"old"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RuntimeError), RecordWriter(tmp_path / "a.rec", tmp_path / "a.idx") as writer:
        writer.write(0, b"new")
        raise RuntimeError
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_writer_checks(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "a.rec", tmp_path / "a.idx") as writer:
        writer.write(3, b"")
        with pytest.raises(ValueError, match="record 3 is written after record 3, keys must rise"):
            writer.write(3, b"")
    with pytest.raises(UserError, match="cannot be written"), RecordWriter(tmp_path / "no" / "a.rec", tmp_path / "i"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.idx", "a.rec"]


@pytest.mark.parametrize("text, keys", [
    ("", []), ("0\t0\n", [0]), ("0\t0\n7\t8", [0, 7]), ("5\t0\r\n2\t8\r\n", [5, 2])])
def test_index(tmp_path: Path, text: str, keys: list[int]) -> None:
    (tmp_path / "a.idx").write_bytes(text.encode())
    found, offsets = read_index(tmp_path / "a.idx")
    assert found.tolist() == keys and offsets.tolist() == [0, 8][:len(keys)]
    assert found.dtype == offsets.dtype == np.int64


@pytest.mark.parametrize("text, message", [
    ("0\t0\n1 8\n", r"line 2: found '1 8', expected 'key<TAB>offset'"),
    ("0\t0\n\n2\t16\n", "line 2: found ''"),
    ("0\t0\n-1\t8\n", "line 2: found '-1"),
    ("0\t0\n1\t8.0\n", "line 2: found"),
    ("0\t0\n1\t2\t3\n4\n", "line 2: found"),
    ("0\t0\n1\n2\t3\t4\n", "line 2: found '1'"),
    ("0\t0\n1\t" + "9" * 19, "line 2: found"),
    ("\xff\xfe\n", "line 1: found"),
    ("4\t0\n2\t8\n4\t16\n2\t24\n", "line 3: key 4 stands there a second time"),
])
def test_bad_index(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.idx").write_bytes(text.encode("latin1"))
    with pytest.raises(UserError, match=r"a\.idx: " + message):
        read_index(tmp_path / "a.idx")


def test_index_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_index, "_BYTES_AT_ONCE", 7)
    (tmp_path / "a.idx").write_text("".join(f"{n}\t{n * 1000}\n" for n in range(200)))
    keys, offsets = read_index(tmp_path / "a.idx")
    np.testing.assert_array_equal(np.c_[keys, offsets], np.c_[np.arange(200), np.arange(200) * 1000])
    (tmp_path / "a.idx").write_text("".join(f"{n}\t{n}\n" for n in range(50)) + "x\n")
    with pytest.raises(UserError, match="line 51: found 'x'"):
        read_index(tmp_path / "a.idx")
