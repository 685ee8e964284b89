# SPDX-License-Identifier: Apache-2.0
"""The folder of a run's training states: listing them, removing old ones, and setting aside those of earlier runs."""
from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from recognition.errors import UserError
from recognition.io.files import WRITING, reading, write_whole, writing

DAMAGED = ".damaged"  # the suffix of a state that is no longer as it was saved
KEPT_DAMAGED = 2  # states
KEPT_ASIDE = 2  # earlier runs whose states are kept
# Files beside the states that belong to the same run.
BESIDE = ("history.jsonl", "run.json", "tensorboard", "training.log", "wandb.json", "mlflow.json")
_LAUNCH = "launch"  # the file with the name of the launch that the states belong to
_STATE = re.compile(r"step-([0-9]{9}|[1-9][0-9]{9,17})")  # the names that step-%09d gives
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")  # the suffix of an earlier run


class Retention(NamedTuple):
    """The states that are kept when another is saved: the last ones, those of every n-th step, the best."""

    last: int = 2
    every: int = 0  # steps; 0: none
    best: bool = False


def saved_states(folder: Path) -> list[Path]:
    """The states below a folder, oldest first.

    :raises UserError: if the folder cannot be listed, or if something with the name of a state is no folder.
    """
    names = _names(folder)
    for name in sorted(names):
        if is_state(name) and not names[name]:
            raise UserError(f"{folder / name}: found no folder, expected that of a training state; remove or rename it")
    return sorted((folder / name for name in names if is_state(name)), key=step_of)


def is_state(name: str) -> bool:
    """True for exactly the names that this trainer gives to states."""
    return bool(_STATE.fullmatch(name))


def unknown_names(folder: Path) -> list[str]:
    """Names that look like those of states, but that this trainer does not give."""
    return sorted(name for name in _names(folder) if name.startswith("step-") and not is_state(name)
                  and not is_state(name.partition(".")[0]))


def _names(folder: Path) -> dict[str, bool]:
    """All names in a folder, each with True for a folder; none if the folder does not exist."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.is_dir() for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror or error}") from None


def step_of(state: Path) -> int:
    """The step after which a state was saved."""
    return int(state.name[5:])


def drop_states(folder: Path, retention: Retention, best: Collection[int]) -> None:
    """Remove the states that ``retention`` does not keep; ``best``: the steps of the best ones."""
    for old in saved_states(folder)[: -retention.last]:
        step = step_of(old)
        if (retention.every and step % retention.every == 0) or (retention.best and step in best):
            continue
        old.rename(f"{old}{WRITING}")  # so that a state that is half removed does not look whole
    discard_unfinished(folder)


def discard_unfinished(folder: Path) -> None:
    """Remove states that a killed run was writing or removing."""
    for path in folder.glob(f"step-*{WRITING}"):
        with writing(path):
            shutil.rmtree(path)


def set_damaged_aside(state: Path) -> Path:
    """Rename a damaged state, so that no run resumes from it, and keep the last KEPT_DAMAGED earlier ones."""
    folder, target = state.parent, state.with_name(state.name + DAMAGED)
    with writing(state):
        if target.exists():
            shutil.rmtree(target)
        state.rename(target)
        others = sorted(folder.glob(f"step-*{DAMAGED}"), key=lambda path: path.stat().st_mtime_ns)
        for path in [path for path in others if path != target][:-KEPT_DAMAGED]:
            shutil.rmtree(path)
    return target


def set_aside(folder: Path) -> str:
    """Move the states of an earlier run, with its history, to ``state.1``, ``state.2``, ..., and remove those of all
    runs but the last KEPT_ASIDE and the longest. Returns a line about it; empty if there was no earlier run."""
    if not saved_states(folder):
        return ""
    before = {int(path.name.rpartition(".")[2]): path for path in folder.parent.glob(f"{folder.name}.*")
              if _NUMBER.fullmatch(path.name.rpartition(".")[2])}
    longest = max([folder, *before.values()], key=lambda path: [step_of(state) for state in saved_states(path)][-1:])
    old = [before[number] for number in sorted(before)[: len(before) + 1 - KEPT_ASIDE] if before[number] != longest]
    with writing(folder):
        for beside in (folder.with_name(name) for name in BESIDE):
            if beside.exists():
                os.replace(beside, folder / beside.name)
        kept = folder.rename(folder.with_name(f"{folder.name}.{max(before, default=0) + 1}"))
        for path in old:
            shutil.rmtree(path)
    names = ", ".join(path.name for path in old)
    removed = f"; {names} removed: those of the last {KEPT_ASIDE} runs and of the longest are kept" if old else ""
    return f"starting anew; the training state of the run before is kept in {kept}{removed}"


def claim(folder: Path, launch: str) -> None:
    """Note that the present and future states below ``folder`` belong to the launch of this name."""
    write_whole(folder / _LAUNCH, launch)


def is_claimed(folder: Path, launch: str) -> bool:
    """True if the states below ``folder`` belong to the launch of this name.

    :raises UserError: if the note about it cannot be read.
    """
    marker = folder / _LAUNCH
    with reading(marker):
        return bool(launch) and marker.is_file() and marker.read_bytes() == launch.encode()
