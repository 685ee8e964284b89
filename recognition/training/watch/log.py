# SPDX-License-Identifier: Apache-2.0
"""The output of a run while it trains: the legacy lines, a progress bar on a terminal, and the history."""
from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any, Callable

import numpy as np

from recognition.evaluation.verification import VerificationResult
from recognition.progress import clear_of_bars, progress
from recognition.training.watch.history import History
from recognition.training.watch.scalars import Scalars
from recognition.training.watch.text_log import NoTextLog, TextLog


class TrainingLog:
    """The log of the first process. Loss and accuracy in a speed line are means over the batches since the one before.

    Epochs of at most ``frequent`` batches have no speed line, as in the recipes; the history has a record at the end of
    each, and of the last if the run ends in it. Where the length of epochs is unknown, as with triplets, the record is
    at the start of an epoch, once there are more than ``frequent`` batches since the one before.
    """

    def __init__(self, history: History, frequent: int, batch_images: int, total_steps: int | None,
                 step: int, with_loss: bool = True, since_line: list[float] | None = None,
                 watchers: Sequence[Scalars] = (), text: TextLog | NoTextLog | None = None,
                 batches_an_epoch: float = math.inf, also: Callable[[], dict[str, float]] = dict) -> None:
        """:param batch_images: images of a global batch; ``total_steps``: steps of the run, None if it has no end.
        :param since_line: sums of loss and accuracy since the last speed line, and the number of batches. It is updated
            in place and saved in states, so that a resumed run has the line of the whole interval.
        :param with_loss: True if speed lines contain the loss (``ce_loss``).
        :param watchers: places that get the same records as the history, such as TensorBoard's file.
        :param text: the text file, which gets all lines.
        :param batches_an_epoch: infinite if unknown.
        :param also: gives further numbers of the batches since it was last called, for the history.
        """
        self._watchers, self._text = watchers, text or NoTextLog()
        self._with_loss, self._also = with_loss, also
        self._since_line = [0.0, 0.0, 0] if since_line is None else since_line
        self._history, self._frequent, self._batch_images = history, frequent, batch_images
        self._total_steps, self._batches_an_epoch = total_steps, batches_an_epoch
        self._bar = progress(total=total_steps, initial=step, unit="step", dynamic_ncols=True, smoothing=0.05)
        self._start_interval()

    def _start_interval(self) -> None:
        self._batches, self._busy = 0, 0.0
        self.resume_clock()

    def pause_clock(self) -> None:
        """Stop the clock of the speed lines, for verification and saving."""
        self._busy += time.perf_counter() - self._since

    def resume_clock(self) -> None:
        self._since = time.perf_counter()

    def batch(self, step: int, epoch: int, index: int, loss: float, accuracy: float, lr: float) -> None:
        """Log batch ``index`` of an epoch, the ``step``-th of the run."""
        self._since_line[:] = [old + new for old, new in zip(self._since_line, (loss, accuracy, 1))]
        self._batches += 1
        self._bar.set_postfix_str(f"epoch {epoch} loss {loss:.3f} lr {lr:g}", refresh=False)
        self._bar.update()
        if step % 1000 == 0:
            self.line(f"lr-batch-epoch: {lr:g} {index} {epoch}")
        if index and index % self._frequent == 0:
            self._speed_line(step, epoch, index, lr)
        elif self._ends_short_epoch(step, index):
            self._record(step, epoch, lr)

    def _ends_short_epoch(self, step: int, index: int) -> bool:
        """True where the history gets a record of epochs that are too short for a speed line."""
        if math.isinf(self._batches_an_epoch):
            return not index and self._since_line[2] > self._frequent
        return self._batches_an_epoch <= self._frequent and (
            index + 1 == self._batches_an_epoch or step == self._total_steps)

    def left_out(self, step: int, why: str) -> None:
        """Log that the ``step``-th batch of the run changed nothing."""
        self._bar.update()
        self.line(why)
        self._history.write("left_out", step, why=why)

    def _speed_line(self, step: int, epoch: int, index: int, lr: float) -> None:
        loss, accuracy, speed = self._record(step, epoch, lr)
        with clear_of_bars():
            logging.info("Epoch[%d] Batch [%d-%d]\tSpeed: %.2f samples/sec\tacc=%f%s", epoch, index - self._frequent,
                         index, speed, accuracy, f"\tlossvalue={loss:f}" if self._with_loss else "")

    def _record(self, step: int, epoch: int, lr: float) -> tuple[float, float, float]:
        """Put the means since the last record into the history: loss, accuracy, images a second. Returns them."""
        self.pause_clock()
        loss, accuracy = (total / self._since_line[2] for total in self._since_line[:2])
        speed = self._batches * self._batch_images / max(self._busy, 1e-9)
        self._since_line[:] = [0.0, 0.0, 0]
        self._write("train", step, epoch=epoch, loss=loss, accuracy=accuracy, lr=lr, images_per_second=speed,
                    **self._also())
        self._text.speed(step, epoch, loss, lr, speed)
        self._start_interval()
        return loss, accuracy, speed

    def verification(self, step: int, result: VerificationResult) -> None:
        self.line(f"[{result.name}][{step}]XNorm: {result.xnorm:f}")
        self.line(f"[{result.name}][{step}]Accuracy-Flip: {result.mean:1.5f}+-{result.std:1.5f}")
        self._write("verification", step, target=result.name, accuracy=result.mean, std=result.std,
                    xnorm=result.xnorm, auc=result.auc)

    def measures(self, step: int, angles: np.ndarray | None, gradient: float, centre_gradient: float | None) -> None:
        """Log the angles (B,) between features and the centres of their classes, in radians, and norms of gradients."""
        centres = {} if centre_gradient is None else {"centres": centre_gradient}
        self._write("gradient_norm", step, backbone=gradient, **centres)
        if angles is not None:
            degrees = np.degrees(angles)
            low, median, high = np.percentile(degrees, [5, 50, 95])
            self._write("angle", step, mean=float(degrees.mean()), p5=float(low), median=float(median), p95=float(high))
            for watcher in self._watchers:
                watcher.histogram("angles", step, degrees)

    def _write(self, kind: str, step: int, **values: Any) -> None:
        self._history.write(kind, step, **values)
        for watcher in self._watchers:
            watcher.write(kind, step, **values)

    def line(self, text: str) -> None:
        """Print a plain line on standard output."""
        self._text.line(text)
        with clear_of_bars():
            print(text, flush=True)

    def close(self, status: int = 0) -> None:
        """End with the run's exit status."""
        self._bar.close()
        for watcher in self._watchers:
            watcher.close(status)
        self._text.close()
        self._history.close()


class SilentLog:
    """The log of all processes but the first: it is silent."""

    def batch(self, step: int, epoch: int, index: int, loss: float, accuracy: float, lr: float) -> None: ...

    def left_out(self, step: int, why: str) -> None: ...

    def verification(self, step: int, result: VerificationResult) -> None: ...

    def measures(self, step: int, angles: np.ndarray | None, gradient: float,
                 centre_gradient: float | None) -> None: ...

    def line(self, text: str) -> None: ...

    def pause_clock(self) -> None: ...

    def resume_clock(self) -> None: ...

    def close(self, status: int = 0) -> None: ...


def best_of(results: Sequence[VerificationResult]) -> tuple[float, float]:
    """The key by which verifications are compared: the last target's accuracy, then the sum over all targets."""
    return results[-1].mean, sum(result.mean for result in results)
