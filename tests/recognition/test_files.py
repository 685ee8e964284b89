# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from recognition.files import replacing


def test_a_file_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    for text in ("first", "second"):
        with replacing(target) as path:
            path.write_text(text)
    assert target.read_text() == "second"
    assert list(target.parent.iterdir()) == [target]


def test_an_error_leaves_the_file_before_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("good")
    with pytest.raises(RuntimeError), replacing(target) as path:
        path.write_text("half")
        raise RuntimeError
    assert target.read_text() == "good"
    assert list(tmp_path.iterdir()) == [target]
