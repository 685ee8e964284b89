# SPDX-License-Identifier: Apache-2.0
"""A profile of some steps: the engine's profiler, with the loop's own phases beside the operators."""
from __future__ import annotations

import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from recognition.engines.interface import Profiler
from recognition.io.files import write_whole

WARM_UP_STEPS = 3  # these allocate, compile and choose algorithms
Item = TypeVar("Item")


class NoTimeline:
    """A timeline that measures nothing."""

    def phase(self, name: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def waits(self, items: Iterable[Item]) -> Iterable[Item]:
        return items

    def end_step(self) -> str:
        return ""

    def end(self) -> str:
        return ""


class Timeline:
    """A profile of ``steps`` steps after the first few, in ``profile.json`` and ``profile.txt`` in ``folder``.

    The first file is a trace in Chrome's format (chrome://tracing, Perfetto), the second a table of phases and
    operators. The time of a phase is that of the loop: the engine may still work on it later.
    """

    def __init__(self, folder: Path, steps: int, profiler: Profiler) -> None:
        self.trace, self.table, self._steps = folder / "profile.json", folder / "profile.txt", steps
        self._done, self._running = 0, False
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._profiler = profiler

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the block as the phase ``name``."""
        if not self._running:
            yield
            return
        start = time.perf_counter()
        try:
            with self._profiler.phase(name):
                yield
        finally:
            self._seconds[name].append(time.perf_counter() - start)

    def waits(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield ``items``, and measure the time until each is there as the phase ``data``."""
        iterator = iter(items)
        while True:
            with self.phase("data"):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def end_step(self) -> str:
        """Count a step, at its end. After the last one the profile ends: returns the line of :meth:`end`."""
        self._done += 1
        if self._done == WARM_UP_STEPS:
            self._profiler.wait()
            self._profiler.start(self.trace)
            self._running, self._start = True, time.perf_counter()
        return self.end() if self._done == WARM_UP_STEPS + self._steps else ""

    def end(self) -> str:
        """Write the profile, if it is running, and return a line about it; else return an empty text."""
        if not self._running:
            return ""
        self._profiler.wait()
        elapsed, self._running = time.perf_counter() - self._start, False
        operators = self._profiler.stop()
        write_whole(self.table, self._phases(elapsed) + "\n" + operators)
        steps = self._done - WARM_UP_STEPS
        return f"profile of {steps} steps: {self.trace} (Chrome's trace format), {self.table}"

    def _phases(self, elapsed: float) -> str:
        rows = [f"{name:12}{1000 * statistics.median(values):12.3f}{sum(values) / elapsed:10.1%}"
                for name, values in self._seconds.items()]
        return "\n".join([f"{'phase':12}{'median ms':>12}{'of time':>10}", *rows, ""])
