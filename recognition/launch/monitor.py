# SPDX-License-Identifier: Apache-2.0
"""Which workers of a run go on, and which one the others wait for, by the datagrams that they send to ``launch``."""
from __future__ import annotations

import contextlib
import functools
import math
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from recognition.errors import UserError

SLOW = 0.1  # of the time, which all others waited longer than it did: then it is slow
AGAIN = 600.0  # seconds until the same worker is called slow once more
START = 600.0  # seconds in which some worker has to be heard, where signs of life are awaited


@dataclass
class Monitor:
    """Hears the workers' signs of life: ``token worker exchanges waited`` in a datagram.

    ``workers``: how many there are; one that was never heard has begun no exchange. ``window``: seconds over which a
    worker is compared with the others. ``awaited``: whether the command is one that gives signs of life.
    """

    address: str
    workers: int
    window: float = 60.0
    awaited: bool = False
    token: str = field(default_factory=functools.partial(secrets.token_hex, 8))
    exchanges: dict[int, int] = field(default_factory=dict)  # by worker
    heard: dict[int, float] = field(default_factory=dict)
    waited: dict[int, float] = field(default_factory=dict)  # seconds, for the others

    def __post_init__(self) -> None:
        """:raises UserError: if the address is not one of this host."""
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self.socket.bind((self.address, 0))
            _require_reachable(self.socket.getsockname()[0])
        except (OSError, UnicodeError) as error:
            self.socket.close()
            raise UserError(f"--address: found {self.address}, expected an address of this host: {error}") from None
        self.socket.setblocking(False)
        self.moved = time.monotonic()  # when a worker last went on
        self._since, self._before = self.moved, dict(self.waited)  # the window's begin, and what was waited by then
        self._told: dict[int, float] = {}  # when a worker was called slow

    @property
    def endpoint(self) -> str:
        return f"{self.address}:{self.socket.getsockname()[1]}:{self.token}"

    def listen(self) -> None:
        """Take in what has come."""
        with contextlib.suppress(BlockingIOError):
            while True:
                words = self.socket.recv(200).decode(errors="replace").split()
                if len(words) != 4 or words[0] != self.token:
                    continue
                worker, exchanges = map(int, words[1:3])
                if exchanges != self.exchanges.get(worker):
                    self.moved = time.monotonic()
                self.exchanges[worker], self.waited[worker] = exchanges, float(words[3])
                self.heard[worker] = time.monotonic()

    def hung(self, timeout: float) -> int | None:
        """The worker that the others wait for, if none has gone on for so long."""
        if time.monotonic() - self.moved < self.limit(timeout):
            return None
        # Of those that have begun the fewest exchanges, the one not heard for longest: it may be stopped.
        return min(range(self.workers), key=lambda worker: (self.exchanges.get(worker, -1), self.heard.get(worker, 0)))

    def limit(self, timeout: float) -> float:
        """Seconds in which some worker has to go on; longer before any was heard, and endless if none need be."""
        return timeout if self.heard else max(timeout, START) if self.awaited else math.inf

    def silent(self) -> list[int]:
        """The workers that were never heard, where others were."""
        return [worker for worker in range(self.workers) if worker not in self.heard] if self.heard else []

    def slow(self) -> tuple[int, float] | None:
        """At the end of a window, the worker that held the others up in it, and for how many seconds of 100."""
        now = time.monotonic()
        if len(self._before) < self.workers:  # the first window begins when all go on
            self._since, self._before = now, dict(self.waited) if all(self.exchanges.values()) else {}
        elapsed = now - self._since
        if elapsed < self.window or self.workers < 2:
            return None
        grown = {worker: self.waited[worker] - before for worker, before in self._before.items()}
        self._since, self._before = now, dict(self.waited)
        worker, share = held_up(grown, elapsed)
        if share < SLOW or now - self._told.get(worker, -AGAIN) < AGAIN:
            return None
        self._told[worker] = now
        return worker, 100 * share


def _require_reachable(address: str) -> None:
    """:raises OSError: for an address that can be bound to, but is that of no host, as those of broadcasts."""
    if address == "0.0.0.0":
        raise OSError("it stands for all of them")
    with socket.socket() as server:
        server.bind((address, 0))
        server.listen()
        with socket.create_connection(server.getsockname(), timeout=5):
            """It can be reached from here."""


def held_up(waited: Mapping[int, float], elapsed: float) -> tuple[int, float]:
    """The worker that waited least, and the share of the time that each of the others waited more at least."""
    first, second = sorted(waited, key=lambda worker: waited[worker])[:2]
    return first, (waited[second] - waited[first]) / elapsed
