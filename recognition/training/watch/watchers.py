# SPDX-License-Identifier: Apache-2.0
"""The places that a run's options send its numbers to: TensorBoard's files, Weights & Biases, MLflow."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from recognition.training.watch.background import Background
from recognition.training.watch.events import FOLDER, EventFile, require_tensorboard
from recognition.training.watch.mlflow_run import MlflowRun, require_mlflow
from recognition.training.watch.scalars import Scalars
from recognition.training.watch.wandb_run import WandbRun, require_wandb


class Places(NamedTuple):
    """The options: TensorBoard or not, a project of Weights & Biases, an address of MLflow; empty: not there."""

    tensorboard: bool
    wandb: str
    mlflow: str

    def require(self) -> None:
        """Check, before anything trains, that what they need is installed.

        :raises UserError: if it is not.
        """
        if self.tensorboard:
            require_tensorboard()
        if self.wandb:
            require_wandb()
        if self.mlflow:
            require_mlflow(self.mlflow)

    def open(self, folder: Path, options: Mapping[str, Any], step: int) -> list[Scalars]:
        """The places of the run in ``folder``, which goes on after ``step``; 0: it begins. ``options``: all of it."""
        found: list[Scalars] = []
        if self.tensorboard:
            found.append(EventFile(folder / FOLDER, step))
        if self.wandb:
            found.append(Background(WandbRun(self.wandb, folder, options, step)))
        if self.mlflow:
            found.append(Background(MlflowRun(self.mlflow, folder, options, step)))
        return found
