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
from recognition.head.sharded import Head, on_host
from recognition.optim.schedule import Schedule
from recognition.processes.communicator import Communicator, agree, largest
from recognition.training.bad_steps import BadSteps
from recognition.training.signals import StopRequest
from recognition.training.states.state import Progress
from recognition.training.teacher import Distillation
from recognition.training.watch.log import SilentLog, TrainingLog, best_of
from recognition.training.watch.timeline import NoTimeline, Timeline

SAVE_NEVER, SAVE_BEST, SAVE_ALWAYS, SAVE_BEST_AS_ONE = range(4)  # --ckpt
LAST = 0  # the number of the checkpoint that ends a run


@dataclass
class Trainer:
    """One run: the parts that train, their data, the run's length, and the work between steps."""

    backbone: Backbone
    head: Head
    batches: Iterable[Batch]
    schedule: Schedule
    verify: Callable[[], Sequence[VerificationResult]]
    save_checkpoint: Callable[[int], object]  # by number
    save_state: Callable[[Progress], object]
    communicator: Communicator
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
    distillation: Distillation | None = None  # of a teacher
    look_ahead: Callable[[], object] | None = None  # tells the head of the batch after the coming one
    copy_ahead: Callable[[], object] | None = None  # and the backbone, which may copy its images beside the step

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
        """Take one step; returns the signal that some process got until now, 0 if none did."""
        progress, lr, phase = self.progress, self.schedule(self.progress.step), self.timeline.phase
        if self.look_ahead:
            with phase("look ahead"):
                self.look_ahead()
        with phase("forward"):
            features_BD = self.backbone.forward(batch.images)
        if self.copy_ahead:
            with phase("copy ahead"):
                self.copy_ahead()
        with phase("head"):
            result = self.head.forward_backward(features_BD, batch.labels)
        finite = math.isfinite(result.loss)  # in all processes or in none
        if finite:
            d_features = result.d_features
            if self.distillation:
                with phase("teacher"):
                    d_features = self.distillation.added(d_features, features_BD, batch)
            with phase("backward"):
                self.backbone.backward(d_features)
            with phase("check"):
                finite = self.backbone.finite()
        verdict = agree(self.communicator, finite, stop.signal or 0)
        progress.step += 1
        if verdict.finite:
            self._update(lr)
            self.bad_steps.in_a_row = 0
            self.log.batch(progress.step, batch.epoch, batch.index, result.loss, result.accuracy, lr)
        else:
            line = self.bad_steps.leave_out(progress.step, lr, batch, on_host(features_BD), result.loss)
            self.log.left_out(progress.step, line)
        progress.epoch, progress.offset = batch.next_position
        return verdict.signal

    def _update(self, lr: float) -> None:
        """Update class centres and parameters. Measure angles and gradients first: the update overwrites them."""
        step, phase = self.progress.step, self.timeline.phase
        measure = self.measure_every > 0 and step % self.measure_every == 0
        angles = self.head.target_angles() if measure else None
        gradient = self.backbone.gradient_norm() if measure else 0.0
        with phase("update W"):
            centre_gradient = self.head.step(lr, measure)
        with phase("update"):
            self.backbone.step(lr)
        if measure:
            self.log.measures(step, angles, gradient, centre_gradient)

    def _verify(self) -> bool:
        """Verify and save a checkpoint if it is due; returns True if this verification is the best so far."""
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
        best = bool(largest(self.communicator, not results or best_of(results) >= progress.best))
        if results and best:
            progress.best = best_of(results)
            progress.best_step, progress.best_number = progress.step, progress.verifications
        if self.ckpt == SAVE_ALWAYS or (best and self.ckpt in (SAVE_BEST, SAVE_BEST_AS_ONE)):
            number = 1 if self.ckpt == SAVE_BEST_AS_ONE else progress.verifications
            self._require_sound()
            self.log.line(f"saving {number}")
            self.save_checkpoint(number)
        if results:
            self.log.line(f"[{progress.step}]Accuracy-Highest: {progress.best[0]:1.5f}")
        self.log.resume_clock()
        return bool(results) and best

    def _require_sound(self) -> None:
        self.bad_steps.require_sound(self.progress.step, self.schedule(max(self.progress.step - 1, 0)))

    def _save_state(self) -> None:
        self.log.pause_clock()
        self._require_sound()
        self.save_state(self.progress)
        self.log.resume_clock()

    def _done(self) -> bool:
        return 0 < self.max_steps <= self.progress.step or self.progress.epoch >= self.end_epoch

    def _finish(self, stopped: int) -> int:
        if line := self.timeline.end():
            self.log.line(line)
        self._require_sound()
        if self.state_every:
            self.save_state(self.progress)
        if stopped and not self._done():
            went_on = "--resume goes on from here" if self.state_every else "no training state was saved"
            self.log.line(f"stopped by {Signals(stopped).name} after step {self.progress.step}; {went_on}")
            return 128 + stopped
        if self.ckpt != SAVE_NEVER:
            self.save_checkpoint(LAST)
        return 0
