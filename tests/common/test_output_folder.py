# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from common.sets.output_folder import new_folder
from recognition.errors import UserError


def test_appears_when_complete(tmp_path):
    with new_folder(tmp_path / "a" / "b") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "b" / "file").read_text() == "x"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_nothing_is_left_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / "set") as folder:
        (folder / "file").write_text("x")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_leftover_of_a_kill_is_removed(tmp_path):
    (tmp_path / ".set.writing").mkdir()
    (tmp_path / ".set.writing" / "half").write_text("x")
    with new_folder(tmp_path / "set"):
        pass
    assert not list((tmp_path / "set").iterdir())


def test_only_an_empty_folder_is_replaced(tmp_path):
    (tmp_path / "set").mkdir()
    with new_folder(tmp_path / "set") as folder:
        (folder / "file").write_text("x")
    for _ in range(2):
        with pytest.raises(UserError, match="exists already"), new_folder(tmp_path / "set"):
            pass
    assert (tmp_path / "set" / "file").exists()
