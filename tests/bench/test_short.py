# SPDX-License-Identifier: Apache-2.0
"""The table of `make bench`: what it says of ratios, stored figures and benches that fail; a small bench really run."""
from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

import pytest

from bench import short
from bench.ratios import read_ratios, write_ratios
from bench.short import BENCHES, FIGURES, Bench, Outcome, lines_of, main, read_figures, store, verdict
from recognition.errors import UserError

TINY = Bench("triplets", "--bags 100 --dim 16 --repeats 1", "loops to this way", more=("bag of 100",))
PAIR = Bench("pair", "--flag", "this to that", more=("speed",), less=("memory",))


def entry(bench: Bench, **ratios: float) -> dict[str, dict[str, object]]:
    return {bench.name: {"command": bench.command, "date": "2026-11-25", "revision": 40 * "a", "machine": "a machine",
                         "ratios": ratios}}


@pytest.mark.parametrize("now, before, more, expected", [
    (0.79, 1, True, "worse"), (0.81, 1, True, ""), (9, 1, True, ""),
    (1.21, 1, False, "worse"), (1.19, 1, False, ""), (0.1, 1, False, "")])
def test_worse_by_more_than_a_fifth(now: float, before: float, more: bool, expected: str) -> None:
    assert verdict(now, before, more) == expected


def test_lines_of_a_bench() -> None:
    lines = lines_of(PAIR, Outcome(3.2, {"speed": 1.5, "memory": 1.5}), entry(PAIR, speed=3, memory=1))
    assert lines[0] == "pair: this to that (3 s)"
    assert [line.split() for line in lines[1:]] == [["speed", "more", "1.500", "3.000", "0.50", "worse"],
                                                    ["memory", "less", "1.500", "1.000", "1.50", "worse"]]


def test_no_stored_figure() -> None:
    outcome = Outcome(1, {"speed": 1.5, "memory": 2})
    assert lines_of(PAIR, outcome, entry(PAIR, speed=1.5))[2].split() == ["memory", "less", "2.000", "-", "-"]
    other = PAIR._replace(flags="--other")  # what another short form found is no figure of this one
    assert lines_of(other, outcome, entry(PAIR, speed=1.5))[1].split() == ["speed", "more", "1.500", "-", "-"]


def test_a_bench_runs_and_is_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "figures.json"
    figures.write_text(json.dumps(entry(PAIR, speed=1)))
    assert main(["--store"], [TINY], figures) == 0
    assert "no stored figures" in capsys.readouterr().out
    stored = read_figures(figures)
    assert stored["pair"] == entry(PAIR, speed=1)["pair"]  # kept
    assert stored["triplets"]["ratios"]["bag of 100"] > 0
    assert stored["triplets"]["command"] == "python -m bench.triplets --bags 100 --dim 16 --repeats 1"
    assert main([], [TINY], figures) == 0
    said = capsys.readouterr()
    line = next(line.split() for line in said.out.splitlines() if "bag of 100" in line)
    assert float(line[5]) == pytest.approx(stored["triplets"]["ratios"]["bag of 100"], abs=1e-3)
    assert f"stored {stored['triplets']['date']}" in said.out


def test_benches_that_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "figures.json"
    benches = [TINY._replace(flags="--bags none"),
               TINY._replace(flags="--bags 100 --dim 16 --loops 0"),  # runs, without the ratio
               TINY]
    assert main(["--store"], benches, figures) == 1
    said = capsys.readouterr().out
    assert "FAILED: exit status 2: " in said and "invalid int value: 'none'" in said
    assert "FAILED: found the ratio None of 'bag of 100'" in said
    assert "bag of 100" in read_figures(figures)["triplets"]["ratios"]  # the others are run and stored all the same


def test_a_bench_that_takes_too_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--limit", "0.1"], [TINY], tmp_path / "figures.json") == 1
    assert "FAILED: not done after 0.1 s" in capsys.readouterr().out


def test_without_horovod(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short.importlib.util, "find_spec", lambda name: None)
    assert main(["--store"], [TINY._replace(processes=2)], tmp_path / "figures.json") == 0
    assert "left out: no Horovod here" in capsys.readouterr().out
    assert read_figures(tmp_path / "figures.json") == {}


@pytest.mark.parametrize("content", ["", "[]", '{"head": {}}', '{"head": {"ratios": {"a": "b"}}}', '{"head": 1}'])
def test_what_are_no_figures(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "figures.json"
    figures.write_text(content)
    assert main([], [TINY], figures) == 2
    error = capsys.readouterr().err.strip()
    assert str(figures) in error and "\n" not in error


def test_ratios_in_files(tmp_path: Path) -> None:
    path = tmp_path / "ratios.json"
    write_ratios(None, {"a": 1})
    write_ratios(path, {"a": 1, "b": 0.5, "c": float("inf"), "d": 0})
    assert read_ratios(path, ["b", "a"]) == {"b": 0.5, "a": 1}
    for name in ("c", "d", "e"):
        with pytest.raises(UserError, match=f"of '{name}', expected a number above 0"):
            read_ratios(path, [name])
    with pytest.raises(UserError, match="no ratios"):
        read_ratios(tmp_path / "none.json", [])


def test_store_keeps_what_did_not_run(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    store(figures, entry(PAIR, speed=2), {PAIR: Outcome(1, why="FAILED", failed=True)})
    assert read_figures(figures) == entry(PAIR, speed=2)


def test_stored_figures_are_of_the_benches() -> None:
    """Each bench's figures are there, of the short form that runs today; else it was changed and not measured again."""
    stored = read_figures(FIGURES)
    assert set(stored) == {bench.name for bench in BENCHES}
    for bench in BENCHES:
        assert stored[bench.name]["command"] == bench.command
        assert set(stored[bench.name]["ratios"]) == set(bench.more + bench.less)


@pytest.mark.parametrize("bench", BENCHES, ids=lambda bench: bench.name)
def test_each_bench_takes_the_flags_of_its_short_form(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser of each takes them and ``--json``; what follows the parser does not run."""
    class Parsed(Exception):
        pass

    parse = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *args: object) -> None:
        assert str(parse(self).json) == "out.json"
        raise Parsed

    module = importlib.import_module(f"bench.{bench.name}")
    monkeypatch.setattr("sys.argv", ["bench", *bench.flags.split(), "--json", "out.json"])
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(Parsed):
        module.main()
