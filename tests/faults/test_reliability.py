# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from faults import reliability
from faults.reliability import BEGIN, END, RECORDS, Row, report, table, write_table
from recognition.errors import UserError

GOOD = Row("a | fault", 1000, "it goes on", 1000, "it did")
BAD = Row("another", 3, "it goes on", 2, "one hung")


def test_the_page_holds_what_the_harnesses_found() -> None:
    page = (RECORDS / "reliability.md").read_text(encoding="utf-8")
    assert f"{BEGIN}\n{table()}\n{END}" in page, "python -m faults.reliability writes the table anew"


def test_a_harness_prints_its_rows_and_records_them_only_if_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reliability, "RECORDS", tmp_path)
    (tmp_path / "reliability.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert report("two-words", "make x", [GOOD], False) == 0
    assert capsys.readouterr().out == "kept: a | fault | 1,000 | it goes on | it did\n"
    assert not (tmp_path / "reliability").exists()
    assert report("two-words", "make x", [GOOD, BAD], True) == 1
    assert "BROKEN: another | 3 | it goes on | **kept 2 of 3 times**; one hung" in capsys.readouterr().out
    page = (tmp_path / "reliability.md").read_text()
    assert page.startswith(f"before\n{BEGIN}\n\n## Two words\n\n`make x`, 20") and page.endswith(f"\n{END}\nafter\n")
    assert "| a or fault | 1,000 | it goes on | it did |\n| another | 3 |" in page and "old" not in page
    assert json.loads((tmp_path / "reliability" / "two-words.json").read_text())["rows"][1]["kept"] == 2


def test_a_page_without_its_marks_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reliability, "RECORDS", tmp_path)
    (tmp_path / "reliability.md").write_text("words")
    with pytest.raises(UserError, match=r"reliability\.md: found no <!-- table -->"):
        write_table()
    assert (tmp_path / "reliability.md").read_text() == "words"
