# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from common.sets.text_columns import read_whole_numbers
from recognition.errors import UserError


@pytest.mark.parametrize("chunk_bytes", [1, 10, 1 << 20])
@pytest.mark.parametrize("newline, last", [("\n", "\n"), ("\r\n", ""), ("\n", "\n\n")])
def test_any_chunk_gives_the_same_numbers(tmp_path, chunk_bytes, newline, last, monkeypatch):
    monkeypatch.setattr("common.sets.text_columns._CHUNK_BYTES", chunk_bytes)
    numbers = np.random.default_rng(0).integers(-1000, 1000, (50, 3))
    lines = newline.join(" \t"[i % 2].join(map(str, row)) for i, row in enumerate(numbers))
    (tmp_path / "x.txt").write_bytes((lines + last).encode())
    np.testing.assert_array_equal(read_whole_numbers(tmp_path / "x.txt", 3, "three"), numbers)


@pytest.mark.parametrize("chunk_bytes", [1, 10, 1 << 20])
@pytest.mark.parametrize("bad", ["1 2", "1 2 3 4", "", "1 2 3x", "1,2,3", "a b c", "1 2 3.0"])
def test_the_first_bad_line_is_named_in_any_chunk(tmp_path, chunk_bytes, bad, monkeypatch):
    monkeypatch.setattr("common.sets.text_columns._CHUNK_BYTES", chunk_bytes)
    (tmp_path / "x.txt").write_text("1 2 3\n" * 20 + f"{bad}\n" + "1 2 3\n" * 5 + "9\n")
    with pytest.raises(UserError, match=rf"x\.txt: line 21: found '{bad}', expected three$"):
        read_whole_numbers(tmp_path / "x.txt", 3, "three")


def test_nothing_to_read(tmp_path):
    (tmp_path / "x.txt").write_text("\n")
    with pytest.raises(UserError, match="found no lines, expected three"):
        read_whole_numbers(tmp_path / "x.txt", 3, "three")
    with pytest.raises(UserError, match="cannot be read"):
        read_whole_numbers(tmp_path / "y.txt", 3, "three")
