# SPDX-License-Identifier: Apache-2.0
"""Which training state a run goes on from: the newest, once all its files are known to be those that were saved."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from recognition.errors import LostProcess, UserError
from recognition.io.checksums import UnreadableFile
from recognition.processes.communicator import Communicator, SingleProcess, largest
from recognition.training.states.folder import is_claimed, saved_states, set_damaged_aside, step_of, strange_names
from recognition.training.states.state import DamagedState, SavedState

SINGLE = SingleProcess()


def find_state(folder: Path, resume: str, launch: str = "", communicator: Communicator = SINGLE) -> SavedState | None:
    """The state to go on from: the newest for ``resume`` 'yes', the newest whole one if any for 'auto', said in a line
    where a newer one is damaged: that is renamed. All processes call it together, each compares a part of the files.
    One that cannot be read, for want of a right or a handle or by a fault of the disk, is not taken for damaged.

    :param launch: the name that ``launch`` gave the run, if it started it. Where nobody asked to resume, a run that it
        starts again goes on from a state of its own, never from one of an earlier run.
    :raises UserError: if there is none for 'yes', if it is damaged, or all are; if it cannot be read, or is of another
        version.
    """
    if not resume:
        if not largest(communicator, is_claimed(folder, launch)):
            return None
        resume = "auto"
    states = saved_states(folder)
    if communicator.rank == 0:
        for name in strange_names(folder):
            print(f"{str(folder / name)!r} is not taken for a training state: expected a name as step-000000060",
                  flush=True)
    _require_same_states(states, communicator)
    problems: list[str] = []
    for path in reversed(states):
        state, problem = _open(path, communicator)
        if state and resume == "auto" and problems:
            _step_back(folder, path, problems, communicator)
        if state and (resume == "auto" or not problems):
            return state
        if state:
            raise UserError(f"--resume: {problems[0]}; {path.name} before it is whole: --resume auto takes it")
        problems.append(problem)
    if problems:
        raise UserError(f"--resume: {problems[0]}; and no state before it is whole: remove or rename {folder} to start "
                        "anew")
    if resume == "auto":
        return None
    kept = sorted(path.name for path in folder.parent.glob(f"{folder.name}.*") if path.is_dir())
    aside = f", but {', '.join(kept)} beside it, of earlier runs: rename one to {folder.name}" if kept else ""
    raise UserError(f"--resume: no training state below {folder}{aside}; --resume auto starts anew where there is none")


def _require_same_states(states: list[Path], communicator: Communicator) -> None:
    """:raises UserError: if the processes do not see the same training states."""
    steps = communicator.all_gather(np.array([[step_of(states[-1]) if states else -1, len(states)]]))
    if len({tuple(row) for row in steps.tolist()}) > 1:
        raise UserError(f"--resume: the processes see training states of steps {steps[:, 0].tolist()} (-1: none), "
                        f"{steps[:, 1].tolist()} in number; all need --models-root on a file system that they share")


def _open(path: Path, communicator: Communicator) -> tuple[SavedState | None, str]:
    """A state if all its files are whole, else what is wrong with it.

    :raises UserError: if that cannot be known, in whichever process.
    """
    state, problem, unknown = None, "", ""
    try:
        state = SavedState(path)
        problem = state.problem(communicator.rank, communicator.size)
    except DamagedState as error:
        problem = str(error)
    except UnreadableFile as error:
        unknown = str(error)
    found = largest(communicator, 2 if unknown else int(bool(problem)))
    if found == 2 and not unknown:
        raise LostProcess(f"{path}: another process could not read its part of the training state, and says why")
    if found == 2:
        raise UserError(f"--resume: {unknown}; that need not be damage, so {path.name} is kept: start again when it "
                        f"can be read, or, if it never can (a broken disk), rename {path.name} to go on without it")
    if found:
        return None, problem or f"{path}: damaged, as another process found"
    return state, ""


def _step_back(folder: Path, to: Path, problems: list[str], communicator: Communicator) -> None:
    """Rename the states that are newer than ``to``, all damaged, and say so."""
    if communicator.rank == 0:
        kept = [set_damaged_aside(path).name for path in saved_states(folder)
                if step_of(path) > step_of(to)]
        print(f"{problems[0]}; going on from {to.name} before it, what is damaged is kept as {', '.join(kept)}",
              flush=True)
    largest(communicator, 0)  # all wait until they are renamed
