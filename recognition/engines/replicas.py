# SPDX-License-Identifier: Apache-2.0
"""What replicas of a network share, whichever engine computes: their moving statistics, and the check of a state."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from recognition.engines.interface import Arrays, BackboneState
from recognition.processes.communicator import Communicator

Shapes = Mapping[str, tuple[int, ...]]


def gathered(communicator: Communicator, own: list[Arrays]) -> list[Arrays]:
    """The statistics of all processes' replicas, in the order of ranks, from those of this process's."""
    if communicator.size == 1 or not own[0]:
        return own * communicator.size
    names = sorted(own[0])
    flat = np.stack([np.concatenate([arrays[name].ravel() for name in names]) for arrays in own])
    ends = np.cumsum([own[0][name].size for name in names])
    return [{name: part.reshape(own[0][name].shape) for name, part in zip(names, np.split(row, ends[:-1]))}
            for row in communicator.all_gather(flat)]


def mean(states: Sequence[Arrays]) -> Arrays:
    """The mean of the statistics of all replicas, float32."""
    return {name: np.asarray(np.mean([state[name] for state in states], axis=0, dtype=np.float32))
            for name in (states[0] if states else ())}


def difference(state: BackboneState, parameters: Shapes, moments: Sequence[str], auxiliary: Shapes) -> str:
    """The first name or shape by which a state differs from a network; '' if none does.

    :param moments: the fields of the state that the optimiser has, each with an array a parameter.
    """
    of_parameters = [state.parameters, *(getattr(state, kind) or {} for kind in moments)]
    for have, wanted in (*((arrays, parameters) for arrays in of_parameters), (state.auxiliary[0], auxiliary)):
        if odd := sorted(have.keys() ^ wanted.keys()):
            return f"{odd[0]} is in one of them alone"
        for name, shape in wanted.items():
            if have[name].shape != shape:
                return f"{name} has the shape {have[name].shape} there and {shape} here"
    return ""
