# SPDX-License-Identifier: Apache-2.0
"""The folder of a run's training states: which there are, whose they are, and which of them stay."""
from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from recognition.errors import UserError
from recognition.io.files import WRITING, replacing, writing

DAMAGED = ".damaged"  # ends the name of a state that is no longer what was saved
KEPT_DAMAGED = 2
KEPT_ASIDE = 2  # runs before this one whose states are kept
BESIDE = ("history.jsonl", "run.json", "tensorboard")  # what goes with the states of a run
_LAUNCH = "launch"  # the file that holds the name of the launch that the states are of
_STATE = re.compile(r"step-([0-9]{9}|[1-9][0-9]{9,17})")  # as step-%09d writes them
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")  # of earlier runs


class Retention(NamedTuple):
    """Which states stay when another is saved: the last, those of every n-th step, the best."""

    last: int = 2
    every: int = 0  # steps; 0: none
    best: bool = False


def saved_states(folder: Path) -> list[Path]:
    """The states below a folder, oldest first.

    :raises UserError: if the folder cannot be listed, or a name of a state is not that of a folder.
    """
    names = _names(folder)
    for name in sorted(names):
        if is_state(name) and not names[name]:
            raise UserError(f"{folder / name}: found no folder, expected that of a training state; remove or rename it")
    return sorted((folder / name for name in names if is_state(name)), key=step_of)


def is_state(name: str) -> bool:
    """Whether it is the name of a state: of those that are written here, and no other."""
    return bool(_STATE.fullmatch(name))


def strange_names(folder: Path) -> list[str]:
    """What looks like a state, and has another name than any that is written here."""
    return sorted(name for name in _names(folder) if name.startswith("step-") and not is_state(name)
                  and not is_state(name.partition(".")[0]))


def _names(folder: Path) -> dict[str, bool]:
    """All names in a folder, which need not be there, and whether they are of folders."""
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
    """Remove the states that need not stay; ``best``: steps of those that are the best."""
    for old in saved_states(folder)[: -retention.last]:
        step = step_of(old)
        if (retention.every and step % retention.every == 0) or (retention.best and step in best):
            continue
        old.rename(f"{old}{WRITING}")  # half a state must not look whole
    discard_unfinished(folder)


def discard_unfinished(folder: Path) -> None:
    """Remove what a killed run was writing or removing."""
    for path in folder.glob(f"step-*{WRITING}"):
        with writing(path):
            shutil.rmtree(path)


def set_damaged_aside(state: Path) -> Path:
    """Give a damaged state a name that nothing goes on from; of earlier ones the last KEPT_DAMAGED stay with it."""
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
    """Move the states of an earlier run to ``state.1``, ``state.2``, ..., its history with them, and remove all but
    those of the last KEPT_ASIDE runs and of the longest; returns a line about it, empty if there was none."""
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
    """Note that the states below ``folder``, and those to come, are of the launch of this name."""
    with replacing(folder / _LAUNCH) as path:
        path.write_text(launch)


def is_claimed(folder: Path, launch: str) -> bool:
    """Whether the states below ``folder`` are of the launch of this name.

    :raises UserError: if that cannot be read.
    """
    marker = folder / _LAUNCH
    try:
        return bool(launch) and marker.is_file() and marker.read_bytes() == launch.encode()
    except OSError as error:
        raise UserError(f"{marker}: cannot be read: {error.strerror or error}") from None
