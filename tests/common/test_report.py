# SPDX-License-Identifier: Apache-2.0
"""Reports, parsed as HTML, and looked at by a headless Chromium where there is one."""
from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.report import main
from recognition.config.differences import as_json
from recognition.config.options import Config
from recognition.evaluation.roc import roc
from recognition.training.watch.report import make_report
from recognition.training.watch.report_charts import Axis, Line, chart, number

VOID = {"meta", "link", "br", "path", "circle"}
EVIL = "<script>alert(1)</script><img src=http://example.com/x.png onerror=alert(2)>\"'&"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """Text and tags of a page whose every tag must be closed; tables as rows of texts by their captions."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = self._cell = ""
        self._rows: list[list[str]] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._rows = []
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th", "caption"):
            self._cell = ""

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self._rows[-1].append(self._cell)
        if tag == "caption":
            self.tables[self._cell] = self._rows

    def handle_data(self, data: str) -> None:
        self._cell += data
        if self.open and self.open[-1] != "style":
            self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The files of a run with one verification set, gradients and angles."""
    folder = tmp_path / "demo-arcface-demo"
    folder.mkdir()
    lines: list[dict[str, Any]] = [
        {"kind": "train", "step": step, "epoch": 0, "loss": 20 / step, "accuracy": 0.1, "images_per_second": 9.0,
         "lr": 0.1 if step < 300 else 0.01} for step in range(20, 1501, 20)]
    lines += [{"kind": "verification", "step": step, "target": "demo", "accuracy": 0.9 - abs(step - 500) / 2000,
               "std": 0.01, "xnorm": 20.0, "auc": 0.9} for step in (250, 500, 750)]
    lines += [{"kind": "left_out", "step": 7, "why": "step 7: the loss is nan"},
              {"kind": "gradient_norm", "step": 100, "backbone": 1.5, "centres": 0.5},
              {"kind": "angle", "step": 100, "mean": 80.0, "p5": 60.0, "median": 81.0, "p95": 95.0}]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    random = np.random.RandomState(0)
    issame = np.arange(600) % 2 == 0
    distances = random.uniform(0, 2, 600) + 1.2 * ~issame
    np.savez(folder / "roc-demo.npz", **roc(distances, issame)._asdict(), pixel_fpr=np.array([0, 1.0]),
             pixel_tpr=np.array([0, 1.0]), distances=distances.astype(np.float32), issame=issame, threshold=1.5)
    start = {"time": "2026-01-01T00:00:00+00:00", "step": 0, "command": ["python", "train.py", "--lr", "0.1 x"],
             "revision": "0123456789abcdef", "machine": {"processor": "A CPU"}, "processes": 1,
             "versions": {"numpy": "1.23.5"}, "config": as_json(Config(lr=0.25, dataset="demo")),
             "end": {"time": "2026-01-01T01:00:00+00:00", "step": 1500, "epoch": 4, "status": 0}}
    (folder / "run.json").write_text(json.dumps({"starts": [start]}))
    return folder


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def assert_alone(page: Page) -> None:
    """No script, and nothing that a browser would fetch."""
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "img", "iframe", "object", "embed", "base", "form", "video", "audio", "source", "use"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name in ("src", "srcset", "xlink:href") for name in attributes)
        assert "href" not in attributes or (tag, attributes["href"]) == ("link", "data:,")
    policies = [attributes["content"] for tag, attributes in page.tags if tag == "meta"
                and attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policies and policies[0] is not None and policies[0].startswith("default-src 'none'")


def test_a_report_says_what_the_run_wrote(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    assert capsys.readouterr().out == f"report: {run / 'report.html'}\n"
    page = Page(run / "report.html")
    assert_alone(page)
    assert "Finished after step 1500, epoch 4" in page.text
    (last,) = page.tables["Last verification: mean and standard deviation of the folds"][1:]
    with np.load(run / "roc-demo.npz") as rates:
        tars = [f"{100 * rates['tpr'][rates['fpr'] <= far].max():.2f}" for far in (1e-2, 1e-3, 1e-4)]
    assert last == ["demo", "77.50 ± 1.00", "90.00 (step 500)", "0.9000", *tars, "20.00", "750"]
    assert [row[0] for row in page.tables["Every verification"][1:]] == ["250", "500", "750"]
    assert page.tables["Steps that were left out"][1:] == [["7", "step 7: the loss is nan"]]
    changed = {row[0]: row[1:3] for row in page.tables["Options that differ from their defaults"][1:]}
    assert changed == {"lr": ["0.25", "0.1"], "dataset": ["demo", "emore"]}
    assert len(page.tables["All options; those that differ stand out"]) - 1 == len(as_json(Config()))
    facts = dict(page.tables["The last start"][1:])
    assert facts["command"] == "python train.py --lr '0.1 x'"
    assert facts["git revision of the code"] == "0123456789abcdef"
    assert facts["processor"] == "A CPU" and facts["numpy"] == "1.23.5"
    # accuracy, XNorm, ROC, scores; loss, accuracy, rate, throughput, gradients, angles
    assert page.count("figure") == 10 == sum("aria-label" in found for tag, found in page.tags if tag == "svg")


def test_tables_and_pictures_are_accessible(run: Path) -> None:
    page = Page(make_report(run))
    assert page.tags[0] == ("html", {"lang": "en"}) and page.count("main") == page.count("h1") == 1
    assert all(found.get("scope") in ("col", "row") for tag, found in page.tags if tag == "th")
    assert page.count("caption") == page.count("table") == len(page.tables) > 3
    for tag, found in page.tags:
        if tag == "svg":
            assert found.get("aria-hidden") or (found["role"] == "img" and len(found["aria-label"] or "") > 20)
        assert tag != "div" or found.get("class") != "scroll" or (found["tabindex"] == "0" and found["aria-label"])


def test_names_are_text(run: Path) -> None:
    """A dataset, a target, a command and a machine may be called anything."""
    text = (run / "history.jsonl").read_text().replace('"demo"', json.dumps(EVIL))
    (run / "history.jsonl").write_text(text)
    content = json.loads((run / "run.json").read_text())
    content["starts"][0]["config"].update(dataset=EVIL, own_keys={EVIL: EVIL})
    content["starts"][0].update(command=[EVIL], revision=EVIL, machine={EVIL: EVIL}, end={"step": EVIL, "status": EVIL})
    (run / "run.json").write_text(json.dumps(content))
    evil_folder = run.rename(run.parent / "<script>x<!--")
    page = Page(make_report(evil_folder))
    assert_alone(page)
    assert page.tables["Options that differ from their defaults"][1][1] == EVIL
    assert "<script>x<!--" in page.text and EVIL in page.text


def test_a_run_that_has_just_begun_an_older_one_and_one_that_diverged(run: Path) -> None:
    (run / "run.json").unlink()
    for name in (*run.glob("roc-*"),):
        name.unlink()
    first = (run / "history.jsonl").read_text().splitlines()[0]
    (run / "history.jsonl").write_text(first + "\n")
    page = Page(make_report(run))
    assert "None yet." in page.text and "No end noted" in page.text
    (run / "history.jsonl").write_text(first + '\n{"kind": "train", "step": 520, "loss": NaN, "lr": Infinity}\n')
    assert "NaN" not in re.sub("<p>.*?</p>", "", make_report(run).read_text())
    (run / "history.jsonl").write_text('{"kind": "train", "step": 520, "loss": NaN, "lr": 0.1}\n')
    assert_alone(Page(make_report(run)))


def test_what_cannot_be_read_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "ends with .html" in fails(capsys, run, "--output", run / "x.pdf")
    (run / "run.json").write_text("[]")
    assert "run.json: " in fails(capsys, run)
    (run / "run.json").unlink()
    np.savez(run / "roc-demo.npz", fpr=np.zeros(2), tpr=np.zeros(2), distances=np.zeros(3), issame=np.zeros(2),
             threshold=1.0)
    assert "roc-demo.npz: distances of shape (3,)" in fails(capsys, run)
    assert "history.jsonl: cannot be read" in fails(capsys, run / "nothing")
    assert not list(run.glob("*.html"))


def test_a_full_disk_leaves_no_half_a_report(run: Path, full_disk: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with full_disk(1000):
        assert "report.html: cannot be written" in fails(capsys, run)
    assert not list(run.glob("*report*"))


def points(svg: str, kind: str = "line") -> np.ndarray:
    (path,) = re.findall(rf'<path class="{kind} c0"[^>]* d="M([^"]*)"/>', svg)
    return np.array([pair.split() for pair in re.split("[LM]", path)], float)


def test_a_line_lies_where_its_numbers_say() -> None:
    """By the ticks: what the axis says at two places says where all others are. Drawn to a tenth of a unit."""
    x, y = np.array([0.0, 10, 20, 50]), np.array([1.0, 4, 2, 3])
    svg = chart([Line("a", x, y)], "about", "step", from_zero=True)
    below, beside = r'class="middle" x="([\d.]+)"[^>]*>([\d.]+)<', r'class="end" x="45" y="([\d.]+)">([\d.]+)<'
    ticks = {float(value): float(place) for place, value in re.findall(below, svg)}
    heights = {float(value): float(place) - 4 for place, value in re.findall(beside, svg)}
    found = points(svg)
    np.testing.assert_allclose(found[:, 0], np.polyval(np.polyfit([*ticks], [*ticks.values()], 1), x), atol=0.15)
    np.testing.assert_allclose(found[:, 1], np.polyval(np.polyfit([*heights], [*heights.values()], 1), y), atol=0.15)


def test_a_long_line_keeps_its_peaks_and_a_gap_stays_one() -> None:
    y = np.sin(np.arange(20000) / 3000)
    y[12345], y[777] = 9, -9
    found = points(chart([Line("a", np.arange(20000.0), y)], "about", "step", y_axis=Axis(-9, 9)))
    assert len(found) < 600 and found[:, 1].min() == 10 and found[:, 1].max() == 212
    broken = chart([Line("a", np.arange(5.0), np.array([1, 2, np.nan, 3, 4]))], "about", "step")
    assert broken.count("M", broken.index('class="line')) == 2 and "nan" not in broken


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (20, "20"), (20000, "20k"), (1.5e6, "1.5M"), (0.001, "0.001")])
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_a_line_of_zeros_has_ticks_that_differ() -> None:
    svg = chart([Line("a", np.arange(3.0), np.zeros(3))], "about", "step", from_zero=True)
    up = re.findall(r'<text class="end" x="[^"]*" y="[^"]*">([0-9.]+)</text>', svg)
    assert len(up) > 2 and len(set(up)) == len(up)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 900), (0.5, 0.5), (0, 1e-9), (1e6, 1e6 + 1), (0.8999, 0.9)])
def test_ticks_lie_in_the_axis(low: float, high: float) -> None:
    axis = Axis(low, high)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 11 and all(axis.low - 1e-9 <= tick <= axis.high * (1 + 1e-6) + 1e-9 for tick in ticks)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
def test_a_browser_shows_it_and_asks_for_nothing(run: Path, tmp_path: Path) -> None:
    """The page with hostile names: no console message, and no request but the one for the page itself."""
    (run / "history.jsonl").write_text((run / "history.jsonl").read_text().replace('"demo"', json.dumps(EVIL)))
    make_report(run)
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, form: str, *values: object) -> None:
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(run)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
               "--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
               "--hide-scrollbars", "--window-size=390,2000", "--log-level=0", "--v=0",
               f"--log-net-log={tmp_path / 'net.json'}", f"--screenshot={tmp_path / 'page.png'}",
               f"http://127.0.0.1:{server.server_port}/report.html"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0 and (tmp_path / "page.png").stat().st_size > 10_000, done.stderr
    assert "CONSOLE" not in done.stderr
    assert asked == ["/report.html"]
    assert "example.com" not in (tmp_path / "net.json").read_text()
