# SPDX-License-Identifier: Apache-2.0
"""The report of a run as a page that renews itself: a server of this one page, by default for this machine alone."""
from __future__ import annotations

import ipaddress
import socket
import sys
import threading
import time
from base64 import b64encode
from hashlib import sha256
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any
from urllib.parse import urlsplit

from recognition.errors import UserError, one_line
from recognition.training.watch.report import report_body
from recognition.training.watch.report_page import page

REST = 5.0  # a page that took a second to make is not made again for so many
# Fetches the page and puts its content in the place of the old. What is scrolled, unfolded or selected stays so.
SCRIPT = """
"use strict";
const state = document.getElementById("renewed");
let last = "", answered = new Date();
function swap(text) {
  const fresh = new DOMParser().parseFromString(text, "text/html"), content = fresh.querySelector("main");
  const name = summary => summary.textContent.replace(/[0-9]+/g, ""), old = document.querySelector("main");
  const open = new Set([...old.querySelectorAll("details[open] > summary")].map(name));
  for (const summary of content.querySelectorAll("details > summary"))
    summary.parentNode.open = open.has(name(summary));
  const x = scrollX, y = scrollY, aside = [...old.querySelectorAll(".scroll")].map(table => table.scrollLeft);
  old.replaceWith(document.adoptNode(content));
  content.querySelectorAll(".scroll").forEach((table, i) => table.scrollLeft = aside[i] || 0);
  document.title = fresh.title;
  scrollTo(x, y);
}
async function renew() {
  try {
    if (!document.hidden && getSelection().isCollapsed) {
      const answer = await fetch("/", {cache: "no-cache"});
      if (!answer.ok) throw Error(answer.status);
      const text = await answer.text();
      if (text !== last) swap(text);
      last = text;
      answered = new Date();
      state.textContent = "Renewed at " + answered.toLocaleTimeString();
    }
  } catch { state.textContent = "No answer since " + answered.toLocaleTimeString() + ", trying again"; }
  setTimeout(renew, 2000);
}
renew();
"""
STYLE = ("#renewed { position: fixed; right: 1rem; bottom: .5rem; margin: 0; padding: .1rem .5rem; font-size: .85rem; "
         "background: var(--panel); border: 1px solid var(--rule); border-radius: 6px; }")
END = (f'<style>{STYLE}</style>\n<footer class="soft"><p id="renewed">Renews itself with JavaScript</p></footer>\n'
       f"<script>{SCRIPT}</script>\n")
POLICY = ("default-src 'none'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; script-src "
          f"'sha256-{b64encode(sha256(SCRIPT.encode()).digest()).decode()}'")  # no other script runs
HEADERS = {"Content-Security-Policy": f"{POLICY}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
           "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
           "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
           "Cache-Control": "no-cache"}


class ReportServer(ThreadingHTTPServer):
    """A server of the report of the run in ``folder``, at ``/`` and nowhere else."""

    daemon_threads = True

    def __init__(self, folder: Path, host: str, port: int) -> None:
        """:raises UserError: if there is no such folder or host, or if the port is taken."""
        if not folder.is_dir():
            raise UserError(f"{folder}: found no folder, expected that of a run's checkpoints")
        try:
            self.address_family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        except (OSError, UnicodeError) as error:
            raise UserError(f"--host: found {host!r}, expected an address or a name of this machine: {error}") from None
        try:
            super().__init__(address[:2], Handler)  # type: ignore[arg-type]
        except OSError as error:
            raise UserError(f"--host, --port: found {host}, {port}, expected an address of this machine and a free "
                            f"port: {error.strerror}") from error
        self._folder, self._host = folder, host.lower()
        self._lock, self._stamp, self._content, self._rest_until = threading.Lock(), [(".", 0, 0)], b"", 0.0

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's asks a name server for this machine's name as well

    @property
    def loopback(self) -> bool:
        """True if only this machine reaches the server."""
        return ipaddress.ip_address(self.server_address[0]).is_loopback  # type: ignore[arg-type]

    @property
    def url(self) -> str:
        host, port = str(self.server_address[0]), self.server_address[1]
        shown = socket.gethostname() if ipaddress.ip_address(host).is_unspecified else host
        return f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"

    def is_known(self, host: str) -> bool:
        """True for a Host header with an address, or with a name of this machine. Any other is of a page elsewhere,
        whose name was turned to this machine (DNS rebinding) so that its scripts may read what is here."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name in ("localhost", self._host, socket.gethostname().lower()):
                return True
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def page(self) -> bytes:
        """The page, made anew if the run's files have changed since."""
        with self._lock:
            files = [self._folder / "history.jsonl", self._folder / "run.json", *sorted(self._folder.glob("roc-*.npz"))]
            stamp = [(path.name, about.st_mtime_ns, about.st_size) for path in files if path.exists()
                     for about in [path.stat()]]
            if stamp != self._stamp and time.monotonic() >= self._rest_until:
                begin = time.monotonic()
                self._content, self._stamp = live_page(self._folder).encode(), stamp
                self._rest_until = time.monotonic() + REST * (time.monotonic() - begin)
            return self._content

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):  # the reader went away
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers GET / from a Host that is known."""

    server: ReportServer
    timeout = 30  # seconds for a request
    server_version, sys_version = "report", ""

    def do_GET(self) -> None:
        if not self.server.is_known(self.headers.get("Host", "")):
            self.send_error(421, explain="The Host header names another machine.")
        elif self.path.partition("?")[0] != "/":
            self.send_error(404)
        else:
            content = self.server.page()
            tag = f'"{sha256(content).hexdigest()[:32]}"'
            same = self.headers.get("If-None-Match") == tag
            self.send_response(304 if same else 200)
            self.send_header("ETag", tag)
            if not same:
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(b"" if same else content)

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a page asks every two seconds."""


def live_page(folder: Path) -> str:
    """The report with the script that renews it; where there is none yet, the reason."""
    name = folder.resolve().name
    try:
        body = report_body(folder)
    except Exception as error:  # half a file of another program's must not end the page
        body = [f"<header><h1>{escape(name)}</h1><p>{escape(one_line(error))}</p></header>"]
    return page(name, body, POLICY, END)
