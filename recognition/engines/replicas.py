# SPDX-License-Identifier: Apache-2.0
"""What replicas of a network share, whichever engine computes: their moving statistics, and the check of a state."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np

from recognition.engines.interface import Arrays, BackboneState
from recognition.optim.loss_scale import LossScale
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


class Replicas:
    """The part of a backbone on several devices that is the same whichever engine computes: what it saves and loads,
    and steps that are left out."""

    batch_size: int  # images a device
    communicator: Communicator
    names: list[str]  # of all parameters
    loss_scale: LossScale | None
    replicas: Sequence[Any]  # the engine's
    _optimiser: Any  # the engine's
    _steps: int
    to_host: Callable[..., Arrays]  # copies of the engine's arrays
    fill: Callable[..., None]  # copies arrays over the engine's
    _reduce_gradients: Callable[[], None]
    _inferred: Callable[[np.ndarray], np.ndarray]
    _own_statistics: Callable[[], list[Arrays]]  # of each replica, once all is computed
    _parameters: Callable[[], Mapping[str, Any]]

    def _parts(self, images: np.ndarray) -> list[np.ndarray]:
        return [images[i * self.batch_size : (i + 1) * self.batch_size] for i in range(len(self.replicas))]

    def backward(self, d_features: np.ndarray) -> None:
        if self.loss_scale:
            d_features = d_features * np.float32(self.loss_scale.value)
        for replica, part in zip(self.replicas, self._parts(d_features)):
            replica.backward(part)
        self._reduce_gradients()

    @property
    def _scale(self) -> float:
        return self.loss_scale.value if self.loss_scale else 1.0

    def leave_out(self) -> None:
        for replica in self.replicas:
            replica.restore_statistics()
        self._steps += 1
        if self.loss_scale:
            self.loss_scale.count(finite=False)

    def embed(self, images: np.ndarray) -> np.ndarray:
        if len(self.replicas) * self.communicator.size == 1:  # the mean of one replica's statistics is its own
            return self._inferred(images)
        own = self._own_statistics()
        of_all = mean(gathered(self.communicator, own))
        for replica in self.replicas:
            self.fill(replica.auxiliary, of_all)
        features = self._inferred(images)
        for replica, auxiliary in zip(self.replicas, own):
            self.fill(replica.auxiliary, auxiliary)
        return features

    def parameters(self) -> tuple[Arrays, Arrays]:
        auxiliary = mean(gathered(self.communicator, self._own_statistics()))
        return self.to_host(self.replicas[0].arguments, self.names), auxiliary

    def state(self) -> BackboneState:
        updates = {name: np.array(count) for name, count in self._optimiser.updates.items()}
        moments = {kind: self.to_host(tensors) for kind, tensors in self._optimiser.moments.items()}
        return BackboneState(parameters=self.to_host(self._parameters()), updates=updates or None,
                             loss_scale=self.loss_scale.state() if self.loss_scale else None,
                             auxiliary=gathered(self.communicator, self._own_statistics()), **moments)

    def load(self, state: BackboneState, steps: int) -> None:
        """Go on after ``steps`` updates; with another number of replicas each takes the mean of the statistics."""
        for kind, tensors in self._optimiser.moments.items():
            self.fill(tensors, getattr(state, kind))
        if state.updates is not None:
            self._optimiser.updates = {name: int(count) for name, count in state.updates.items()}
        if self.loss_scale and state.loss_scale is not None:
            self.loss_scale.load(state.loss_scale)
        own = len(state.auxiliary) == len(self.replicas) * self.communicator.size
        first = self.communicator.rank * len(self.replicas)
        of_all = mean(state.auxiliary)
        for i, replica in enumerate(self.replicas):
            self.fill(replica.arguments, state.parameters)
            self.fill(replica.auxiliary, state.auxiliary[first + i] if own else of_all)
        self._steps = steps
