# SPDX-License-Identifier: Apache-2.0
"""The watch over the workers of a run: the datagrams that they send to ``launch`` show which of them go on, and for
which one the others wait."""
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

SLOW_SHARE = 0.1  # a worker is slow if all others waited longer than it by this share of the time
REPEAT_SECONDS = 600.0  # until the same worker is reported slow once more
START_SECONDS = 600.0  # until the first sign of life of any worker, if the command gives them


@dataclass
class Monitor:
    """The receiver of the workers' signs of life: ``token worker exchanges waited`` in a datagram.

    ``workers``: their number; a worker that was never heard has begun no exchange. ``window``: seconds over which a
    worker is compared with the others. ``awaited``: True if the command is known to give signs of life.
    """

    address: str
    workers: int
    window: float = 60.0
    awaited: bool = False
    token: str = field(default_factory=functools.partial(secrets.token_hex, 8))
    exchanges: dict[int, int] = field(default_factory=dict)  # by worker
    heard: dict[int, float] = field(default_factory=dict)
    waited: dict[int, float] = field(default_factory=dict)  # seconds that a worker waited for the others

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
        self._told: dict[int, float] = {}  # when a worker was last reported slow
        self.begin()

    def begin(self) -> None:
        """Begin to count the time: the workers start now."""
        self.moved = time.monotonic()  # when a worker last went on
        self._since, self._before = self.moved, dict(self.waited)  # the window's begin, and ``waited`` at that time

    @property
    def endpoint(self) -> str:
        return f"{self.address}:{self.socket.getsockname()[1]}:{self.token}"

    def listen(self) -> None:
        """Read the datagrams that have come."""
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
        """The worker that the others wait for, if none has gone on for ``timeout`` seconds; else None."""
        if time.monotonic() - self.moved < self.limit(timeout):
            return None
        # Among those with the fewest exchanges, the one that was silent the longest: it may be stopped.
        return min(range(self.workers), key=lambda worker: (self.exchanges.get(worker, -1), self.heard.get(worker, 0)))

    def limit(self, timeout: float) -> float:
        """Seconds within which some worker has to go on. Before the first sign of life they are more, and infinite if
        none is awaited."""
        return timeout if self.heard else max(timeout, START_SECONDS) if self.awaited else math.inf

    def silent(self) -> list[int]:
        """The workers that were never heard, if others were."""
        return [worker for worker in range(self.workers) if worker not in self.heard] if self.heard else []

    def slow(self) -> tuple[int, float] | None:
        """The worker that held the others up in the last window, and for how many seconds of 100. None within a window,
        if there was no such worker, and if it was reported a short while ago."""
        now = time.monotonic()
        if len(self._before) < self.workers:  # the first window begins once all workers go on
            self._since, self._before = now, dict(self.waited) if all(self.exchanges.values()) else {}
        elapsed = now - self._since
        if elapsed < self.window or self.workers < 2:
            return None
        grown = {worker: self.waited[worker] - before for worker, before in self._before.items()}
        self._since, self._before = now, dict(self.waited)
        worker, share = held_up(grown, elapsed)
        if share < SLOW_SHARE or now - self._told.get(worker, -REPEAT_SECONDS) < REPEAT_SECONDS:
            return None
        self._told[worker] = now
        return worker, 100 * share


def _require_reachable(address: str) -> None:
    """Connect to an address that a socket could be bound to: a broadcast address can be bound, but belongs to no host.

    :raises OSError: if the connection fails.
    """
    if address == "0.0.0.0":
        raise OSError("it stands for all of them")
    with socket.socket() as server:
        server.bind((address, 0))
        server.listen()
        with socket.create_connection(server.getsockname(), timeout=5):
            pass  # it can be reached


def held_up(waited: Mapping[int, float], elapsed: float) -> tuple[int, float]:
    """The worker that waited least, and the share of ``elapsed`` by which the next one waited longer."""
    least, next_least = sorted(waited, key=lambda worker: waited[worker])[:2]
    return least, (waited[next_least] - waited[least]) / elapsed
