# SPDX-License-Identifier: Apache-2.0
"""``training.log``: what a run says, with times and the time left, in lines as arcface_torch writes them."""
from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recognition.io.files import regular, write_whole, writing
from recognition.optim.loss_scale import LossScale

FILE = "training.log"
_LOGGERS = "recognition"  # whose messages, such as images left out, belong to the run's log
_HOUR = 3600.0


class NoTextLog:
    """A text log that is not wanted: nothing is written."""

    def line(self, text: str) -> None: ...

    def speed(self, step: int, epoch: int, loss: float, lr: float, speed: float) -> None: ...

    def close(self) -> None: ...


class TextLog:
    """A text file to which lines are appended, each with its time. It stays whole over all starts of a run."""

    def __init__(self, path: Path, step: int, total_steps: int | None, options: Mapping[str, Any],
                 scale: LossScale | None = None) -> None:
        """:param step: the step that the run resumes from; ``total_steps``: its last, None if it has no end.
        :param options: all options, which the first lines tell.
        :param scale: the loss scale of float16, whose value the lines tell.
        """
        self._path, self._first, self._total, self._scale = path, step, total_steps, scale
        self._began = time.perf_counter()
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                with open(path, "rb", opener=regular) as before:  # a copy of the run's folder may have it by a link
                    write_whole(path, before.read())
            self._file = open(path, "a", encoding="utf-8", errors="backslashreplace", opener=regular)  # noqa: SIM115
        self._handler = _Handler(self)
        logging.getLogger(_LOGGERS).addHandler(self._handler)
        self.line(f"start after step {step}" if step else "start")
        for key, value in options.items():
            self.line(f": {key:30} {value}")

    def speed(self, step: int, epoch: int, loss: float, lr: float, speed: float) -> None:
        """Write the means since the last such line: loss, images a second. The hours left are those of the steps left,
        as fast as the steps since the start with all that came between them."""
        scale = f"   Fp16 Grad Scale: {self._scale.value:.0f}" if self._scale else ""
        left = ""
        if self._total is not None:
            seconds = (time.perf_counter() - self._began) / max(step - self._first, 1)
            left = f"   Required: {seconds * max(self._total - step, 0) / _HOUR:.1f} hours"
        self.line(f"Speed {speed:.2f} samples/sec   Loss {loss:.4f}   LearningRate {lr:.6f}   Epoch: {epoch}   "
                  f"Global Step: {step}{scale}{left}")

    def line(self, text: str) -> None:
        """Write a line with the time before it."""
        now = time.time()
        stamp = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(now))},{int(now * 1000) % 1000:03d}"
        with writing(self._path):
            self._file.write(f"Training: {stamp}-{' '.join(text.splitlines())}\n")
            self._file.flush()

    def close(self) -> None:
        logging.getLogger(_LOGGERS).removeHandler(self._handler)
        with writing(self._path):
            self._file.close()


class _Handler(logging.Handler):
    """Hands what the program logs to a text log."""

    def __init__(self, log: TextLog) -> None:
        super().__init__(logging.INFO)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.line(record.getMessage())
