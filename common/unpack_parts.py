# SPDX-License-Identifier: Apache-2.0
"""Checks a data set's archive, in one part or many, by its checksums, and unpacks it.

    python -m common.unpack_parts downloads/glint360k_0* --sums datasets/glint360k.md5 --output datasets/glint360k

The parts are joined in the order of the numbers in their names, to one .tar, .tar.gz, .tar.bz2, .tar.xz or .zip. SUMS
is a file of md5sum, sha1sum or sha256sum. It may also have the sums of files inside the archive, which are checked
while they are unpacked. Nothing is unpacked before all parts are checked; the new folder appears whole or not at all. A
folder around everything in the archive is left out. Only plain files and folders are unpacked, and only if the disk has
room for them.
"""
from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import re
import shutil
import tarfile
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import IO, Any

from common.sets.output_folder import new_folder
from recognition.config.command_line import Parser
from recognition.errors import UserError, command
from recognition.io.files import writing
from recognition.io.text import read_text
from recognition.progress import progress

HASHES = {32: "md5", 40: "sha1", 64: "sha256"}  # by the number of hexadecimal digits
_BLOCK_BYTES = 1 << 22
_GZIP = b"\x1f\x8b"
_TAGGED = re.compile(r"\w+ ?\((.+)\) ?= ?([0-9a-fA-F]{32,64})")  # macOS' md5, openssl, md5sum --tag
_LINE = re.compile(r"#?\s*([0-9a-fA-F]{32,64})\s+\*?(\S.*)")
_EXPECTED = "expected a .tar, .tar.gz, .tar.bz2, .tar.xz or .zip, in one part or all of its parts"
MOST_HEADER_BYTES = 1 << 20
_EXTENDED_HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
                     tarfile.SOLARIS_XHDTYPE)
_DAMAGES = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, OverflowError,
            RuntimeError, NotImplementedError)  # the standard library raises any of these for a broken archive


def read_sums(path: Path) -> dict[str, str]:
    """Read sums, in lower case, by file name. Lines without a sum are ignored.

    :raises UserError: if the file has no sum, or two for one name
    """
    lines = read_text(path).splitlines()
    sums: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match, tagged = _LINE.fullmatch(line.strip()), _TAGGED.fullmatch(line.strip())
        found, named = (tagged[2], tagged[1]) if tagged else (match[1], match[2]) if match else ("", "")
        if len(found) in HASHES:
            name = PurePosixPath(named.strip()).name
            if sums.setdefault(name, found.lower()) != found.lower():
                raise UserError(f"{path}: line {number}: a second sum of {name}, expected one")
    if not sums:
        raise UserError(f"{path}: found no checksums, expected lines 'sum  file' as md5sum writes them")
    return sums


class Joined(io.RawIOBase):
    """A read-only file of several files, one after the other."""

    def __init__(self, paths: Sequence[Path]) -> None:
        try:
            self._files = [open(path, "rb") for path in paths]  # noqa: SIM115
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from error
        self._starts = [0, *accumulate(path.stat().st_size for path in paths)]
        self.size = self._starts[-1]
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        if self._at >= self.size:
            return 0
        part = bisect_right(self._starts, self._at) - 1
        self._files[part].seek(self._at - self._starts[part])
        count = self._files[part].readinto(memoryview(buffer)[: self._starts[part + 1] - self._at])
        self._at += count
        return count

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()


def in_order(paths: Sequence[Path]) -> list[Path]:
    """The paths, sorted by the numbers in their names: part 2 comes before part 10."""
    return sorted(paths, key=lambda path: [int(piece) if piece.isdecimal() else piece
                                           for piece in re.split(r"([0-9]+)", path.name)])


def check_parts(parts: Sequence[Path], sums: dict[str, str]) -> None:
    """Compare each part with its sum.

    :raises UserError: if a part's sum differs or is missing, or if a part of the sums is not given.
    """
    for path in parts:
        if not path.is_file():
            raise UserError(f"{path}: not found, expected a part of an archive")
        if path.name not in sums:
            raise UserError(f"{path}: has no sum among {', '.join(sorted(sums))}")
    stem = re.sub(r"[0-9]+$", "", parts[0].name)
    present = {path.name for path in parts}
    for name in sorted(sums):
        if name not in present and stem and re.fullmatch(re.escape(stem) + "[0-9]+", name):
            raise UserError(f"{parts[0].parent / name}: not given, but it has a sum: all parts are needed")
    total = sum(path.stat().st_size for path in parts)
    with progress(total=total, desc="checking", unit="B", unit_scale=True) as bar:
        for path in parts:
            found = hashlib.new(HASHES[len(sums[path.name])], usedforsecurity=False)
            with open(path, "rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    found.update(block)
                    bar.update(len(block))
            if found.hexdigest() != sums[path.name]:
                raise UserError(f"{path}: its {found.name} is {found.hexdigest()}, expected {sums[path.name]}: get it "
                                "again")


class _Header(tarfile.TarInfo):
    """A header of a .tar with a limit. tarfile reads the rest of a header, such as long names, in one go, whatever size
    it announces."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        found = super().frombuf(buf, encoding, errors)
        if found.type in _EXTENDED_HEADERS and found.size > MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"it has a header of {found.size} bytes, expected at most {MOST_HEADER_BYTES}")
        return found


def members(joined: Joined, require: Callable[[str, int], None]) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the names and contents of the plain files in the archive, in its order.

    :param require: called with the name and the size in bytes of the next file, before it is read; for a .zip, which
        lists its files, called once with the size of all
    :raises UserError: if it holds anything but plain files and folders
    """
    start = joined.read(4)
    joined.seek(0)
    if start == b"PK\3\4":
        with zipfile.ZipFile(io.BufferedReader(joined)) as archive:  # type: ignore[type-var]
            require("what it holds", sum(info.file_size for info in archive.infolist()))
            for info in archive.infolist():
                if not info.filename.endswith("/"):  # is_dir() fails on an empty name
                    with archive.open(info) as unzipped:
                        yield info.filename, unzipped
        return
    source = gzip.GzipFile(fileobj=joined) if start.startswith(_GZIP) else joined  # tarfile does not check gzip's sum
    with tarfile.open(fileobj=source, mode="r|*", bufsize=1 << 20,  # type: ignore[call-overload]
                      tarinfo=_Header) as packed:
        for member in packed:
            if member.issparse():
                raise UserError(f"{member.name} in the archive is a sparse file, expected plain files")
            require(member.name, member.size)
            content = packed.extractfile(member) if member.isfile() else None
            if content is not None:
                yield member.name, content
            elif not member.isdir():
                raise UserError(f"{member.name} in the archive is a link or a device, expected plain files")
    while source.read(_BLOCK_BYTES):  # gzip's sum is at the end
        pass


def unpack(parts: Sequence[Path], folder: Path, sums: dict[str, str]) -> list[Path]:
    """Unpack all files to ``folder``, and check those that have a sum; returns their paths relative to it.

    :raises UserError: if this is no archive, or holds anything but plain files, or does not fit on the disk
    """
    try:
        return _unpack(parts, folder, sums)
    except (*_DAMAGES, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the disk; bzip2 raises OSError without a number for broken data
        what = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"{parts[0]}: {what}; {_EXPECTED}") from error


def _unpack(parts: Sequence[Path], folder: Path, sums: dict[str, str]) -> list[Path]:
    written: list[Path] = []
    joined = Joined(parts)

    def require(what: str, size: int) -> None:
        free = shutil.disk_usage(folder).free
        if size > free:
            raise UserError(f"{parts[0]}: {what} takes {size} bytes, the disk has room for {free}")

    with progress(total=joined.size, desc="unpacking", unit="B", unit_scale=True) as bar:
        for name, content in members(joined, require):
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
                raise UserError(f"{parts[0]}: it holds {name!r}, expected a path inside the folder")
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(content, target, sums.get(path.name), bar, joined)
            written.append(Path(path))
    joined.close()
    if not written:
        raise UserError(f"{parts[0]}: the archive holds no files")
    return written


def _write(content: IO[bytes], target: Path, expected: str | None, bar: Any, joined: Joined) -> None:
    found = hashlib.new(HASHES[len(expected)] if expected else "md5", usedforsecurity=False)
    with open(target, "wb") as file:
        while block := content.read(_BLOCK_BYTES):
            file.write(block)
            if expected:
                found.update(block)
            bar.update(joined.tell() - bar.n)
    if expected and found.hexdigest() != expected:
        raise UserError(f"{target.name} in the archive: its {found.name} is {found.hexdigest()}, expected {expected}: "
                        "the archive is damaged")


def lift(folder: Path, written: Sequence[Path]) -> list[Path]:
    """Remove a folder that is around everything; returns the new paths."""
    tops = {path.parts[0] for path in written}
    if len(tops) != 1 or any(len(path.parts) == 1 for path in written):
        return list(written)
    top = folder / tops.pop()
    aside = folder.with_name(folder.name + ".top")
    shutil.rmtree(aside, ignore_errors=True)
    top.rename(aside)
    for child in aside.iterdir():
        child.rename(folder / child.name)
    aside.rmdir()
    return [path.relative_to(path.parts[0]) for path in written]


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m common.unpack_parts", description=__doc__)
    add = parser.add_argument
    add("parts", type=Path, nargs="+", metavar="PART", help="the archive, or all of its parts")
    add("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--sums", type=Path, metavar="SUMS", help="a file of checksums: md5, sha1 or sha256")
    how.add_argument("--no-sums", action="store_true", help="unpack without checking: there are no sums")
    args = parser.parse_args(argv)
    parts = in_order(args.parts)
    sums = read_sums(args.sums) if args.sums else {}
    if sums:
        check_parts(parts, sums)
    with new_folder(args.output) as folder, writing(args.output):
        written = lift(folder, unpack(parts, folder, sums))
    checked = len(parts) + sum(path.name in sums for path in written) if sums else 0
    print(f"{args.output}: {len(written)} files from {len(parts)} parts; {checked} checksums were right")
    if any(path == Path("train.rec") for path in written):
        print(f"look it over: python -m common.doctor {args.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
