# SPDX-License-Identifier: Apache-2.0
"""Processes of a run that are threads of a test."""
from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

import numpy as np

from recognition.errors import UserError
from recognition.processes.communicator import SingleProcess


class Thread(SingleProcess):
    """A process that is a thread: what each gives is laid on a table."""

    def __init__(self, rank: int, table: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size, self._table, self._barrier = rank, len(table), table, barrier

    def all_gather(self, array: np.ndarray) -> np.ndarray:
        self._table[self.rank] = array
        self._barrier.wait()
        found = np.concatenate(self._table)
        self._barrier.wait()
        return found


def together(action: Callable[[Thread], Any], count: int = 3) -> list[Any]:
    """What each process returns, or the UserError that it raises."""
    table, barrier = [None] * count, threading.Barrier(count, timeout=300)

    def run(rank: int) -> Any:
        try:
            return action(Thread(rank, table, barrier))
        except UserError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))
