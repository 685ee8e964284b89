# SPDX-License-Identifier: Apache-2.0
"""Comparison, before anything is set aside, of the memory that a run needs with what its machine has free.

A process that takes more than a machine has is killed without a word, or ends with an error about one array.
"""
from __future__ import annotations

import os
from collections import Counter

from recognition.config.devices import local_place, on_gpus
from recognition.config.memory import available_memory
from recognition.config.options import Config
from recognition.engines.interface import Engine
from recognition.networks.graph import Graph
from recognition.plan.head_costs import RESERVE_GB, Memory
from recognition.plan.planning import METHODS, backbone_cost, planned_run

# What the line adds up, in its order: parts of the plan.
PARTS = {"maps": ("maps", "images"), "parameters": ("backbone",), "libraries": ("set aside",)}
HEAD = "head"  # all other parts


def memory_line(config: Config, graph: Graph, engine: Engine, num_classes: int, processes: int) -> str:
    """A line that a run needs more memory than there is; '' if there is enough, by the plan.

    :param graph: the network; ``num_classes``: of the training set; ``processes``: of the run.
    """
    device, host = planned_memory(config, graph, engine.name, num_classes, processes)
    together = local_place(os.environ)[1]  # processes that share this machine's memory
    whose = f"; {together} processes" if together > 1 else ""
    if on_gpus(config.devices):
        for name in config.devices:
            if line := _compared(config, device, engine.free_memory(name), f"gpu {name[1]}"):
                return line
        return _compared(config, _times(host, together), available_memory(), "this machine" + whose)
    return _compared(config, _times(device, together), available_memory(), "this machine" + whose)


def planned_memory(config: Config, graph: Graph, engine: str, num_classes: int,
                   processes: int) -> tuple[Memory, Memory]:
    """Bytes by what they are for: of a GPU, or of this process if its devices are CPUs; and of its host beside GPUs."""
    here = len(config.devices)
    run = planned_run(config, 0 if config.triplets else num_classes, here * (1 if config.whole_head else processes),
                      backbone_cost(config, graph, engine), engine=engine)
    cost = METHODS["sampled" if config.sample_ratio < 1 else "parallel"].cost(run)
    reserve = round(RESERVE_GB[run.kind] * 1e9)
    if on_gpus(config.devices):
        return {**cost.memory, "set aside": reserve}, {HEAD: cost.host * here} if cost.host else {}
    return {**_times(cost.memory, here), "set aside": reserve}, {}


def _times(memory: Memory, number: int) -> Memory:
    return {part: size * number for part, size in memory.items()}


def _compared(config: Config, memory: Memory, free: int, where: str) -> str:
    needed = sum(memory.values())
    if needed <= free:
        return ""
    names = {part: title for title, parts in PARTS.items() for part in parts}
    sums = Counter[str]()
    for part, size in memory.items():
        sums[names.get(part, HEAD)] += size
    parts = ", ".join(f"{title} {sums[title] / 1e9:.1f}" for title in (*PARTS, HEAD) if sums[title])
    less = f"a smaller --per-batch-size (it is {config.per_batch_size})"
    less += "" if config.memonger else " or memonger = True in config.py"
    return (f"memory: by its plan this run needs {needed / 1e9:.1f} GB ({parts}) of {where}, which has "
            f"{free / 1e9:.1f} GB free; it may be killed without a word, {less} takes less")
