# SPDX-License-Identifier: Apache-2.0
"""A week of training in minutes: the real loop, schedule, states, checkpoints and logs around parts that take no time.

    python -m faults.week                           # a million steps
    python -m faults.week --steps 50000 --record

Backbone and head are stand-ins that count; everything else is the trainer's own: learning rates by step, verification
and checkpoint every 2,000 steps, states every 2,000 (of which the last stay), speed lines every 20, the history. Steps
with a loss of NaN come now and then, and are left out. The run is stopped by a signal in the middle of the week, and
goes on.
"""
from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from faults.reliability import Row, harness_parser, report
from recognition.data.loader import Batch
from recognition.data.order import Position
from recognition.engines.interface import BackboneState
from recognition.evaluation.roc import Roc
from recognition.evaluation.verification import VerificationResult
from recognition.head.shard import Shard
from recognition.head.sharded import HeadResult
from recognition.optim.loss_scale import LossScale
from recognition.optim.schedule import Schedule, StepSchedule
from recognition.processes.communicator import SingleProcess
from recognition.training.bad_steps import KEPT_FILES, BadSteps
from recognition.training.states.find import find_state
from recognition.training.states.folder import saved_states
from recognition.training.states.save import save_state
from recognition.training.states.state import Progress
from recognition.training.trainer import SAVE_BEST_AS_ONE, Trainer
from recognition.training.watch.history import History
from recognition.training.watch.log import TrainingLog

VERBOSE, FREQUENT, EPOCH = 2000, 20, 45000  # batches
BAD_EVERY = 9973  # one step in so many has no finite loss
HISTORY_BYTES = 4 << 20  # limit of the history, low enough for a week's to reach it
ONE = np.zeros((1, 4), np.float32)


class CountingBackbone:
    """A backbone that counts steps and left-out steps, and keeps the first and the last step of each learning rate."""

    loss_scale: LossScale | None = None
    startup_line = ""

    def __init__(self, done: int) -> None:
        self.done, self.steps, self.left_out = done, 0, 0
        self.rates: dict[float, list[int]] = {}

    def buffer(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.empty(shape, np.uint8)

    def coming(self, images: np.ndarray) -> None: ...

    def forward(self, images: np.ndarray) -> np.ndarray:
        self.done += 1
        return ONE

    def backward(self, d_features: np.ndarray) -> None: ...

    def finite(self) -> bool:
        return True

    def gradient_norm(self) -> float:
        return 1.0

    def sound(self) -> bool:
        return True

    def step(self, lr: float) -> None:
        self.steps += 1
        self.rates.setdefault(lr, [self.done, 0])[1] = self.done

    def leave_out(self) -> None:
        self.left_out += 1

    def norms(self) -> tuple[dict[str, float], dict[str, float]]:
        return {"w": 1.0}, {"w": 1.0}

    def embed(self, images: np.ndarray) -> np.ndarray:
        return ONE

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def parameters(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        return {"w": ONE}, {}

    def state(self) -> BackboneState:
        return BackboneState({"w": ONE}, {"w": ONE}, [{}])

    def difference(self, state: BackboneState) -> str:
        return ""

    def load(self, state: BackboneState, steps: int) -> None:
        self.done = steps


class CountingHead:
    """A head whose loss falls, and is sometimes not finite."""

    def __init__(self, done: int) -> None:
        self.done, self.steps, self.left_out = done, 0, 0
        self.shards: list[Shard] = []

    def forward_backward(self, features: np.ndarray, labels: np.ndarray) -> HeadResult:
        self.done += 1
        return HeadResult(float("nan") if self.done % BAD_EVERY == 0 else 1 / self.done, 0.5, ONE)

    def target_angles(self) -> np.ndarray | None:
        return None

    finite = True

    def step(self, lr: float, measure: bool = False) -> float | None:
        self.steps += 1
        return None

    def leave_out(self) -> None:
        self.left_out += 1


def batches(start: Position) -> Iterator[Batch]:
    """Yield batches of one image without end."""
    epoch, offset = start
    image, number = np.zeros((1, 3, 1, 1), np.uint8), np.zeros(1, np.int64)
    while True:
        following = Position(epoch, offset + 1) if offset + 1 < EPOCH else Position(epoch + 1, 0)
        yield Batch(image, number, number + offset, epoch, offset, following)
        epoch, offset = following


class Outcome(NamedTuple):
    status: int
    progress: Progress
    backbone: CountingBackbone
    head: CountingHead
    checkpoints: list[int]  # the numbers they were saved under


def run(folder: Path, steps: int, stop_at: int, schedule: Schedule) -> Outcome:
    """Run to the end, or to a signal in the first verification at or after step ``stop_at``."""
    saved = find_state(folder / "state", "auto")
    progress, alone = saved.progress if saved else Progress(), SingleProcess()
    backbone, head = CountingBackbone(progress.step), CountingHead(progress.step)
    scores = np.random.RandomState(progress.step)
    numbers: list[int] = []

    def verify() -> list[VerificationResult]:
        if progress.step >= stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        none, accuracies = np.zeros(0), np.full(10, scores.random_sample())
        return [VerificationResult(none, none, none, none, accuracies, none, Roc(none, none, none), "week", 20.0)]

    def save(now: Progress) -> None:
        save_state(folder / "state", now, backbone.state(), ())

    history = History(folder / "history.jsonl", progress.step, HISTORY_BYTES)
    log = TrainingLog(history, FREQUENT, 1, steps, progress.step)
    trainer = Trainer(backbone=backbone, head=head, batches=batches(Position(progress.epoch, progress.offset)),
                      schedule=schedule, verify=verify, save_checkpoint=numbers.append, save_state=save,
                      communicator=alone, bad_steps=BadSteps(folder, alone, backbone, head, skip=True), log=log,
                      progress=progress, verbose=VERBOSE, state_every=VERBOSE, keep_best=False, ckpt=SAVE_BEST_AS_ONE,
                      max_steps=steps, end_epoch=10000)
    try:
        return Outcome(trainer.run(), progress, backbone, head, numbers)
    finally:
        log.close()


def faults(folder: Path, steps: int) -> tuple[list[str], str]:
    """Run a week of so many steps with a stop in its middle; returns the faults, and figures."""
    falls = tuple(int(steps * share) for share in (0.4, 0.64, 0.88))
    schedule, began = StepSchedule(0.1, falls), time.monotonic()
    first = run(folder, steps, steps // 2, schedule)
    second = run(folder, steps, steps + 1, schedule)
    wrong = []

    def check(what: str, found: Any, expected: Any) -> None:
        if found != expected:
            wrong.append(f"{what}: {found}, expected {expected}")

    stopped = first.progress.step
    bad = steps // BAD_EVERY
    check("status of the stopped half", first.status, 128 + signal.SIGTERM)
    check("status", second.status, 0)
    check("step of the stop", stopped, -(-(steps // 2) // VERBOSE) * VERBOSE + 1)  # the next agreement
    check("end", second.progress.step, steps)
    check("epoch and offset", (second.progress.epoch, second.progress.offset), divmod(steps, EPOCH))
    for part in ("backbone", "head"):
        counters = getattr(first, part), getattr(second, part)
        check(f"steps of the {part}", sum(counter.steps for counter in counters), steps - bad)
        check(f"left out by the {part}", sum(counter.left_out for counter in counters), bad)
    check("verifications", second.progress.verifications, steps // VERBOSE + bool(steps % VERBOSE))
    rates = {**second.backbone.rates, **{lr: [low, second.backbone.rates.get(lr, [0, high])[1]]
                                         for lr, (low, high) in first.backbone.rates.items()}}
    bounds = list(zip((0, *falls), (*falls, steps)))
    expected = {schedule(low): [low + 1 + ((low + 1) % BAD_EVERY == 0), high - (high % BAD_EVERY == 0)]
                for low, high in bounds}
    check("steps of each learning rate", rates, expected)
    check("checkpoints' numbers", set(first.checkpoints + second.checkpoints), {0, 1})
    states = saved_states(folder / "state")
    check("the last state", states[-1].name, f"step-{steps:09d}")
    check("states left", len(states) <= 3, True)
    files = len(list(folder.glob("nan-step-*.npz")))
    check("files of bad steps", files, min(KEPT_FILES, bad))
    history = folder / "history.jsonl"
    check("size of the history", history.stat().st_size <= HISTORY_BYTES, True)
    records = [json.loads(line) for line in history.read_text().splitlines()]
    trained = [record["step"] for record in records if record["kind"] == "train"]
    check("order of the history", trained, sorted(set(trained)))
    check("begin and end of the history", (trained[0] < 2 * FREQUENT, trained[-1] > steps - 2 * FREQUENT - 1),
          (True, True))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return wrong, (f"{time.monotonic() - began:.0f} s; {len(records):,} records of the history in "
                   f"{history.stat().st_size / 1e6:.1f} MB, {len(states)} states, {files} files of {bad} steps that "
                   f"were left out, {size / 1e6:.1f} MB in all")


def main() -> int:
    parser = harness_parser("week", __doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        wrong, figures = faults(Path(folder), options.steps)
    promised = ("each step has its learning rate, the run goes on after a stop, and states, files of bad steps and the "
                "history stay as many and as large as they are meant to be")
    row = Row(f"a week of {options.steps:,} steps around stand-ins", 1, promised, int(not wrong),
              "; ".join([*wrong, figures]))
    return report("a-week", "python -m faults.week --record", [row], options.record)


if __name__ == "__main__":
    sys.exit(main())
