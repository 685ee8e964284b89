# SPDX-License-Identifier: Apache-2.0
"""A run on Weights & Biases (``--wandb``), through its package ``wandb``."""
from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from recognition.errors import UserError
from recognition.training.watch.background import Point, brief
from recognition.training.watch.run_ids import keep_id, kept_id
from recognition.training.watch.scalars import DEGREES

FILE = "wandb.json"  # beside the checkpoints: the run's id there
START_SECONDS = 20.0  # until a service that does not answer is given up
END_SECONDS = 25.0  # for what is not uploaded yet
_logger = logging.getLogger(__name__)


class WandbRun:
    """The run in a project. It is written to ``wandb/`` beside the checkpoints, from where a process of the package
    uploads it. Where nobody answers at the start, it stays there for ``wandb sync``."""

    flag = "--wandb"

    def __init__(self, project: str, folder: Path, options: Mapping[str, Any], step: int) -> None:
        """:param project: PROJECT or ENTITY/PROJECT; ``options``: all of the run.
        :param step: the step that the run resumes from; with 0 it is a new run there, too.
        """
        self._wandb = require_wandb()
        self._entity, _, self._project = project.rpartition("/")
        self._folder, self._options = folder, options
        self._id = (kept_id(folder / FILE, project) if step else "") or secrets.token_hex(8)
        keep_id(folder / FILE, project, self._id)

    def start(self) -> str:
        try:
            self._run = self._init(init_timeout=START_SECONDS)
            if self._run.url:
                return str(self._run.url)
            if self._run.settings.mode == "disabled":
                return "disabled by WANDB_MODE"
            why = ""  # WANDB_MODE=offline
        except Exception as error:  # no network, a key that is not taken, a project that is not there
            self._wandb.teardown()  # else the id is taken
            self._run, why = self._init("offline"), f"no answer ({brief(error)}): "
        return f"{why}the numbers stay in {self._place} until `wandb sync` uploads it"

    @property
    def _place(self) -> Path:
        return Path(self._run.dir).parent

    def _init(self, mode: str | None = None, **more: Any) -> Any:
        """Begin, by default in the mode of WANDB_MODE. Neither the screen nor code nor git's addresses are sent."""
        settings = self._wandb.Settings(
            console="off", silent=True, save_code=False, disable_code=True, disable_git=True,
            finish_timeout=END_SECONDS, finish_timeout_raises=True, **more)
        return self._wandb.init(
            entity=self._entity or None, project=self._project, id=self._id, name=self._folder.resolve().name,
            dir=str(self._folder), config=dict(self._options), allow_val_change=True, resume="allow", mode=mode,
            settings=settings)

    def send(self, points: list[Point]) -> None:
        """Log the points. What a run that goes on says a second time, W&B leaves out: its steps ascend."""
        for point in points:
            histograms = {name: self._wandb.Histogram(np_histogram=(counts.tolist(), DEGREES.tolist()))
                          for name, counts in point.counts.items()}
            self._run.log({**point.numbers, **histograms}, step=point.step)

    def end(self, status: int) -> None:
        try:
            self._run.finish(exit_code=status)
        except TimeoutError:
            _logger.warning("%s: not all is uploaded; `wandb sync %s` uploads the rest", self.flag, self._place)


def require_wandb() -> Any:
    """Import ``wandb``, quiet.

    :raises UserError: if it is not installed, or has no key of the user's where one is needed.
    """
    try:
        wandb = import_module("wandb")
    except ImportError as error:
        raise UserError(f"{WandbRun.flag}: {error}; it needs W&B's package: pip install 'wandb>=0.30'") from error
    wandb.setup(wandb.Settings(silent=True))
    if wandb.setup().settings.mode in ("online", "shared") and not wandb.login(prompt=False, verify=False):
        raise UserError(f"{WandbRun.flag}: found no key of W&B, expected `wandb login` before, WANDB_API_KEY, or "
                        "WANDB_MODE=offline")
    return wandb
