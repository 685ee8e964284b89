# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import io
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recognition.errors import UserError
from recognition.io import checksums
from recognition.io.checksums import HashedFile, Sum, check_sum, sum_of, write_bytes, write_npy, write_npz
from recognition.io.params import read_arrays, write_arrays

ARRAYS = [np.arange(12.0).reshape(3, 4), np.empty((0, 4), np.float32), np.zeros((), np.float16),
          np.arange(3_000_000, dtype=np.float32).reshape(-1, 3)[:, :2], np.array([True]), np.arange(4)[::2]]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype} {array.shape}")
def test_an_array_is_written_as_numpy_does_with_its_sum(tmp_path: Path, array: np.ndarray) -> None:
    path, numpy = tmp_path / "a.npy", io.BytesIO()
    found = write_npy(path, array)
    np.save(numpy, array)
    assert path.read_bytes() == numpy.getvalue() and found == Sum(len(numpy.getvalue()), sha256(path)) == sum_of(path)


def test_an_archive_is_one_that_numpy_reads_and_the_same_each_time(tmp_path: Path) -> None:
    arrays = {f"name:{i}/x": array for i, array in enumerate(ARRAYS)}
    sums = [write_npz(tmp_path / name, arrays) for name in ("a.npz", "b.npz")]
    assert sums[0] == sums[1] == sum_of(tmp_path / "a.npz") and sums[0].sha256 == sha256(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert list(found) == list(arrays)
        assert all(found[name].dtype == array.dtype and np.array_equal(found[name], array)
                   for name, array in arrays.items())


def test_what_sha256sum_says_of_a_file_of_arrays(tmp_path: Path) -> None:
    path = tmp_path / "model-0001.params"
    write_arrays(path, {"arg:w": [np.ones((3, 2), np.float32)]})
    done = subprocess.run(["sha256sum", "-c", f"{path.name}.sha256"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{path.name}: OK\n")
    write_arrays(path, {"arg:w": [np.zeros((5, 2), np.float32)]})
    assert read_arrays(path).arrays[0].shape == (5, 2)


def test_a_file_of_arrays_that_is_another_is_refused_and_a_whole_one_offered(tmp_path: Path) -> None:
    paths = [tmp_path / f"model-000{number}.params" for number in (1, 2, 3)]
    for number, path in enumerate(paths):
        write_arrays(path, {"arg:w": [np.full((3, 2), number, np.float32)]})
    whole = paths[2].read_bytes()
    flipped = bytearray(whole)
    flipped[-40] ^= 4
    for content in (bytes(flipped), whole[:-1], paths[0].read_bytes()):  # flipped, cut short, swapped
        paths[2].write_bytes(content)
        with pytest.raises(UserError, match=r"model-0003\.params: damaged: .*model-0003\.params\.sha256 says; "
                                            r"model-0002\.params beside it is whole; if another program"):
            read_arrays(paths[2])
    (tmp_path / "model-0003.params.sha256").unlink()  # as any program leaves a file
    assert np.asarray(read_arrays(paths[2]).arrays[0])[0, 0] == 0
    (tmp_path / "model-0002.params.sha256").write_text("words\n")
    with pytest.raises(UserError, match=r"model-0002\.params\.sha256: found 'words.n', expected a line of sha256sum"):
        read_arrays(paths[1])


def test_a_file_that_a_run_replaces_meanwhile_is_not_called_damaged(tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    write_bytes(path, b"old")
    texts = iter(["0" * 64 + "  x\n", None])  # of the file before, then of none
    monkeypatch.setattr(checksums, "_text_beside", lambda path: next(texts, None))
    check_sum(path)
    monkeypatch.setattr(checksums, "_text_beside", lambda path: "0" * 64 + "  x\n")
    with pytest.raises(UserError, match="x: damaged"):
        check_sum(path)


def test_a_kill_between_a_file_and_its_sum_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.params"
    write_arrays(path, [[np.zeros(3, np.float32)]])
    monkeypatch.setattr("recognition.io.params.write_sum", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_arrays(path, [[np.ones(3, np.float32)]])
    assert np.asarray(read_arrays(path).arrays[0]).tolist() == [1, 1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["x.params"]


FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from recognition.io.checksums import write_npy, write_npz
from recognition.errors import UserError
from recognition.io.params import write_arrays
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
folder, array, failed = Path(sys.argv[1]), np.ones((1000, 100), np.float32), 0
small = {f"a{i}": np.ones(40, np.float32) for i in range(1000)}
for write in (lambda: write_npy(folder / "a.npy", array), lambda: write_npz(folder / "a.npz", {"a": array}),
              lambda: write_npz(folder / "b.npz", small), lambda: write_arrays(folder / "c.params", {"a": [array]})):
    try:
        write()
    except (OSError, UserError) as error:
        failed += "File too large" in str(error)
sys.exit(failed)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit of file sizes")
def test_a_file_that_does_not_fit_is_an_error_and_nothing_else_is_said(tmp_path: Path) -> None:
    """zipfile complains when an archive that was cut is freed, unless it was closed."""
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True,
                          cwd=Path(__file__).resolve().parents[3])
    assert (done.returncode, done.stdout, done.stderr) == (4, "", "")
    assert not (tmp_path / "c.params").exists() and not list(tmp_path.glob(".*"))


def test_pieces_and_sizes_of_a_hashed_file(tmp_path: Path) -> None:
    with HashedFile(tmp_path / "x") as file:
        for size in (0, 1, 100_000, 5_000_000):
            file.write(bytes(size))
    assert file.sum == Sum(5_100_001, sha256(tmp_path / "x"))


SUM, OTHER = hashlib.sha256(b"content").hexdigest(), "0" * 64


@pytest.mark.parametrize("text", [
    f"{SUM.upper()}  x\n", f"{SUM} *x\n", f"{SUM}  x\r\n", f"{SUM}  x", f"SHA256 (x) = {SUM}\n",
    f"{OTHER}  y\n{SUM}  x\n", f"{SUM}  ./x\n{OTHER}  xx\n", f"# of today\n{SUM}  x\n", f"{SUM}  x\n{SUM}  x\n",
    f"SHA256 (y) = {OTHER}\nSHA256 (x) = {SUM}\n", f"\\{OTHER}  y\\nx\n{SUM.upper()}  x\n"])
def test_lines_that_sha256sum_takes_are_taken(tmp_path: Path, text: str) -> None:
    for name in ("x", "y", "xx", "y\nx"):
        (tmp_path / name).write_bytes(b"content")
    (tmp_path / "x.sha256").write_bytes(text.encode())
    check_sum(tmp_path / "x")
    done = subprocess.run(["sha256sum", "-c", "x.sha256"], cwd=tmp_path, capture_output=True, text=True)
    said = [line.rstrip("\r") for line in done.stdout.splitlines()]
    if "\r" not in text:  # which older ones take for a part of the name
        assert "x: OK" in said or "./x: OK" in said
    (tmp_path / "x").write_bytes(b"Content")
    with pytest.raises(UserError, match="x: damaged: "):
        check_sum(tmp_path / "x")


@pytest.mark.parametrize("text, words", [
    (f"{OTHER}  y\n{OTHER}  z\n", "0 sums for x in 2 lines, expected one"),
    (f"{OTHER}  x\n{SUM}  x\n", "2 sums for x in 2 lines, expected one"),
    (f"{SUM[:-1]}  x\n", "expected a line of sha256sum"), ("", "expected a line of sha256sum"),
    (f"{SUM}\n", "expected a line of sha256sum"), ("# none\n", "expected a line of sha256sum")])
def test_lines_that_say_nothing_of_a_file_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x").write_bytes(b"content")
    (tmp_path / "x.sha256").write_text(text)
    with pytest.raises(UserError, match=rf"x\.sha256: found .*{words}"):
        check_sum(tmp_path / "x")


def test_a_renamed_file_goes_with_its_one_line(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x", b"content")
    for end in ("", ".sha256"):
        (tmp_path / f"x{end}").rename(tmp_path / f"best{end}")
    check_sum(tmp_path / "best")


def test_pipes_beside_files_are_not_waited_for(tmp_path: Path) -> None:
    for number in (1, 2):
        write_arrays(tmp_path / f"model-000{number}.params", [[np.zeros(3, np.float32)]])
    (tmp_path / "model-0002.params").write_bytes(b"")
    (tmp_path / "model-0001.params").unlink()
    os.mkfifo(tmp_path / "model-0001.params")
    with pytest.raises(UserError, match=r"model-0002\.params: damaged: .* says; if another program"):
        check_sum(tmp_path / "model-0002.params")
    (tmp_path / "model-0002.params.sha256").unlink()
    os.mkfifo(tmp_path / "model-0002.params.sha256")
    with pytest.raises(UserError, match=r"model-0002\.params\.sha256: cannot be read: is no regular file"):
        check_sum(tmp_path / "model-0002.params")
