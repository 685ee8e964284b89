# SPDX-License-Identifier: Apache-2.0
"""The exchange between processes: features, row statistics and gradients, but no array with a side of C classes.

The communicators are :class:`SingleProcess`, and those in ``processes`` of each engine.
"""
from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np

NOT_FINITE = 1 << 10  # above every number of a signal


class Communicator(Protocol):
    """Collectives over host arrays; PyTorch's also gathers and scatters tensors, which stay on their device. Every
    process calls the same ones in the same order with the same shapes.

    It is a context that ends with the run: after an error it does not wait for the other processes.
    """

    rank: int
    size: int
    bytes_sent: int  # by this process until now, by the formula of each class
    exchanges: int  # collectives begun until now: a process that the others wait for has begun fewer
    waited: float  # seconds waited until now: a process that the others wait for has waited less

    def all_gather(self, array: np.ndarray) -> np.ndarray:
        """Stack the arrays (n, ...) of all processes, in the order of ranks, to (size * n, ...)."""

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        """The sum of the arrays of all processes, of the same shape."""

    def reduce_scatter(self, array: np.ndarray) -> np.ndarray:
        """This process's (n, ...) rows of the sum of the arrays (size * n, ...) of all processes."""

    def sum_in_place(self, name: str, arrays: Sequence[Any]) -> None:
        """Replace the engine's arrays on any device by their sums over all processes.

        MXNet's are summed as they are computed, after the return; reading one waits for its sum. ``name`` tells
        apart calls that run at the same time.
        """

    def __enter__(self) -> Communicator: ...

    def __exit__(self, error_type: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None: ...


class SingleProcess:
    """The communicator of a run in one process, which has all arrays already."""

    rank = 0
    size = 1
    bytes_sent = 0
    exchanges = 0
    waited = 0.0

    def all_gather(self, array: np.ndarray) -> np.ndarray:
        return array

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        return array

    def reduce_scatter(self, array: np.ndarray) -> np.ndarray:
        return array

    def sum_in_place(self, name: str, arrays: Sequence[Any]) -> None:
        """Do nothing: each array is its own sum."""

    def __enter__(self) -> SingleProcess:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: there is nothing to end."""


SINGLE = SingleProcess()


def largest(communicator: Communicator, number: int) -> int:
    """The largest of the numbers of all processes."""
    return int(communicator.all_gather(np.array([number], np.int64)).max())


def barrier(communicator: Communicator) -> None:
    """Return once all processes have come here."""
    largest(communicator, 0)


class Verdict(NamedTuple):
    """The agreement of all processes about a step."""

    finite: bool  # in every process
    signal: int  # one that some process got, 0 if none did


def agree(communicator: Communicator, finite: bool, signal: int) -> Verdict:
    """The verdict of all processes on a step, by one exchange of one number.

    If some process has numbers that are not finite, a signal that came only to others is lost; it counts in the next
    step.
    """
    number = largest(communicator, signal if finite else NOT_FINITE + signal)
    return Verdict(number < NOT_FINITE, number % NOT_FINITE)
