# SPDX-License-Identifier: Apache-2.0
"""docs/options.md: whole, and true as far as a program can tell."""
from __future__ import annotations

import ast

import pytest

from recognition.cli import flag_keys, flag_name
from recognition.config import ENTRIES, OPTIONS
from recognition.config_file import ROOT

ROWS = [[cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / "docs" / "options.md").read_text().splitlines() if line.startswith("| `")]


def test_all_options_stand_there_once_and_in_order():
    assert [row[0].strip("`") for row in ROWS] == list(OPTIONS)


@pytest.mark.parametrize("key, flag, default, meaning, effect, test", ROWS, ids=list(OPTIONS))
def test_row(key, flag, default, meaning, effect, test):
    key = key.strip("`")
    entries = [entry for entry in ENTRIES if key in flag_keys(entry)]
    if entries:
        assert flag.startswith(f"`{flag_name(key)}`") and ("train_parall.py" in flag) == (len(entries) == 1)
    kind, expected = OPTIONS[key].metadata["kind"], OPTIONS[key].default
    if isinstance(expected, (int, float)):
        assert default == str(expected)
    elif default != "empty":
        assert kind.check(default, key) == expected
    assert meaning == OPTIONS[key].metadata["help"].replace("|", "or") and effect
    path, name = test.strip("`").split("::")
    tree = ast.parse((ROOT / path).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
