# SPDX-License-Identifier: Apache-2.0
"""How much memory a network's maps take in training, from the graph alone: nothing is computed or set aside.

A step is a list of operators, each of which reads arrays and writes others: the forward pass; then, from the last
layer to the first, the gradients by a layer's inputs, from that by its output and from what its backward pass reads
(the table of operators). A layer that the recompute pass marked runs a second time before its backward pass, and before
it those marked ones that it is computed from. MXNet's executor gives each array a block of memory, and that of an array
which nobody reads any more to the next that fits (:func:`planned`); the blocks are what a bound network holds.
"""
from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from recognition.engines.mxnet.passes.recompute import ATTRIBUTE
from recognition.networks.graph import Entry, Graph
from recognition.networks.operators.operator import INPUTS, OUTPUT
from recognition.networks.shapes import all_shapes

MATCH_RANGE = 16  # MXNet gives a block to an array of up to so many times its size, or so small a part of it
ITEMSIZES = {"bfloat16": 2, "float16": 2, "float64": 8, "int64": 8, "int8": 1, "uint8": 1, "bool": 1}  # others: 4

Key = tuple[Any, ...]  # an array of the step


class Size(NamedTuple):
    """Of an array. MXNet's plan compares numbers, whatever bytes each of them has."""

    numbers: int
    itemsize: int


class Step(NamedTuple):
    """One operator: the arrays that it reads, and those that it writes with their sizes."""

    reads: list[Key]
    writes: dict[Key, Size]
    in_place: bool = False


def maps_memory(graph: Graph, image_shape: tuple[int, int, int], batch: int) -> int:
    """Bytes that a training executor sets aside for ``batch`` images (3, H, W): maps and the gradients between layers.

    ``graph`` is as it is bound, that is after the passes. Parameters, their gradients and momentum are not among it.
    """
    return planned(training_steps(graph, image_shape, batch))


def training_steps(graph: Graph, image_shape: tuple[int, int, int], batch: int) -> list[Step]:
    """The operators of a training step in MXNet's order: forward, backward, and what runs again between."""
    return list(_Training(graph, image_shape, batch).steps())


def planned(steps: Sequence[Step]) -> int:
    """Bytes of all blocks if arrays are placed as MXNet's memory plan does it (nnvm's graph allocator).

    In the order of the steps, the larger of a step's outputs first: into the smallest free block that is large enough,
    else the largest that can grow to it, else a new one.
    """
    last = {key: number for number, step in enumerate(steps) for key in (*step.writes, *step.reads)}
    plan = _Blocks()
    homes: dict[Key, tuple[int, Size]] = {}  # the block of each array, and its size
    for number, step in enumerate(steps):
        ending = [key for key in dict.fromkeys(step.reads) if key in homes and last[key] == number]
        for key, size in sorted(step.writes.items(), key=lambda item: -item[1].numbers):
            over = (homes[old][0] for old in ending if homes[old][1] == size and plan.users[homes[old][0]] == 1)
            block = next(over, None) if step.in_place else None
            homes[key] = plan.place(size) if block is None else plan.share(block), size
        for key in ending + [key for key in step.writes if last[key] == number]:
            plan.release(homes.pop(key)[0])
    return sum(plan.bytes)


class _Blocks:
    """Blocks of memory by number: how many arrays live in each, and which are free."""

    def __init__(self) -> None:
        self.users: list[int] = []
        self.bytes: list[int] = []
        self._numbers: list[int] = []  # the largest array that each has held
        self._free: list[tuple[int, int, int]] = []  # (numbers, when it was released, block), ascending
        self._releases = 0

    def place(self, size: Size) -> int:
        low, middle, high = (bisect.bisect_left(self._free, (bound,)) for bound in (
            size.numbers / MATCH_RANGE, size.numbers, size.numbers * MATCH_RANGE + 1))
        if middle < high or low < middle:
            block = self._free.pop(middle if middle < high else middle - 1)[2]
        else:
            block = len(self.users)
            for column in (self.users, self.bytes, self._numbers):
                column.append(0)
        self._numbers[block] = max(self._numbers[block], size.numbers)
        self.bytes[block] = max(self.bytes[block], size.numbers * size.itemsize)
        return self.share(block)

    def share(self, block: int) -> int:
        self.users[block] += 1
        return block

    def release(self, block: int) -> None:
        self.users[block] -= 1
        if not self.users[block]:
            self._releases += 1
            bisect.insort(self._free, (self._numbers[block], self._releases, block))


class _Training:
    """Goes through a graph once, and tells the operators on the way."""

    def __init__(self, graph: Graph, image_shape: tuple[int, int, int], batch: int) -> None:
        self._nodes, self._heads = graph.nodes, [head._replace(version=0) for head in graph.heads]
        self._shapes = all_shapes(graph, (batch, *image_shape))
        self._itemsizes: list[int] = []
        self._learns: list[bool] = []  # whether a node depends on a parameter
        self._sees: list[bool] = []  # whether a node depends on the images
        for node in self._nodes:
            sources = [entry.node for entry in node.inputs]
            self._sees.append(node.name == "data" or any(self._sees[source] for source in sources))
            learns = any(self._learns[source] for source in sources) and not node.operator.constant
            self._learns.append(node.name != "data" if node.is_variable else learns)
            dtype = "float32" if node.is_variable else getattr(node.values, "dtype", "None")
            self._itemsizes.append(self._itemsizes[sources[0]] if dtype == "None" else ITEMSIZES.get(dtype, 4))
        self._outputs: list[set[int]] = [{0, 1} if node.op == "Dropout" else {0} for node in self._nodes]
        for node in self._nodes:
            for entry in node.inputs:
                self._outputs[entry.node].add(entry.output)
        self._again: set[int] = set()  # nodes that have run a second time
        self._gradients: dict[Entry, list[Key]] = {}  # parts of the gradient by an output, still to be summed

    def steps(self) -> Iterable[Step]:
        for number, node in enumerate(self._nodes):
            if not node.is_variable:
                yield self._forward(number, again=False)
        for head in self._heads:  # MXNet copies the gradient that it is given
            yield Step([], {("head", *head): self._size(head)})
            self._gradients[head] = [("head", *head)]
        # MXNet comes to the gradients of what is computed from parameters alone, such as their casts, at the end.
        for number in sorted(range(len(self._nodes)), key=lambda number: (not self._sees[number], -number)):
            if not self._nodes[number].is_variable:
                yield from self._backward(number)
        yield Step([self._key(head, again=False) for head in self._heads], {})  # outputs are kept

    def _forward(self, number: int, again: bool) -> Step:
        entries = [Entry(number, output) for output in self._outputs[number]]
        writes = {self._key(entry, again): self._size(entry) for entry in entries}
        return Step([self._key(entry, again) for entry in self._inputs(number)], writes,
                    self._nodes[number].operator.in_place)

    def _backward(self, number: int) -> Iterable[Step]:
        """The gradients by the inputs of a node, once those by its outputs are summed."""
        operator, came = self._nodes[number].operator, []
        for entry in (Entry(number, output) for output in sorted(self._outputs[number])):
            parts = self._gradients.pop(entry, [])
            if len(parts) > 1:
                yield Step(parts, {("sum", *entry): self._size(entry)}, in_place=True)
                parts = [("sum", *entry)]
            came += parts
        inputs = [entry for entry in self._inputs(number)
                  if self._learns[entry.node] and not self._nodes[entry.node].is_variable]
        if not came or operator.constant:
            return
        if operator.passes_gradient:
            for entry in inputs:
                self._gradients.setdefault(entry, []).extend(came)
            return
        if marked := self._marked(number):
            yield from self._run_again(number)
        writes = {}
        for place, entry in enumerate(inputs):
            key = ("gradient", number, place)
            writes[key] = self._size(entry)
            self._gradients.setdefault(entry, []).append(key)
        yield Step(came + [self._key(entry, marked) for entry in self._read(number)], writes, operator.in_place)

    def _run_again(self, number: int) -> Iterable[Step]:
        """Run a marked node, and before it the marked ones that it is computed from, if they have not run again yet."""
        needed, waiting = set(), [number]
        while waiting:
            node = waiting.pop()
            if self._marked(node) and node not in self._again:
                self._again.add(node)
                needed.add(node)
                waiting += [entry.node for entry in self._inputs(node)]
        for node in sorted(needed):
            yield self._forward(node, again=True)

    def _marked(self, number: int) -> bool:
        return ATTRIBUTE in self._nodes[number].attrs

    def _key(self, entry: Entry, again: bool) -> Key:
        """The array of a node's output: for one that runs again, the second array of a marked node."""
        return ("again" if again and self._marked(entry.node) else "map", *entry)

    def _inputs(self, number: int) -> list[Entry]:
        return [entry._replace(version=0) for entry in self._nodes[number].inputs]

    def _read(self, number: int) -> list[Entry]:
        """The outputs of nodes that the backward pass of this one reads."""
        node = self._nodes[number]
        relu = node.op == "Activation" and node.values.act_type == "relu"
        reads = OUTPUT if relu else node.operator.reads
        read = self._inputs(number) if reads & INPUTS else []
        if reads & OUTPUT:
            read.append(Entry(number))
        return [*read, Entry(number, 1)] if node.op == "Dropout" else read  # its mask

    def _size(self, entry: Entry) -> Size:
        """The size of an output, 0 for the statistics of batch norm, which are small."""
        if self._nodes[entry.node].op == "BatchNorm" and entry.output:
            return Size(0, 0)
        return Size(math.prod(self._shapes[entry.node][entry.output]), self._itemsizes[entry.node])
