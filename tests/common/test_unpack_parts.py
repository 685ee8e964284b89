# SPDX-License-Identifier: Apache-2.0
"""Archives that tar, zip and split made, joined, checked and unpacked; sums against those of md5sum and sha256sum."""
from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from common.unpack_parts import Joined, in_order, main, read_sums

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def content(tmp_path: Path) -> Path:
    """A folder as sets are packed."""
    folder = tmp_path / "packed" / "faces"
    folder.mkdir(parents=True)
    (folder / "train.rec").write_bytes(os.urandom(300_000))
    (folder / "train.idx").write_text("0\t0\n")
    (folder / "property").write_text("1,112,112\n")
    (folder / "more").mkdir()
    (folder / "more" / "lfw.bin").write_bytes(b"")
    return folder


def split(archive: Path, size: int) -> list[Path]:
    """By split(1), as published parts are made: faces_00, faces_01, ..."""
    subprocess.run(["split", "-b", str(size), "-d", archive, archive.with_name("faces_")], check=True)
    return sorted(archive.parent.glob("faces_*"))


def sums_of(paths: list[Path], tool: str = "md5sum") -> str:
    return subprocess.run([tool, *paths], check=True, capture_output=True, text=True).stdout


def run(parts: list[Path], output: Path, *flags: Any) -> int:
    return main([*map(str, parts), "--output", str(output), *map(str, flags)])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("tool, flag", [("md5sum", "z"), ("sha256sum", ""), ("sha1sum", "j")])
def test_parts_of_a_tar(tool: str, flag: str, content: Path, tmp_path: Path,
                        capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "faces.tar"
    subprocess.run(["tar", f"-c{flag}f", archive, "-C", content.parent, "faces"], check=True)
    parts = split(archive, 20_000)
    assert len(parts) > 10
    sums = tmp_path / "SUMS"
    sums.write_text(sums_of([*parts, content / "train.rec"], tool))
    assert run(parts[::-1], tmp_path / "new", "--sums", sums) == 0
    assert files(tmp_path / "new") == files(content)
    out = capsys.readouterr().out
    assert f"4 files from {len(parts)} parts; {len(parts) + 1} checksums were right" in out
    assert "common.doctor" in out
    # one byte of one part
    data = bytearray(parts[3].read_bytes())
    data[777] ^= 1
    parts[3].write_bytes(data)
    assert run(parts, tmp_path / "bad", "--sums", sums) == 2
    said = capsys.readouterr().err
    assert f"{parts[3]}: its {tool[:-3]} is" in said and "get it again" in said
    assert run([parts[0], *parts[2:]], tmp_path / "bad", "--sums", sums) == 2
    assert "faces_01: not given" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


def test_a_zip_in_parts_without_sums(content: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "faces.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(content.rglob("*")):
            archive.write(path, path.relative_to(content.parent))
    assert run([tmp_path / "faces.zip"], tmp_path / "one", "--no-sums") == 0
    assert run(split(tmp_path / "faces.zip", 7_777), tmp_path / "many", "--no-sums") == 0
    assert files(tmp_path / "one") == files(tmp_path / "many") == files(content)
    assert "0 checksums were right" in capsys.readouterr().out
    assert run(split(tmp_path / "faces.zip", 7_777)[:-1], tmp_path / "cut", "--no-sums") == 2
    assert "expected a .tar, .tar.gz" in capsys.readouterr().err and not (tmp_path / "cut").exists()


def test_a_file_inside_that_is_not_as_published(content: Path, tmp_path: Path,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "faces.tar"
    subprocess.run(["tar", "-cf", archive, "-C", content.parent, "faces"], check=True)
    (tmp_path / "SUMS").write_text(sums_of([archive]) + f"{'0' * 32}  train.rec\n")
    assert run([archive], tmp_path / "new", "--sums", tmp_path / "SUMS") == 2
    assert "train.rec in the archive: its md5 is" in capsys.readouterr().err
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".*writing*"))


@pytest.mark.parametrize("name, kind, line", [
    ("../out.txt", tarfile.REGTYPE, "'../out.txt', expected a path inside"),
    ("/tmp/out.txt", tarfile.REGTYPE, "expected a path inside"),
    ("link", tarfile.SYMTYPE, "is a link or a device"), ("pipe", tarfile.FIFOTYPE, "is a link or a device")])
def test_archives_that_reach_out(name: str, kind: bytes, line: str, tmp_path: Path,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, "/etc/passwd", 3 if kind == tarfile.REGTYPE else 0
        archive.addfile(member, io.BytesIO(b"out"))
    assert run([tmp_path / "evil.tar"], tmp_path / "a" / "new", "--no-sums") == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "a" / "new").exists() and not (tmp_path / "a" / "out.txt").exists()


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_with_damage_inside(kind: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "faces.zip", "w", kind) as archive:
        archive.writestr("faces/train.rec", bytes(range(256)) * 40)
    data = bytearray((tmp_path / "faces.zip").read_bytes())
    data[60:90] = b"\xff" * 30
    (tmp_path / "faces.zip").write_bytes(data)
    assert run([tmp_path / "faces.zip"], tmp_path / "new", "--no-sums") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'faces.zip'}: ") and "expected a .tar" in error
    assert error.count("\n") == 1 and not (tmp_path / "new").exists()


def test_what_the_disk_has_no_room_for_is_not_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sparse file of a terabyte in 10 KB; one that is said to be whole; many in a .zip, each of which would fit."""
    with tarfile.open(tmp_path / "sparse.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("faces/train.rec")
        member.size, member.pax_headers = 512, {
            "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "faces/train.rec",
            "GNU.sparse.realsize": str(1 << 40)}
        archive.addfile(member, io.BytesIO(b"1\n1099511627776\n0\n".ljust(512, b"\0")))
    member = tarfile.TarInfo("faces/train.rec")
    member.size = 1 << 60
    (tmp_path / "large.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    free = shutil.disk_usage(tmp_path).free
    with zipfile.ZipFile(tmp_path / "large.zip", "w") as zipped:
        for name in "ab":
            zipped.writestr(name, b"x")
            zipped.infolist()[-1].file_size = free // 3 * 2  # as the list at the end of the file has it
    for name, line in (("sparse.tar", "faces/train.rec in the archive is a sparse file"),
                       ("large.tar", f"large.tar: faces/train.rec takes {1 << 60} bytes, the disk has room for "),
                       ("large.zip", "large.zip: what it holds takes ")):
        assert run([tmp_path / name], tmp_path / "new", "--no-sums") == 2
        assert line in capsys.readouterr().err
        assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".*writing*"))


@pytest.mark.parametrize("place", [-5, -1])
def test_the_sum_of_a_gzip(place: int, content: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of its last eight bytes the first four are the sum, the others the size; tarfile looks at neither."""
    subprocess.run(["tar", "-czf", tmp_path / "faces.tgz", "-C", content.parent, "faces"], check=True)
    data = bytearray((tmp_path / "faces.tgz").read_bytes())
    data[place] ^= 1
    (tmp_path / "faces.tgz").write_bytes(data)
    assert run([tmp_path / "faces.tgz"], tmp_path / "new", "--no-sums") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'faces.tgz'}: ") and error.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_is_larger_than_any(kind: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Python reads it into memory."""
    member = tarfile.TarInfo("faces/train.rec")
    member.type, member.size = kind, 1 << 30
    (tmp_path / "faces.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    assert run([tmp_path / "faces.tar"], tmp_path / "new", "--no-sums") == 2
    error = capsys.readouterr().err
    assert "faces.tar: it has a header of 1073741824 bytes, expected at most 1048576" in error
    assert error.count("\n") == 1 and not (tmp_path / "new").exists()


def test_a_record_of_a_header_whose_length_no_number_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An OverflowError of Python; found by fuzzing."""
    member = tarfile.TarInfo("faces/train.rec")
    member.type, member.size = tarfile.XHDTYPE, 512
    record = (b"9" * 25 + b" path=a\n").ljust(512, b"\0")
    (tmp_path / "faces.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + record + bytes(10240))
    assert run([tmp_path / "faces.tar"], tmp_path / "new", "--no-sums") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'faces.tar'}: ") and error.count("\n") == 1


def test_a_zip_with_a_file_without_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        archive.writestr("qz", b"x")
    data = (tmp_path / "faces.zip").read_bytes()
    (tmp_path / "faces.zip").write_bytes(data.replace(b"qz", b"\0z"))  # names end at the first NUL
    assert run([tmp_path / "faces.zip"], tmp_path / "new", "--no-sums") == 2
    assert "it holds '', expected a path inside the folder" in capsys.readouterr().err


def test_what_is_no_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").write_bytes(b"hello" * 1000)
    assert run([tmp_path / "x"], tmp_path / "new", "--no-sums") == 2
    assert "expected a .tar" in capsys.readouterr().err
    assert run([tmp_path / "none"], tmp_path / "new", "--no-sums") == 2
    assert "none: cannot be read" in capsys.readouterr().err
    (tmp_path / "SUMS").write_text("nothing\n")
    assert run([tmp_path / "x"], tmp_path / "new", "--sums", tmp_path / "SUMS") == 2
    assert "found no checksums" in capsys.readouterr().err
    (tmp_path / "SUMS").write_text(f"{'0' * 32}  y\n")
    assert run([tmp_path / "x"], tmp_path / "new", "--sums", tmp_path / "SUMS") == 2
    assert "x: has no sum among y" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_published_sums_of_glint360k() -> None:
    sums = read_sums(ROOT / "datasets" / "glint360k.md5")
    assert sorted(sums) == [*(f"glint360k_0{i}" for i in range(7)), "train.idx", "train.rec"]
    assert all(len(value) == 32 for value in sums.values())


def test_parts_as_one_file(tmp_path: Path) -> None:
    data = os.urandom(1000)
    paths = []
    for i, (start, end) in enumerate(((0, 1), (1, 400), (400, 400), (400, 1000))):
        paths.append(tmp_path / f"p{i}")
        paths[-1].write_bytes(data[start:end])
    with Joined(paths) as joined:
        buffered = io.BufferedReader(joined)
        assert hashlib.md5(buffered.read()).digest() == hashlib.md5(data).digest()
        for start, count in ((0, 5), (395, 10), (990, 50), (1000, 1)):
            buffered.seek(start)
            assert buffered.read(count) == data[start : start + count]
        assert buffered.seek(-3, io.SEEK_END) == 997
    names = [path.name for path in in_order([Path("p10"), Path("p9"), Path("p1")])]
    assert names == ["p1", "p9", "p10"]
