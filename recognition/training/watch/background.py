# SPDX-License-Identifier: Apache-2.0
"""Numbers of a run for a service on a network, sent by a thread of their own: the run never waits for an answer."""
from __future__ import annotations

import logging
import threading
import time
from collections import deque
from itertools import islice
from typing import Any, Callable, NamedTuple, Protocol

import numpy as np

from recognition.errors import one_line
from recognition.training.watch.scalars import DEGREES, named

MOST_WAITING = 100_000  # records, some 50 MB
MOST_AT_ONCE = 100  # records; MLflow takes 1000 numbers
PAUSE = 30.0  # seconds between tries
PATIENCE = 30.0  # seconds that the end of a run waits
_logger = logging.getLogger(__name__)


class Point(NamedTuple):
    """Numbers of a step by their names, or the ``counts`` (90,) of a histogram over DEGREES by its name."""

    step: int
    time: float  # seconds since 1970
    numbers: dict[str, float]
    counts: dict[str, np.ndarray]


class Service(Protocol):
    """A service that keeps numbers. Its methods may take long, and may raise anything: they are tried again."""

    flag: str

    def start(self) -> str:
        """Begin a run there, or go on with it; returns a line about where it is."""

    def send(self, points: list[Point]) -> None: ...

    def end(self, status: int) -> None: ...


class Background:
    """The thread of a service. What it cannot send waits, up to MOST_WAITING records; a line says when it fails, and at
    the end another how many records it never took. It raises nothing."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._points: deque[Point] = deque()  # a point leaves when it is sent
        self._changed = threading.Condition()
        self._closed, self._failing, self._lost, self._status = False, False, 0, 0
        self._thread = threading.Thread(target=self._work, name=service.flag, daemon=True)
        self._thread.start()

    def write(self, kind: str, step: int, **values: Any) -> None:
        self._put(Point(step, time.time(), named(kind, values), {}))

    def histogram(self, tag: str, step: int, degrees: np.ndarray) -> None:
        self._put(Point(step, time.time(), {}, {tag: np.histogram(degrees, DEGREES)[0]}))

    def close(self, status: int) -> None:
        with self._changed:
            self._closed, self._status = True, status
            self._changed.notify()
        self._thread.join(PATIENCE)
        if left := len(self._points) + self._lost:
            _logger.warning("%s: %d records were not sent; history.jsonl has them", self._service.flag, left)

    def _put(self, point: Point) -> None:
        with self._changed:
            if len(self._points) < MOST_WAITING:
                self._points.append(point)
            else:
                self._lost += 1
            self._changed.notify()

    def _work(self) -> None:
        if not self._insist(lambda: _logger.info("%s: %s", self._service.flag, self._service.start())):
            return
        while points := self._waiting():
            if not self._insist(lambda sent=points: self._service.send(sent)):  # type: ignore[misc]
                return
            with self._changed:
                for _ in points:
                    self._points.popleft()
        self._insist(lambda: self._service.end(self._status))

    def _waiting(self) -> list[Point]:
        """The next points, as soon as there are some; none at the end of the run."""
        with self._changed:
            self._changed.wait_for(lambda: self._points or self._closed)
            return list(islice(self._points, MOST_AT_ONCE))

    def _insist(self, work: Callable[[], None]) -> bool:
        """Call ``work`` until it does not fail; returns False if the run ends before."""
        while True:
            try:
                work()
            except Exception as error:  # a service's package may raise anything, and must not end a run
                self._say_once(error)
                with self._changed:
                    if self._changed.wait_for(lambda: self._closed, PAUSE):
                        return False
            else:
                if self._failing:
                    _logger.info("%s: answers again", self._service.flag)
                self._failing = False
                return True

    def _say_once(self, error: Exception) -> None:
        if not self._failing:
            _logger.warning("%s: %s; the run goes on, and tries again every %g s", self._service.flag, brief(error),
                            PAUSE)
        self._failing = True


def brief(error: Exception) -> str:
    """The first line of an error, or its type if it has none."""
    return one_line((str(error).strip().splitlines() or [type(error).__name__])[0][:300])
