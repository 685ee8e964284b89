# SPDX-License-Identifier: Apache-2.0
"""The engines by name, and what the rooms that import none have to know of each."""
from __future__ import annotations

from typing import NamedTuple


class KnownEngine(NamedTuple):
    """An engine, whose name is that of its library's module."""

    title: str  # of the library, in lines
    meets_by_horovod: bool  # its processes find each other through Horovod's server
    process_a_gpu: bool  # of several GPUs each gets a process, which the trainer starts
    rounds_centres: bool  # class centres may be bfloat16
    best_on: str  # gpu or cpu: where ``auto`` takes it, if others can compute there, too


ENGINES = {"mxnet": KnownEngine("MXNet", meets_by_horovod=True, process_a_gpu=False, rounds_centres=False,
                                best_on="cpu"),
           "torch": KnownEngine("PyTorch", meets_by_horovod=False, process_a_gpu=True, rounds_centres=True,
                                best_on="gpu")}
