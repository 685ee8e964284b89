# SPDX-License-Identifier: Apache-2.0
"""The training loop, for every backbone, head and communicator."""
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from signal import Signals
from typing import Callable

from recognition.data.loader import Batch
from recognition.engines.interface import Backbone
from recognition.evaluation.verification import NoDirection, VerificationResult
from recognition.head.sharded import Head
from recognition.optim.schedule import Schedule
from recognition.training.bad_steps import BadSteps
from recognition.training.signals import StopRequest
from recognition.training.states.state import Progress
from recognition.training.watch.log import SilentLog, TrainingLog, best_of
from recognition.training.watch.timeline import NoTimeline, Timeline

SAVE_NEVER, SAVE_BEST, SAVE_ALWAYS, SAVE_BEST_AS_ONE = range(4)  # --ckpt
LAST = 0  # the number of the checkpoint that ends a run
NOT_FINITE, PARAMETERS, CENTRES = range(1 << 10, (1 << 10) + 3)  # what processes agree on, beside numbers of signals


@dataclass
class Trainer:
    """One run: what to train, on what, for how long, and what to do between steps."""

    backbone: Backbone
    head: Head
    batches: Iterable[Batch]
    schedule: Schedule
    verify: Callable[[], Sequence[VerificationResult]]
    save_checkpoint: Callable[[int], object]  # by number
    save_state: Callable[[Progress], object]
    agree: Callable[[int], int]  # the largest of all processes' numbers: what one decides, all do
    bad_steps: BadSteps
    log: TrainingLog | SilentLog
    progress: Progress
    verbose: int  # batches between verifications
    state_every: int  # batches between training states, 0 never
    keep_best: bool  # whether a verification that is the best so far gets a training state
    ckpt: int
    max_steps: int  # 0: no limit
    end_epoch: int
    timeline: NoTimeline | Timeline = field(default_factory=NoTimeline)
    measure_every: int = 0  # batches between measures of angles and gradients, 0 never

    def run(self) -> int:
        """Train to the end or to a signal; returns the exit status."""
        stopped = 0  # the signal that stops the run
        with StopRequest() as stop:
            if self._done():
                self.log.line(f"nothing to do: step {self.progress.step} of epoch {self.progress.epoch} is the end")
            for batch in () if self._done() else self.timeline.waits(self.batches):
                stopped = self._step(batch, stop)
                if line := self.timeline.end_step():
                    self.log.line(line)
                best = False
                if self.progress.step % self.verbose == 0 or (self._done() and self.ckpt != SAVE_NEVER):
                    best = self._verify()
                if self._done() or stopped:
                    break
                if self.state_every and (self.progress.step % self.state_every == 0 or (best and self.keep_best)):
                    self._save_state()
            return self._finish(stopped)

    def _step(self, batch: Batch, stop: StopRequest) -> int:
        """One step; returns the signal that some process got, 0 if none did."""
        progress, lr = self.progress, self.schedule(self.progress.step)
        measure = self.measure_every > 0 and (progress.step + 1) % self.measure_every == 0
        phase = self.timeline.phase
        with phase("forward"):
            features = self.backbone.forward(batch.images)
        with phase("head"):
            result = self.head.forward_backward(features, batch.labels)
        had_backward = math.isfinite(result.loss)  # in all processes or in none
        fault, stepped, lost, centre_gradient = 0 if had_backward else NOT_FINITE, False, [""], None
        undoable = had_backward and self.head.may_overflow(lr)
        # Where a bad step ends the run, W is done with it.
        moved = had_backward and (undoable or not self.bad_steps.may_leave_out)
        if had_backward:
            with phase("backward"):  # only begun: MXNet's engine works on it while the centres are updated
                self.backbone.backward(result.d_features)
            angles = self.head.target_angles() if measure else None
            if moved:
                with phase("update W"):
                    centre_gradient = self.head.step(lr, measure or undoable, undoable)
            with phase("check"):
                fault = NOT_FINITE if not self.backbone.finite() else CENTRES if not self.head.finite else 0
                gradient = self.backbone.gradient_norm() if measure else 0.0
            if not fault and self.backbone.may_overflow(lr):
                stepped, lost = True, self.backbone.try_step(lr)
                fault = PARAMETERS if lost else 0
        agreed = self.agree(fault or stop.signal or 0)
        progress.step += 1
        if agreed >= NOT_FINITE:
            what = {PARAMETERS: f"of {len(lost)} parameters, the first of them {lost[0] if lost else ''},",
                    CENTRES: "of the class centres"}.get(agreed, "")
            line = self.bad_steps(progress.step, lr, batch, features, result.loss, had_backward, what, centre_gradient)
            self.log.left_out(progress.step, line)
        else:
            if not moved:
                with phase("update W"):
                    centre_gradient = self.head.step(lr, measure)
                if not self.head.finite:
                    raise self.bad_steps.lost_centres(progress.step, lr)
            if not stepped:
                with phase("update"):
                    self.backbone.step(lr)
            self.bad_steps.in_a_row = 0
            self.log.batch(progress.step, batch.epoch, batch.index, result.loss, result.accuracy, lr)
            if measure:
                self.log.measures(progress.step, angles, gradient, centre_gradient)
        progress.epoch, progress.offset = batch.next_position
        return 0 if agreed >= NOT_FINITE else agreed

    def _verify(self) -> bool:
        """Returns whether it is the best so far."""
        self.log.pause_clock()
        progress = self.progress
        try:
            results = self.verify()
        except NoDirection as error:
            raise self.bad_steps.no_verification(error, progress.step, self.schedule(progress.step - 1)) from None
        for result in results:
            self.log.verification(progress.step, result)
        progress.verifications += 1
        # Without a verification set nothing can be compared, and what can't be compared must not be lost.
        best = bool(self.agree(not results or best_of(results) >= progress.best))
        if results and best:
            progress.best = best_of(results)
            progress.best_step, progress.best_number = progress.step, progress.verifications
        if self.ckpt == SAVE_ALWAYS or (best and self.ckpt in (SAVE_BEST, SAVE_BEST_AS_ONE)):
            number = 1 if self.ckpt == SAVE_BEST_AS_ONE else progress.verifications
            self.log.line(f"saving {number}")
            self.save_checkpoint(number)
        if results:
            self.log.line(f"[{progress.step}]Accuracy-Highest: {progress.best[0]:1.5f}")
        self.log.resume_clock()
        return bool(results) and best

    def _save_state(self) -> None:
        self.log.pause_clock()
        self.save_state(self.progress)
        self.log.resume_clock()

    def _done(self) -> bool:
        return 0 < self.max_steps <= self.progress.step or self.progress.epoch >= self.end_epoch

    def _finish(self, stopped: int) -> int:
        if line := self.timeline.end():
            self.log.line(line)
        if self.state_every:
            self.save_state(self.progress)
        if stopped and not self._done():
            went_on = "--resume goes on from here" if self.state_every else "no training state was saved"
            self.log.line(f"stopped by {Signals(stopped).name} after step {self.progress.step}; {went_on}")
            return 128 + stopped
        if self.ckpt != SAVE_NEVER:
            self.save_checkpoint(LAST)
        return 0
