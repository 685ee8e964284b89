# SPDX-License-Identifier: Apache-2.0
"""A step with NaN or Inf in its loss, features, gradients or moving statistics: what is said and kept of it, and
whether the run stops or leaves the step out."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recognition.data.loader import Batch
from recognition.errors import UserError
from recognition.files import replacing
from recognition.parallel.backbone import Backbone
from recognition.parallel.communicator import Communicator
from recognition.parallel.head import Head

MOST_IN_A_ROW = 20  # steps left out, one after the other; then nothing is learnt any more
KEPT = 20  # files of such steps beside the checkpoints
NAMED = 8  # records in a line
ADVICE = "Try a lower --lr, or softmax before a margin"


@dataclass
class BadSteps:
    """Judges such steps. All processes call it together, for the same step."""

    folder: Path  # of the checkpoints
    communicator: Communicator
    backbone: Backbone
    head: Head
    skip: bool  # --on-nan skip
    in_a_row: int = 0

    @property
    def may_leave_out(self) -> bool:
        """Whether such a step may be left out: then nothing, not even W, may have moved when it is found."""
        return self.skip or self.backbone.loss_scale is not None

    def __call__(self, step: int, lr: float, batch: Batch, features: np.ndarray, loss: float,
                 had_backward: bool) -> str:
        """Leave the step out, and return the line that says so.

        :param step: its number, from 1; ``features``: (b, D) of this process's part of the batch.
        :param had_backward: whether there are gradients of this step: not if its loss is not finite.
        :raises UserError: if the run stops here.
        """
        scale = self.backbone.loss_scale
        if had_backward and scale is not None and scale.can_fall:
            line = f"step {step}: gradients overflowed with a loss scale of {scale.value:g}; left out, the scale halved"
            self._leave_out()
            return line
        self.in_a_row += 1
        found = self._measure(batch, features, had_backward)
        path = self.folder / f"nan-step-{step}.npz"
        if self.communicator.rank == 0:
            self._keep(path, dict(step=step, lr=lr, loss=loss, **found))
        line = f"step {step}: {_describe(found, lr, loss, had_backward)}; {path} has the numbers of all records"
        broken = not all(np.isfinite(found[name]).all() for name in ("parameter_norms", "centre_norms"))
        if not self.skip or broken or self.in_a_row > MOST_IN_A_ROW:
            why = f"; {self.in_a_row} such steps in a row" if self.in_a_row > 1 else ""
            raise UserError(f"{line}; nothing of this step stays{why}. {ADVICE}")
        self._leave_out()
        return f"{line}; left out (--on-nan skip)"

    def _leave_out(self) -> None:
        self.backbone.leave_out()
        self.head.leave_out()

    def _measure(self, batch: Batch, features: np.ndarray, had_backward: bool) -> dict[str, np.ndarray]:
        """Norms, and the images of the global batch, in the order of ranks."""
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.sqrt(np.square(features, dtype=np.float64).sum(axis=1))
        rows = self.communicator.all_gather(np.stack([batch.records, batch.labels, norms], axis=1).astype(np.float64))
        ranges = [shard.norms() for shard in self.head.shards]
        own = [np.min([low for low, _ in ranges]), np.max([high for _, high in ranges])] if ranges else [0.0, 0.0]
        low, high = self.communicator.all_gather(np.array([own])).T
        parameters, gradients = self.backbone.norms()
        return {"records": rows[:, 0].astype(np.int64), "labels": rows[:, 1].astype(np.int64),
                "feature_norms": rows[:, 2], "centre_norms": np.array([low.min(), high.max()]),
                "parameters": np.array(list(parameters)), "parameter_norms": np.array(list(parameters.values())),
                "gradient_norms": np.array(list(gradients.values()) if had_backward else [])}

    def _keep(self, path: Path, arrays: dict[str, np.ndarray | float]) -> None:
        """Write the file of a step, and drop the oldest of too many."""
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)
        files = [(int(old.stem[9:]), old) for old in self.folder.glob("nan-step-*.npz") if old.stem[9:].isdecimal()]
        for _, old in sorted(files)[:-KEPT]:
            old.unlink()


def _describe(found: dict[str, np.ndarray], lr: float, loss: float, had_backward: bool) -> str:
    """What is not finite, the norms, and the records whose features are not."""
    norms, gradients = found["feature_norms"], found["gradient_norms"]
    what = f"the loss is {loss} at learning rate {lr:g}"
    if had_backward:
        names = found["parameters"][~np.isfinite(gradients)]
        what = (f"the gradients of {len(names)} of {len(gradients)} parameters, the first of them {names[0]}, are not "
                f"finite" if len(names) else "moving statistics are not finite") + f" at learning rate {lr:g}"
    bad = ~np.isfinite(norms)
    records = found["records"][bad if bad.any() else slice(None)].tolist()
    whose = "features are not finite for the images of records" if bad.any() else "its images are records"
    more = ", ..." if len(records) > NAMED else ""
    low, high = found["centre_norms"]
    total = float(np.sqrt(np.square(found["parameter_norms"]).sum()))
    return (f"{what}; norms: features {norms.min():g} to {norms.max():g}, parameters {total:g}, class centres {low:g} "
            f"to {high:g}; {whose} {', '.join(map(str, records[:NAMED]))}{more}")
