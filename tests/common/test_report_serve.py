# SPDX-License-Identifier: Apache-2.0
"""The report as a page that renews itself: what its server answers, and what a headless Chromium shows."""
from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from common.report import main
from recognition.config.differences import as_json
from recognition.config.options import Config
from recognition.training.watch.report_server import ReportServer

ROOT = Path(__file__).resolve().parents[2]
EVIL = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def train(step: int) -> str:
    return json.dumps({"kind": "train", "step": step, "epoch": 0, "loss": 20 / step, "accuracy": 0.1, "lr": 0.1,
                       "images_per_second": 9.0}) + "\n"


def verification(step: int, target: str = "demo") -> str:
    return json.dumps({"kind": "verification", "step": step, "target": target, "accuracy": 0.9, "std": 0.01,
                       "xnorm": 20.0, "auc": 0.9}) + "\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The files of a run that is under way."""
    folder = tmp_path / "demo-arcface-demo"
    folder.mkdir()
    (folder / "history.jsonl").write_text(
        "".join(map(train, range(20, 1001, 20))) + "".join(map(verification, range(100, 1001, 100))))
    start = {"time": "2026-01-01T00:00:00+00:00", "step": 0, "command": ["python", "train.py"], "machine": {},
             "processes": 1, "versions": {}, "config": as_json(Config(lr=0.25, dataset="demo"))}
    (folder / "run.json").write_text(json.dumps({"starts": [start]}))
    return folder


def append(folder: Path, text: str) -> None:
    with open(folder / "history.jsonl", "a") as file:
        file.write(text)


@pytest.fixture
def server(run: Path) -> Iterator[ReportServer]:
    with serving(run) as found:
        yield found


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[ReportServer]:
    with ReportServer(folder, "127.0.0.1", 0) as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def asked(server: ReportServer, request: str) -> tuple[int, str]:
    """The status and all of the answer to a request's lines."""
    with socket.create_connection(server.server_address[:2], timeout=30) as connection:
        connection.sendall(request.replace("\n", "\r\n").encode() + b"\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    return int(answer.split()[1]), answer


def page(server: ReportServer) -> str:
    return urllib.request.urlopen(server.url, timeout=30).read().decode()


def test_the_page_has_the_report_and_grows_with_the_history(run: Path, server: ReportServer) -> None:
    assert "last record at step 1000" in page(server) and "demo-arcface-demo" in page(server)
    server._rest_until = 0.0  # it rests as long as it took to make, times five
    append(run, train(1020))
    assert "last record at step 1020" in page(server)
    assert not (run / "report.html").exists()


def test_it_is_not_made_again_while_nothing_changed_or_it_rests(run: Path, server: ReportServer) -> None:
    first = page(server)
    server._rest_until = time.monotonic() + 1000
    append(run, train(1020))
    assert page(server) == first
    with urllib.request.urlopen(server.url, timeout=30) as answer:
        tag = answer.headers["ETag"]
    assert asked(server, f"GET / HTTP/1.1\nHost: localhost\nIf-None-Match: {tag}")[0] == 304


def test_nothing_comes_from_elsewhere_and_no_other_script_runs(run: Path) -> None:
    (run / "history.jsonl").write_text((run / "history.jsonl").read_text().replace('"demo"', json.dumps(EVIL)))
    evil = run.rename(run.with_name("<script>x<!--"))
    with serving(evil) as server:
        text = page(server)
        _, answer = asked(server, "GET / HTTP/1.1\nHost: 127.0.0.1")
    assert "http:" not in text and "https:" not in text
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert text.count("<script") == 1
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall("Content-Security-Policy: (.*)\r", answer)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules == {"default-src": "'none'", "style-src": "'unsafe-inline'", "img-src": "data:",
                     "connect-src": "'self'", "script-src": f"'sha256-{digest}'", "base-uri": "'none'",
                     "form-action": "'none'", "frame-ancestors": "'none'"}
    for line in ("X-Content-Type-Options: nosniff", "X-Frame-Options: DENY", "Referrer-Policy: no-referrer",
                 "Cross-Origin-Resource-Policy: same-origin", "Cross-Origin-Opener-Policy: same-origin"):
        assert f"{line}\r\n" in answer


@pytest.mark.parametrize("path", ["/history.jsonl", "/../demo-arcface-demo/run.json", "/%2e%2e/run.json", "//run.json",
                                  "/..%5crun.json", "/run.json?/", "run.json", "http://127.0.0.1/run.json", "*"])
def test_no_other_path_is_there(server: ReportServer, path: str) -> None:
    status, answer = asked(server, f"GET {path} HTTP/1.1\nHost: localhost")
    assert status == 404 and "starts" not in answer and "default-src 'none'" in answer


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE", "<script>"])
def test_it_answers_get_alone(server: ReportServer, method: str) -> None:
    status, answer = asked(server, f"{method} / HTTP/1.1\nHost: localhost")
    assert status == 501 and "<script>" not in answer.partition("\r\n\r\n")[2]


@pytest.mark.parametrize("host, status", [
    ("localhost", 200), ("127.0.0.1:1234", 200), ("[::1]:8008", 200), ("LOCALHOST:8008", 200), ("10.1.2.3", 200),
    ("evil.example", 421), ("127.0.0.1.evil.example:8008", 421), ("localhost.evil.example", 421), ("", 421),
    ("[::1", 421), ("evil@localhost@evil.example", 421)])
def test_a_host_header_of_another_name_is_refused(server: ReportServer, host: str, status: int) -> None:
    """A page of evil.example, whose name now means this machine, is asked for under that name."""
    found, answer = asked(server, f"GET / HTTP/1.1\nHost: {host}")
    assert found == status and ("demo-arcface-demo" in answer) == (status == 200)


def test_a_request_without_a_host_is_refused(server: ReportServer) -> None:
    assert asked(server, "GET / HTTP/1.0")[0] == 421


def test_before_the_first_step_the_page_says_so(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert "history.jsonl: cannot be read: No such file" in page(server)
        server._rest_until = 0.0
        (tmp_path / "history.jsonl").write_text(train(20))
        assert "last record at step 20" in page(server)


@pytest.mark.parametrize("flags, message", [
    (["--serve", "--output", "x.html"], "--serve: found with --output or --overwrite, expected it alone"),
    (["--port", "80"], "--host, --port: found without --serve"), (["--host", "::1"], "found without --serve"),
    (["--serve", "--port", "65536"], "--port: found 65536, expected 0 to 65535"),
    (["--serve", "--host", "no such.invalid"], "--host: found 'no such.invalid', expected an address or a name of "),
    (["--serve", "--host", "192.0.2.1"], "--host, --port: found 192.0.2.1, 8008, expected an address of this machine")])
def test_what_it_cannot_do_is_one_line(run: Path, capsys: pytest.CaptureFixture[str], flags: list[str],
                                       message: str) -> None:
    assert main([str(run), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_folder_that_is_not_there_and_a_port_in_use_are_one_line(run: Path, server: ReportServer,
                                                                    capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run / "none"), "--serve"]) == 2
    assert "none: found no folder" in capsys.readouterr().err
    assert main([str(run), "--serve", "--port", str(server.server_address[1])]) == 2
    assert "a free port: Address already in use\n" in capsys.readouterr().err


@pytest.mark.parametrize("host, said", [((), 1), (("--host", "0.0.0.0"), 2)], ids=["loopback", "everywhere"])
def test_the_command_serves_until_ctrl_c(run: Path, host: tuple[str, ...], said: int) -> None:
    start = ("import signal, sys; from common.report import main\n"
             "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it\n"
             "sys.exit(main())")
    process = subprocess.Popen([sys.executable, "-c", start, str(run), "--serve", "--port", "0", *host],
                               cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(said)]
    (port,) = re.fullmatch(r"report: http://\S+:(\d+)/\n", lines[0]).groups()  # type: ignore[union-attr]
    assert ("127.0.0.1" in lines[0]) == (said == 1)
    assert lines[1:] in ([], ["--host 0.0.0.0: everyone whose machine reaches this one can read it\n"])
    assert b"step 1000" in urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30).read()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "stopped by Ctrl-C\n")


class Tab:
    """A tab of a headless browser, asked in the DevTools protocol over a pair of pipes."""

    def __init__(self, profile: Path, url: str) -> None:
        read, self._to = os.pipe()
        self._from, write = os.pipe()
        theirs = [fcntl.fcntl(handle, fcntl.F_DUPFD, 10) for handle in (read, write)]

        def at_3_and_4() -> None:
            os.dup2(theirs[0], 3)
            os.dup2(theirs[1], 4)

        self.process = subprocess.Popen(
            [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={profile}",
             "--window-size=900,600", "about:blank"],
            preexec_fn=at_3_and_4, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for handle in (read, write, *theirs):
            os.close(handle)
        self._number, self._session, self._rest, self.events = 0, "", b"", list[dict[str, Any]]()
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for part in ("Page", "Runtime", "Network", "Log"):
            self(f"{part}.enable")
        self("Page.navigate", url=url)

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        asked = {"id": self._number, "method": method, "params": parameters}
        os.write(self._to, json.dumps({**asked, **({"sessionId": self._session} if self._session else {})}).encode()
                 + b"\0")
        while True:
            while b"\0" not in self._rest:
                more = os.read(self._from, 1 << 20)
                assert more, "the browser ended"
                self._rest += more
            text, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self.events.append(answer)

    def value(self, expression: str) -> Any:
        return self("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait_for(self, expression: str) -> None:
        end = time.monotonic() + 120
        while not self.value(expression):
            assert time.monotonic() < end, (expression, self.value("document.body.innerText"))
            time.sleep(0.1)


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Callable[[str], Tab]]:
    opened: list[Tab] = []

    def open_tab(url: str) -> Tab:
        opened.append(Tab(tmp_path / "profile", url))
        return opened[-1]

    yield open_tab
    for found in opened:
        found.process.kill()
        found.process.wait()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
def test_a_browser_shows_what_is_new_and_keeps_its_place(run: Path, server: ReportServer,
                                                         tab: Callable[[str], Tab], tmp_path: Path) -> None:
    """While the history grows: what is scrolled, unfolded and selected stays, nothing is fetched from elsewhere, and
    hostile names do nothing. When the server has gone, a line says so; when it is back, the page goes on."""
    append(run, verification(1000, EVIL))
    shown = tab(server.url)
    shown.wait_for("document.body.innerText.includes('last record at step 1000')")
    shown.wait_for("document.getElementById('renewed').textContent.startsWith('Renewed at ')")
    shown.value("document.querySelectorAll('details')[0].open = true; scrollTo(0, 700); document.body.mark = 1")
    points = shown.value("document.querySelectorAll('svg').length")
    append(run, "".join(map(train, range(1020, 2001, 20))) + verification(2000))
    shown.wait_for("document.body.innerText.includes('last record at step 2000')")
    assert shown.value("[scrollY, document.querySelectorAll('details')[0].open, document.body.mark]") == [700, True, 1]
    assert shown.value("document.querySelectorAll('details')[1].open") is False
    assert shown.value("document.querySelectorAll('svg').length") == points
    assert shown.value("document.title") == run.name
    picture = base64.b64decode(shown("Page.captureScreenshot")["data"])
    (tmp_path / "page.png").write_bytes(picture)
    assert len(picture) > 10_000

    shown.value("getSelection().selectAllChildren(document.querySelector('h1'))")
    append(run, train(2020))
    time.sleep(3)  # it would renew itself after two seconds
    assert "step 2000" in shown.value("document.body.innerText")
    shown.value("getSelection().removeAllRanges()")
    shown.wait_for("document.body.innerText.includes('last record at step 2020')")

    server.shutdown()
    server.socket.close()
    shown.wait_for("document.getElementById('renewed').textContent.startsWith('No answer since ')")
    events, shown.events = shown.events, []
    assert {event["params"]["request"]["url"] for event in events
            if event["method"] == "Network.requestWillBeSent"} <= {server.url, "data:,"}
    assert not [event for event in events if event["method"] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled")]
    said = [event["params"]["entry"]["text"] for event in events if event["method"] == "Log.entryAdded"]
    assert all("ERR_CONNECTION_REFUSED" in text for text in said), said

    append(run, train(2040))
    with ReportServer(run, "127.0.0.1", server.server_address[1]) as again:  # type: ignore[arg-type]
        threading.Thread(target=again.serve_forever, args=(0.01,)).start()
        shown.wait_for("document.body.innerText.includes('last record at step 2040')")
        again.shutdown()
