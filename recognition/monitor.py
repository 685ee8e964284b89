# SPDX-License-Identifier: Apache-2.0
"""Which workers of a run go on, and which one the others wait for, by the datagrams that they send to ``launch``."""
from __future__ import annotations

import contextlib
import functools
import secrets
import socket
import time
from dataclasses import dataclass, field


@dataclass
class Monitor:
    """Hears the workers' signs of life: ``token worker exchanges`` in a datagram."""

    address: str
    token: str = field(default_factory=functools.partial(secrets.token_hex, 8))
    exchanges: dict[int, int] = field(default_factory=dict)  # by worker
    heard: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((self.address, 0))
        self.socket.setblocking(False)
        self.moved = time.monotonic()  # when a worker last went on

    @property
    def endpoint(self) -> str:
        return f"{self.address}:{self.socket.getsockname()[1]}:{self.token}"

    def listen(self) -> None:
        """Take in what has come."""
        with contextlib.suppress(BlockingIOError):
            while True:
                words = self.socket.recv(200).decode(errors="replace").split()
                if len(words) != 3 or words[0] != self.token:
                    continue
                worker, exchanges = map(int, words[1:])
                if exchanges != self.exchanges.get(worker):
                    self.moved = time.monotonic()
                self.exchanges[worker] = exchanges
                self.heard[worker] = time.monotonic()

    def hung(self, timeout: float) -> int | None:
        """The worker that the others wait for, if none has gone on for so long."""
        if not self.exchanges or time.monotonic() - self.moved < timeout:
            return None
        # Of those that have begun the fewest exchanges, the one not heard for longest: it may be stopped.
        return min(self.exchanges, key=lambda worker: (self.exchanges[worker], self.heard[worker]))
