# SPDX-License-Identifier: Apache-2.0
"""Steps with NaN or Inf in their loss, features, gradients or moving statistics, and bags of triplets with such
embeddings: the log line and the file about them, and the decision to stop the run or to leave the step, or the images,
out."""
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recognition.data.loader import Batch
from recognition.engines.interface import LARGEST_NORM, Backbone
from recognition.errors import UserError
from recognition.head.sharded import Head
from recognition.io.files import replacing
from recognition.optim.schedule import Schedule
from recognition.processes.communicator import Communicator, agree
from recognition.training.states.folder import saved_states
from recognition.training.states.state import Progress

MOST_STEPS_IN_A_ROW = 20  # left out, one after the other; after more of them nothing is learnt any more
KEPT_FILES = 20  # of such steps, beside the checkpoints
NAMED_RECORDS = 8  # in a line
ADVICE = "Try a lower --lr, or softmax before a margin"


@dataclass
class BadSteps:
    """Judges steps whose numbers are not finite. All processes call each method together, for the same step."""

    folder: Path  # of the checkpoints
    communicator: Communicator
    backbone: Backbone
    head: Head
    skip: bool  # --on-nan skip
    in_a_row: int = 0

    def leave_out(self, step: int, lr: float, batch: Batch, features: np.ndarray, loss: float) -> str:
        """Leave out the step, which has moved nothing yet, and return the line that says so.

        :param step: its number, from 1; ``features``: (b, D) of this process's part of the batch.
        :param loss: the same in all processes; if it is not finite, there was no backward pass.
        :raises UserError: if the run stops here.
        """
        self.backbone.leave_out()
        self.head.leave_out()
        scale, had_backward = self.backbone.loss_scale, math.isfinite(loss)
        if had_backward and scale is not None and scale.fell:
            return f"step {step}: gradients overflowed with a loss scale of {scale.fell:g}; left out, the scale halved"
        self.in_a_row += 1
        found = self._measure(batch, features, had_backward)
        path = self.folder / f"nan-step-{step}.npz"
        if self.communicator.rank == 0:
            _keep(path, dict(step=step, lr=lr, loss=loss, **found))
        line = f"step {step}: {_describe(found, lr, loss, had_backward)}; {path} has the numbers of all records"
        broken = not all((found[name] < LARGEST_NORM).all() for name in ("parameter_norms", "centre_norms"))
        if not self.skip or broken or self.in_a_row > MOST_STEPS_IN_A_ROW:
            why = f"; {self.in_a_row} such steps in a row" if self.in_a_row > 1 else ""
            why += "; the parameters or class centres were lost before it, and cannot be mended" if broken else ""
            raise UserError(f"{line}; nothing of this step stays{why}; {self.state()}. {ADVICE}")
        return f"{line}; left out (--on-nan skip)"

    def require_sound(self, step: int, lr: float) -> None:
        """Refuse to save numbers that an update has carried beyond float32; a next step, if any, would find them.

        :raises UserError: if parameters or class centres of any process are not finite.
        """
        if agree(self.communicator, self.backbone.sound() and self.head.finite, 0).finite:
            return
        parameters, _ = self.backbone.norms()
        found = {"parameter_norms": np.array(list(parameters.values())), "centre_norms": self._centre_norms()}
        raise UserError(f"step {step}: the update at learning rate {lr:g} overflows; norms: {_norms(found)}; "
                        f"nothing of it is saved; {self.state()}. {ADVICE}")

    def no_verification(self, error: UserError, step: int, lr: float) -> UserError:
        """The error about a verification whose embeddings are not finite, or zero."""
        return UserError(f"step {step}: {error}; parameters' norm {_total(self.backbone.norms()[0].values()):g} after "
                         f"learning rate {lr:g}; {self.state()}. {ADVICE}")

    def state(self) -> str:
        """Words about the training state that a resumed run goes on from."""
        states = saved_states(self.folder / "state")
        return f"--resume goes on from {states[-1]}" if states else "there is no training state to go back to"

    def _measure(self, batch: Batch, features: np.ndarray, had_backward: bool) -> dict[str, np.ndarray]:
        """Norms, and the records and labels of the global batch in the order of ranks."""
        norms = _row_norms(features)
        rows = self.communicator.all_gather(np.stack([batch.records, batch.labels, norms], axis=1).astype(np.float64))
        parameters, gradients = self.backbone.norms()
        return {"records": rows[:, 0].astype(np.int64), "labels": rows[:, 1].astype(np.int64),
                "feature_norms": rows[:, 2], "centre_norms": self._centre_norms(),
                "parameters": np.array(list(parameters)), "parameter_norms": np.array(list(parameters.values())),
                "gradient_norms": np.array(list(gradients.values()) if had_backward else [])}

    def _centre_norms(self) -> np.ndarray:
        """The least and the largest norm of the class centres of all processes, 0 and 0 where there are none."""
        ranges = [shard.norms() for shard in self.head.shards]
        own = [np.min([low for low, _ in ranges]), np.max([high for _, high in ranges])] if ranges else [0.0, 0.0]
        low, high = self.communicator.all_gather(np.array([own])).T
        return np.array([low.min(), high.max()])


@dataclass
class BadBags:
    """Judges a bag of images for triplets whose embeddings are not all finite. All processes call it together, with
    the same embeddings."""

    steps: BadSteps
    schedule: Schedule
    progress: Progress

    def __call__(self, bag: int, records: np.ndarray, labels: np.ndarray, features: np.ndarray) -> str:
        """Return the line that says which images are left out.

        :param records: keys (n,), with ``labels`` (n,) and ``features`` (n, D).
        :raises UserError: if the run stops here.
        """
        step, lr = self.progress.step, self.schedule(self.progress.step)
        parameters, _ = self.steps.backbone.norms()
        found = {"records": records, "labels": labels, "feature_norms": _row_norms(features),
                 "parameters": np.array(list(parameters)), "parameter_norms": np.array(list(parameters.values()))}
        path = self.steps.folder / f"nan-bag-{bag}.npz"
        if self.steps.communicator.rank == 0:
            _keep(path, dict(step=step, bag=bag, lr=lr, **found))
        line = (f"bag {bag}, after step {step}: embeddings are not finite at learning rate {lr:g}; norms: "
                f"{_norms(found)}; {_whose(found)}; {path} has the numbers of all records")
        broken = not np.isfinite(found["parameter_norms"]).all()
        if not self.steps.skip or broken or not np.isfinite(found["feature_norms"]).any():
            why = "; the parameters were lost before it, and cannot be mended" if broken else ""
            raise UserError(f"{line}{why}; {self.steps.state()}. {ADVICE}")
        return f"{line}; left out of the bag (--on-nan skip)"


def _row_norms(features: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.sqrt(np.square(features, dtype=np.float64).sum(axis=1))


def _keep(path: Path, arrays: dict[str, Any]) -> None:
    """Write the file of a step or bag, and drop the oldest of too many."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
    kind = path.stem.rpartition("-")[0]
    files = [(int(number), old) for old in path.parent.glob(f"{kind}-*.npz")
             if (number := old.stem.rpartition("-")[2]).isdecimal()]
    for _, old in sorted(files)[:-KEPT_FILES]:
        old.unlink()


def _describe(found: dict[str, np.ndarray], lr: float, loss: float, had_backward: bool) -> str:
    """Words about what is not finite, the norms, and the records whose features are not finite."""
    gradients = found["gradient_norms"]
    what = f"the loss is {loss} at learning rate {lr:g}"
    if had_backward:
        names = found["parameters"][~np.isfinite(gradients)]
        what = (f"the gradients of {len(names)} of {len(gradients)} parameters, the first of them {names[0]}, are not "
                f"finite" if len(names) else "moving statistics are not finite") + f" at learning rate {lr:g}"
    return f"{what}; norms: {_norms(found)}; {_whose(found)}"


def _whose(found: dict[str, np.ndarray]) -> str:
    """Words about the records whose features are not finite; if all are finite, about those of the step."""
    bad = ~np.isfinite(found["feature_norms"])
    records = found["records"][bad if bad.any() else slice(None)].tolist()
    whose = "features are not finite for the images of records" if bad.any() else "its images are records"
    if bad.all() and len(bad) > 1:
        whose = "no image has finite features, so more likely parameters are at fault than the images of records"
    more = ", ..." if len(records) > NAMED_RECORDS else ""
    return f"{whose} {', '.join(map(str, records[:NAMED_RECORDS]))}{more}"


def _norms(found: dict[str, np.ndarray]) -> str:
    """Words about the norms of finite features, of parameters, and of gradients and class centres if there are any."""
    parts = []
    if "feature_norms" in found:
        features = found["feature_norms"]
        finite = features[np.isfinite(features)]
        parts = [f"features {finite.min():g} to {finite.max():g}" if len(finite) else "features of no image"]
        if missing := len(features) - len(finite):
            parts[0] += f" ({missing} of {len(features)} not finite)"
    if len(found.get("gradient_norms", ())):
        parts.append(f"gradients {_total(found['gradient_norms']):g}")
    parts.append(f"parameters {_total(found['parameter_norms']):g}")
    if "centre_norms" in found:
        low, high = found["centre_norms"]
        parts.append(f"class centres {low:g} to {high:g}")
    return ", ".join(parts)


def _total(norms: Iterable[float]) -> float:
    """The norm of all arrays together, from their norms."""
    return float(np.sqrt(np.square(np.fromiter(norms, np.float64)).sum()))
