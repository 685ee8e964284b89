# SPDX-License-Identifier: Apache-2.0
"""The choice of the training state that a run resumes from: the newest one whose files are all as they were saved."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from recognition.errors import LostProcess, UserError
from recognition.io.checksums import UnreadableFile
from recognition.processes.alike import Sharing, first_line, gathered, one_folder
from recognition.processes.communicator import SINGLE, Communicator, barrier, largest
from recognition.training.states.folder import is_claimed, saved_states, set_damaged_aside, step_of, unknown_names
from recognition.training.states.state import DamagedState, SavedState


def find_state(folder: Path, resume: str, launch: str = "", communicator: Communicator = SINGLE,
               sharing: Sharing | None = None) -> SavedState | None:
    """Open the state to resume from; None to start anew. All processes call it together, and each compares a part of
    the files.

    ``resume`` 'yes' takes the newest state. 'auto' takes the newest whole one, if there is one: damaged newer ones are
    renamed, with a line. A state that cannot be read (permissions, file handles, a fault of the disk) does not count as
    damaged.

    :param launch: the name that ``launch`` gave the run, if it started it. If ``resume`` is empty, a run that it starts
        again resumes from a state of its own, never from one of an earlier run.
    :param sharing: which processes see the same ``folder``; not given: all do. Else each opens what its host has of a
        state, and the states are those of the first process's host.
    :raises UserError: for 'yes' if there is no state or it is damaged; for 'auto' if all are damaged; if a state cannot
        be read, or has the format of another version.
    """
    if not resume:
        if not largest(communicator, is_claimed(folder, launch)):
            return None
        resume = "auto"
    sharing = sharing or one_folder(communicator)
    states = _states_of_all(folder, communicator, sharing)
    if not states and resume == "auto":
        return None
    if not states:
        raise _none_there(folder)
    state, problems = _newest_whole(states, communicator, sharing)
    if not state:
        raise _refusal(f"{problems[0]}; and no state before it is whole: remove or rename {folder} to start anew",
                       communicator, sharing)
    if problems and resume != "auto":
        raise _refusal(f"{problems[0]}; {state.path.name} before it is whole: --resume auto takes it", communicator,
                       sharing)
    if problems:
        _step_back(folder, state.path, problems, communicator, sharing)
    return state


def _states_of_all(folder: Path, communicator: Communicator, sharing: Sharing) -> list[Path]:
    """The states that all processes have, or should have, by step; a line about names that are none.

    :raises UserError: if processes that share the folder see other states in it.
    """
    states = saved_states(folder)
    if communicator.rank == 0:
        for name in unknown_names(folder):
            print(f"{str(folder / name)!r} is not taken for a training state: expected a name as step-000000060",
                  flush=True)
    if not sharing.together:
        return _states_of_first(folder, states, communicator, sharing)
    _require_same_states(states, communicator)
    return states


def _newest_whole(states: list[Path], communicator: Communicator,
                  sharing: Sharing) -> tuple[SavedState | None, list[str]]:
    """The newest state that is whole, if any, and the problems of those after it, the newest first."""
    problems: list[str] = []
    for path in reversed(states):
        state, problem = _open(path, communicator, sharing)
        if state:
            return state, problems
        problems.append(problem)
    return None, problems


def _none_there(folder: Path) -> UserError:
    kept = sorted(path.name for path in folder.parent.glob(f"{folder.name}.*") if path.is_dir())
    aside = f", but {', '.join(kept)} beside it, of earlier runs: rename one to {folder.name}" if kept else ""
    return UserError(f"--resume: no training state below {folder}{aside}; --resume auto starts anew where there is "
                     "none")


def _refusal(text: str, communicator: Communicator, sharing: Sharing) -> UserError:
    """The error that ends all processes; where each has a folder of its own, all say what the first says."""
    return UserError(f"--resume: {text if sharing.together else gathered(text, communicator)[0]}")


def _require_same_states(states: list[Path], communicator: Communicator) -> None:
    """Check that all processes see the same training states.

    :raises UserError: if they do not.
    """
    steps = communicator.all_gather(np.array([[step_of(states[-1]) if states else -1, len(states)]]))
    if len({tuple(row) for row in steps.tolist()}) > 1:
        raise UserError(f"--resume: the processes see training states of steps {steps[:, 0].tolist()} (-1: none), "
                        f"{steps[:, 1].tolist()} in number; all need --models-root on a file system that they share")


def _states_of_first(folder: Path, states: list[Path], communicator: Communicator, sharing: Sharing) -> list[Path]:
    """The states of the first process's host, as each host has them or should. Others are set aside: their saves were
    cut short, or they are of another run."""
    names = gathered([path.name for path in states], communicator)[0]
    if sharing.keeper:
        for path in states:
            if path.name not in names:
                set_damaged_aside(path)
    barrier(communicator)  # they are renamed
    return [folder / name for name in names]


def _open(path: Path, communicator: Communicator, sharing: Sharing) -> tuple[SavedState | None, str]:
    """Open a state and compare its files. Returns the state, or None and the problem.

    :raises UserError: in all processes, if one of them cannot read its files now.
    """
    state, problem, unknown = None, "", ""
    try:
        if sharing.together or path.is_dir():
            state = SavedState(path)
            problem = state.problem(*sharing.place)
        else:
            problem = f"{sharing.hosts[communicator.rank]}: found no {path}, and so none of the shards of this host"
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
    if not found and state and not sharing.together:
        prints = gathered(state.fingerprint(), communicator)
        if state.fingerprint() != prints[0]:
            problem = f"{sharing.hosts[communicator.rank]}: {path} is not of the same save as on {sharing.hosts[0]}"
    if problem := first_line(problem, communicator):
        return None, problem
    return state, ""


def _step_back(folder: Path, to: Path, problems: list[str], communicator: Communicator, sharing: Sharing) -> None:
    """Rename the states newer than ``to``, which are all damaged, and print a line about it."""
    if sharing.keeper:
        kept = [set_damaged_aside(path).name for path in saved_states(folder)
                if step_of(path) > step_of(to)]
    if communicator.rank == 0:
        print(f"{problems[0]}; going on from {to.name} before it, what is damaged is kept as {', '.join(kept)}",
              flush=True)
    barrier(communicator)  # they are renamed
