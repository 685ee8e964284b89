# SPDX-License-Identifier: Apache-2.0
"""Handlers of SIGTERM and Ctrl-C: a run ends between two steps, with its state saved; a second Ctrl-C ends it at once.
"""
from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

from recognition.interrupts import outside_operators


def end_at_sigterm() -> None:
    """Make SIGTERM end the program like an error until training begins, so that it stops what it has started."""

    def end(number: int, _frame: FrameType | None) -> None:
        print("stopped by SIGTERM", file=sys.stderr, flush=True)
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, outside_operators(end))


class StopRequest:
    """A context in which both signals are only noted, in ``signal``."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, outside_operators(self._note))
        return self

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
