# SPDX-License-Identifier: Apache-2.0
"""A backbone on several devices, whichever engine computes: steps, moving statistics, states."""
from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Callable, Protocol

import numpy as np

from recognition.engines.average import Average, averages_of
from recognition.engines.interface import Arrays, BackboneState, Updating
from recognition.networks.graph import Graph
from recognition.optim.loss_scale import LossScale
from recognition.processes.communicator import Communicator

TINY = 1e-30  # a gradient of this norm or less is not made longer
Shapes = Mapping[str, tuple[int, ...]]


class Optimiser(Protocol):
    """An optimiser of an engine's arrays. Weight decay falls on all parameters, even biases and batch norm's, as in the
    legacy code."""

    moments: dict[str, dict[str, Any]]  # by kind and by parameter
    updates: dict[str, int]  # of each parameter until now, where they count

    def __call__(self, weights: Any, gradients: Any, lrs: Mapping[str, float], rescale: float) -> None:
        """Update the ``weights`` that ``lrs`` names, each at its learning rate, by ``rescale`` times its gradient."""


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
    """Implements :class:`recognition.engines.interface.Backbone` but for what depends on the engine, with a network on
    each device and one optimiser state for all of them.

    Batch statistics are those of a replica's own images, as in the legacy code; a checkpoint gets the mean of the
    moving statistics of all replicas of all processes, as ``Module.get_params`` always gave it. So ``embed``,
    ``parameters`` and ``state`` are collective: all processes call them together.

    A step of several micro-batches computes all features first, so that the head sees the whole batch, and then each
    micro-batch once more with its backward pass (GradCache: Gao et al., arXiv 2101.06983). The last one's forward pass
    is the exception, its maps are still there. So k micro-batches take (k - 1) / k of a forward pass more, and the
    memory of one.
    """

    startup_line = ""
    sgd: Callable[..., Optimiser]  # of parameters, names, momentum and weight decay
    adamw: Callable[..., Optimiser]  # of parameters, names, AdamW's numbers and weight decay
    inferred: Callable[..., list[np.ndarray]]  # features of replicas, for a number of images a device, of images
    to_host: Callable[..., Arrays]  # copies of the engine's arrays
    fill: Callable[..., None]  # copies arrays over the engine's
    copied: Callable[..., dict[str, Any]]  # copies of the engine's arrays, on their devices
    add: Callable[..., None]  # adds others to the engine's arrays
    blend: Callable[..., None]  # moves the engine's arrays by a share of the way to others
    all_finite: Callable[..., bool]  # of groups of arrays
    all_usable: Callable[..., bool]  # of a group of arrays: their squares are float32 numbers
    norms_of: Callable[..., np.ndarray]  # of arrays
    _features: Callable[[np.ndarray, int], np.ndarray]  # of a micro-batch and its place in the step
    _reduce_gradients: Callable[[], None]  # those of the first replica become the sums of all
    _copy_parameters: Callable[[Iterable[str]], None]  # of the first replica to the others

    def __init__(self, graph: Graph, replicas: Sequence[Any], batch_size: int, communicator: Communicator,
                 loss_scale: LossScale | None, updating: Updating) -> None:
        """:param replicas: the engine's, one a device; ``batch_size``: images of each.
        :param loss_scale: for float16; steps whose gradients overflow must then be left out.
        """
        arguments = replicas[0].arguments
        self.replicas, self.batch_size, self.communicator, self.loss_scale = (
            replicas, batch_size, communicator, loss_scale)
        self.names = sorted(arguments)
        self._seed, self._factors, self._steps = updating.seed, updating.factors(self.names), 0
        self._clip_norm = updating.clip_norm
        self._micro_batches, self._images = updating.micro_batches, list[np.ndarray]()
        self._keeps_statistics = updating.leaves_out or loss_scale is not None or updating.micro_batches > 1
        self._backward_order = [name for name in reversed(graph.list_arguments()) if name in arguments]
        self._optimiser = (self.adamw(arguments, self.names, updating.adamw, updating.wd) if updating.adamw else
                           self.sgd(arguments, self.names, updating.mu, updating.wd))
        self._average = Average(updating.ema, self._parameters(), self._statistics, self.copied,
                                self.blend) if updating.ema else None

    def _wait(self) -> None:
        """Return once the moving statistics are those of the last step."""

    def _parts(self, images: Any) -> list[Any]:
        return [images[i * self.batch_size : (i + 1) * self.batch_size] for i in range(len(self.replicas))]

    def _cut(self, array: np.ndarray) -> list[np.ndarray]:
        """The rows of each micro-batch, which are some of every device's."""
        if self._micro_batches == 1:
            return [array]
        by_device = array.reshape(len(self.replicas), self._micro_batches, self.batch_size, *array.shape[1:])
        return [by_device[:, place].reshape(-1, *array.shape[1:]) for place in range(self._micro_batches)]

    def _dropout_stream(self, place: int) -> np.random.SeedSequence:
        """A function of the seed, the step and the micro-batch, so that a resumed run, and a micro-batch that is
        computed again, draw the same masks."""
        own = [place] if place else []
        return np.random.SeedSequence([self._seed, self._steps, self.communicator.rank, *own])

    def buffer(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.empty(shape, np.uint8)

    def coming(self, images: np.ndarray) -> None:
        """Nothing, unless the engine's devices copy beside their work."""

    def forward(self, images: np.ndarray) -> np.ndarray:
        self._images = self._cut(images)
        if self._keeps_statistics:
            for replica in self.replicas:
                replica.keep_statistics()
        *ahead, last = range(self._micro_batches)
        found = [self._features(self._images[place], place) for place in ahead]
        if ahead:  # moving statistics move once for each micro-batch, with its backward pass
            for replica in self.replicas:
                replica.restore_statistics()
        found.append(self._features(self._images[last], last))
        if not ahead:
            return found[0]
        by_device = np.stack([part.reshape(len(self.replicas), self.batch_size, -1) for part in found], axis=1)
        return by_device.reshape(len(images), -1)

    def backward(self, d_features: Any) -> None:
        if self.loss_scale:
            d_features = d_features * float(self.loss_scale.value)
        parts, last = self._cut(d_features), self._micro_batches - 1
        sums: list[dict[str, Any]] = []  # of the gradients of the micro-batches before, for each replica
        for place in (last, *range(last)):
            if place != last:  # copied, as a forward pass may use the memory of gradients
                sums = [self.copied(replica.gradients) for replica in self.replicas]
                self._features(self._images[place], place)
            for replica, part in zip(self.replicas, self._parts(parts[place])):
                replica.backward(part)
            for replica, before in zip(self.replicas, sums):
                self.add(replica.gradients, before)
        self._images = []
        self._reduce_gradients()

    def finite(self) -> bool:
        return self.all_finite(self.replicas[0].gradients, *(replica.auxiliary for replica in self.replicas))

    def sound(self) -> bool:
        return self.all_usable(self._parameters()) and self.all_finite(
            *self._optimiser.moments.values(), *(replica.auxiliary for replica in self.replicas))

    def gradient_norm(self) -> float:
        moving = self._norms_of_gradients(list(self._factors(self._steps)))
        return float(np.sqrt(np.square(moving).sum())) / self._scale

    def _norms_of_gradients(self, names: Sequence[str]) -> np.ndarray:
        return self.norms_of([self.replicas[0].gradients[name] for name in names])

    def norms(self) -> tuple[dict[str, float], dict[str, float]]:
        of_parameters, of_gradients = (
            dict(zip(self.names, self.norms_of([arrays[name] for name in self.names]).tolist())) if arrays else {}
            for arrays in (self.replicas[0].arguments, self.replicas[0].gradients))
        return of_parameters, of_gradients

    def step(self, lr: float) -> None:
        first_replica, factors = self.replicas[0], self._factors(self._steps)
        clipped = min(1.0, self._clip_norm / max(self.gradient_norm(), TINY)) if self._clip_norm else 1.0
        self._steps += 1
        self._optimiser(first_replica.arguments, first_replica.gradients,
                        {name: lr * factor for name, factor in factors.items()}, clipped / self._scale)
        self._copy_parameters(factors)
        if self._average:
            self._wait()
            self._average.move(self._parameters(), self._statistics, self._steps)
        if self.loss_scale:
            self.loss_scale.count(finite=True)

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

    def _inferred(self, images: np.ndarray) -> np.ndarray:
        self._wait()
        return np.concatenate(self.inferred(self.replicas, self.batch_size, images))[: len(images)]

    @property
    def _statistics(self) -> list[dict[str, Any]]:
        return [replica.auxiliary for replica in self.replicas]

    def _own_statistics(self) -> list[Arrays]:
        self._wait()
        return [self.to_host(auxiliary) for auxiliary in self._statistics]

    def _parameters(self) -> dict[str, Any]:
        return {name: self.replicas[0].arguments[name] for name in self.names}

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        assert self._average is not None, "an average is asked for by the option ema"
        own = self.to_host(self._parameters()), self._own_statistics()
        self._put(self.to_host(self._average.parameters), [self.to_host(part) for part in self._average.auxiliary])
        try:
            yield
        finally:
            self._put(*own)

    def _put(self, parameters: Arrays, auxiliary: Sequence[Arrays]) -> None:
        """Overwrite the parameters of all replicas, and the statistics of each."""
        for replica, statistics in zip(self.replicas, auxiliary):
            self.fill(replica.arguments, parameters)
            self.fill(replica.auxiliary, statistics)

    def parameters(self) -> tuple[Arrays, Arrays]:
        auxiliary = mean(gathered(self.communicator, self._own_statistics()))
        return self.to_host(self.replicas[0].arguments, self.names), auxiliary

    def state(self) -> BackboneState:
        updates = {name: np.array(count) for name, count in self._optimiser.updates.items()}
        moments: dict[str, Any] = {kind: self.to_host(arrays) for kind, arrays in self._optimiser.moments.items()}
        if average := self._average:
            statistics = gathered(self.communicator, [self.to_host(part) for part in average.auxiliary])
            moments.update(average=self.to_host(average.parameters), average_auxiliary=statistics)
        return BackboneState(parameters=self.to_host(self._parameters()), updates=updates or None,
                             loss_scale=self.loss_scale.state() if self.loss_scale else None,
                             auxiliary=gathered(self.communicator, self._own_statistics()), **moments)

    def difference(self, state: BackboneState) -> str:
        """The first name or shape by which a state differs from this network; '' if none does."""
        parameters, auxiliary = ({name: tuple(array.shape) for name, array in arrays.items()}
                                 for arrays in (self._parameters(), self.replicas[0].auxiliary))
        return difference(state, parameters, list(self._optimiser.moments), auxiliary)

    def load(self, state: BackboneState, steps: int) -> None:
        """Go on after ``steps`` updates; with another number of replicas each takes the mean of the statistics."""
        for kind, arrays in self._optimiser.moments.items():
            self.fill(arrays, getattr(state, kind))
        if state.updates is not None:
            self._optimiser.updates = {name: int(count) for name, count in state.updates.items()}
        if self.loss_scale and state.loss_scale is not None:
            self.loss_scale.load(state.loss_scale)
        self._put(state.parameters, self._own_of(state.auxiliary))
        if self._average:
            parameters, auxiliary = averages_of(state)
            self.fill(self._average.parameters, parameters)
            for arrays, values in zip(self._average.auxiliary, self._own_of(auxiliary)):
                self.fill(arrays, values)
        self._steps = steps

    def _own_of(self, auxiliary: Sequence[Arrays]) -> Sequence[Arrays]:
        """This process's part of the statistics of all replicas; their mean for each if they are not as many
        as the replicas of this run."""
        count, first = len(self.replicas), self.communicator.rank * len(self.replicas)
        own = len(auxiliary) == count * self.communicator.size
        return auxiliary[first : first + count] if own else [mean(auxiliary)] * count
