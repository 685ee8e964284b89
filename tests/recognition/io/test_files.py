# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from recognition.data.records.record_index import read_index
from recognition.data.records.recordio import RecordReader
from recognition.data.records.set_layout import read_property
from recognition.data.verification_set import load_bin
from recognition.errors import UserError
from recognition.io.files import regular, replacing, require_new, sync_file, sync_folder
from recognition.io.params import read_arrays
from recognition.networks.symbol_file import read_symbol


def test_a_file_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    for text in ("first", "second"):
        with replacing(target) as path:
            path.write_text(text)
    assert target.read_text() == "second"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("name", ["file", ".file.writing"])
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_is_replaced_and_not_written_through(name: str, link: Callable, tmp_path: Path) -> None:
    """Whether it has the file's name, or that of the temporary one."""
    (tmp_path / "apart").write_text("good")
    link(tmp_path / "apart", tmp_path / name)
    with replacing(tmp_path / "file") as path:
        path.write_text("new")
    assert (tmp_path / "file").read_text() == "new" and not (tmp_path / "file").is_symlink()
    assert (tmp_path / "apart").read_text() == "good"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["apart", "file"]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    """A device would be gone for the whole machine."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "folder").mkdir()
    for name, line in (("pipe", "a pipe or a device"), ("null", "a pipe or a device"), ("folder", "Is a directory")):
        with pytest.raises(UserError, match=f"{name}: cannot be written: .*{line}"), replacing(tmp_path / name):
            raise AssertionError
        with pytest.raises(UserError, match=f"{name}: cannot be written: .*{line}"):
            require_new([tmp_path / name], overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "null", "pipe"]


def test_outputs_that_must_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("input", "there", "folder/inside"):
        (tmp_path / name).write_text("good")
    (tmp_path / "soft").symlink_to(tmp_path / "input")
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    (tmp_path / "here").symlink_to(tmp_path)
    os.link(tmp_path / "input", tmp_path / "hard")
    inputs = [tmp_path / "input", None, tmp_path / "folder", tmp_path / "none"]
    require_new([None, tmp_path / "new", tmp_path / "folder" / "new"], inputs)
    require_new([tmp_path / "there", tmp_path / "new"], inputs, overwrite=True)
    for name, line in (("there", "exists already, expected a new name; --overwrite"), ("nowhere", "exists already"),
                       ("soft", "is an input"), ("hard", "is an input"), ("here/input", "is an input"),
                       ("folder/inside", "in the input .*/folder, expected a new name"),
                       ("here/folder/inside", "in the input")):
        with pytest.raises(UserError, match=f"/{name}: .*{line}"):
            require_new([tmp_path / name], inputs)
    for name in ("input", "soft", "hard", "here/input", "folder/inside"):
        with pytest.raises(UserError, match="input"):
            require_new([tmp_path / name], inputs, overwrite=True)
    with pytest.raises(UserError, match="/here/new: found as the name of two outputs"):
        require_new([tmp_path / "new", tmp_path / "here" / "new"])


def test_an_error_leaves_the_file_before_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("good")
    with pytest.raises(RuntimeError), replacing(target) as path:
        path.write_text("half")
        raise RuntimeError
    assert target.read_text() == "good"
    assert list(tmp_path.iterdir()) == [target]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """A file where a folder should be, for nothing else keeps root from writing."""
    blocked = tmp_path / "file"
    blocked.write_text("good")
    with pytest.raises(UserError, match=r"file/new: cannot be written: ") as error, replacing(blocked / "new"):
        pass
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"absent: cannot be written: No such file"):
        sync_file(tmp_path / "absent")
    with pytest.raises(UserError, match=r"absent: cannot be written: No such file"):
        sync_folder(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == [blocked] and blocked.read_text() == "good"


def test_a_disk_that_fills_up_leaves_the_file_before(tmp_path: Path, full_disk: Callable) -> None:
    target = tmp_path / "file"
    target.write_text("good")
    with pytest.raises(UserError, match=r"file: cannot be written: File too large"), full_disk(100), \
            replacing(target) as path:
        path.write_text("long" * 1000)
    assert target.read_text() == "good"
    assert list(tmp_path.iterdir()) == [target]


def test_pipes_folders_and_devices_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("text")
    with open(tmp_path / "file", opener=regular) as file:
        assert file.read() == "text"
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(OSError, match="it is a pipe or a device, expected a file"):
            regular(path, os.O_RDONLY)
    with pytest.raises(IsADirectoryError):
        regular(tmp_path, os.O_RDONLY)
    with pytest.raises(FileNotFoundError):
        regular(tmp_path / "none", os.O_RDONLY)


@pytest.mark.parametrize("read", [
    read_property, RecordReader, read_index, load_bin, read_symbol, read_arrays])
def test_readers_of_strangers_files_do_not_wait_for_a_pipe(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"pipe: .*it is a pipe or a device, expected a file"):
        read(tmp_path / "pipe")
