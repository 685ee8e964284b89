# SPDX-License-Identifier: Apache-2.0
"""A shard on a GPU whose products have 16 bits: what :class:`TorchShard` does, with Triton's kernels.

A chunk's logits live on the chip alone: one kernel makes them and stores their 16-bit weights, from which a library's
product makes the weighted centres (for the gradient by features), or the gradient by the centres. A third pass takes
the optimiser's step, and renews norms and unit vectors.

Products have operands of 16 bits and float32 sums: unit vectors in float16, 2 D bytes a class more than W and its
moments; or W itself where it is stored in 16 bits. With float32 operands they are those of W, as precise as chunks.
Targets' similarities are float32, and margins float64, as in chunks. In 16 bits an angle's cosine errs by some 1e-4.
"""
from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np

from recognition.engines.sizes import TRITON_ROWS_A_CHUNK, WEIGHTS_A_CHUNK
from recognition.engines.torch.imports import torch
from recognition.engines.torch.rounding import signed
from recognition.engines.torch.shard import TorchShard
from recognition.engines.torch.stored_rows import Fetched
from recognition.engines.torch.triton import kernels
from recognition.engines.torch.triton.draw import drawn
from recognition.engines.torch.triton.tiles import rows_of_update, tiles_for, width_of
from recognition.head.rounding import key_of
from recognition.head.shard import SGD, ShardState, merged_statistics
from recognition.optim.adamw import AdamWStep
from recognition.processes.communicator import Communicator

LOG2_E = math.log2(math.e)
RAISED = 2.0**14  # weights of float16, at most 1, so that 4e-12 is not yet 0
LARGEST = 2.0**15  # of a weight in float16, below its largest number
ROOM = 10.0  # a logit to base 2 may be so far above its row's reference


class Part(NamedTuple):
    """A chunk: selected rows ``low .. high - 1``, of whole classes."""

    low: int
    high: int
    units: torch.Tensor  # (rows, D), operands: a view, a copy of those selected, or those of all centres
    inverse: torch.Tensor  # (rows,), of their norms
    weights: torch.Tensor  # (B, rows), to be written


class OfBatch(NamedTuple):
    """Arrays that make logits the gradient by cosines, as the kernel ``slopes`` says."""

    arrays: tuple[torch.Tensor, ...]  # references, rests, of_targets and nearest, (B,) each
    gain: float
    factor: float  # that the kernel leaves out


def summed(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``a b`` with sums of float32."""
    if a.dtype == torch.float32 or a.device.type == "cpu":
        return a.float() @ b.float()
    return torch.mm(a, b, out_dtype=torch.float32)


class TritonShard(TorchShard):
    """Implements :class:`recognition.head.shard.Shard` for normalised heads without bias, up to 2,048 numbers wide.

    ``products``: float16 or float32, of the operands; where W is stored in bfloat16 it is that.
    """

    _drawn = staticmethod(drawn)

    def __init__(self, device: torch.device, start: int, stop: int, dim: int, *, products: torch.dtype = torch.float16,
                 **options: Any) -> None:
        super().__init__(device, start, stop, dim, **options)
        self._dim, centres = dim, self._centres[0]
        self._products = centres.dtype if centres.dtype == torch.bfloat16 else products
        self._scaled = self._products == centres.dtype  # W itself is the operand
        self._inverse = torch.empty(len(centres), device=device)
        self._operand = centres if self._scaled else torch.empty_like(centres, dtype=products)
        card = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
        self._tiles = tiles_for(self._operand.element_size(), card.shared_memory_per_block_optin if card else 1 << 20)
        self._padded = 1 << (self.sub_centres - 1).bit_length()
        self._raised = RAISED if self._products == torch.float16 else 1.0
        self.startup_line = f"head: Triton's kernels, products of {self._products}".replace("torch.", "") + (
            f"; {self.startup_line}" if self.startup_line else "")
        self._renew(0, len(centres))

    def _renew(self, low: int, high: int) -> None:
        """Norms and operands of rows ``low .. high - 1`` from W."""
        if high > low:
            rows = rows_of_update(self._dim)
            with self._current():
                kernels.renew[(-(-(high - low) // rows),)](
                    self._centres[0], self._inverse, self._operand, low, high, dim=self._dim, SCALED=self._scaled,
                    ROWS=rows, WIDTH=width_of(self._dim))

    def _current(self) -> AbstractContextManager[Any]:
        """Context in which the shard's device is the current one, on which Triton launches kernels."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def load(self, state: ShardState, first: int | None = None) -> None:
        super().load(state, first)
        low = 0 if first is None else (first - self.start) * self.sub_centres
        self._renew(low, low + len(state.centres))

    def _parts(self, gathered: bool) -> Iterator[Part]:
        """The selected rows, in pieces of whole classes; ``gathered``: those of a sample are copied side by side."""
        size = max(1, min(TRITON_ROWS_A_CHUNK, WEIGHTS_A_CHUNK // len(self._x)) // self.sub_centres) * self.sub_centres
        rows, selected = len(self._rows), self._rows.selected
        width = -(-min(size, rows) // 16) * 16  # rows of weights begin at an address that products like
        weights = torch.empty((len(self._x), width), dtype=self._products, device=self.device)
        # The first is small: its references are unknown, so it is done twice.
        ends = [0, *range(size if rows <= size else size // self.sub_centres // 8 * self.sub_centres, rows, size), rows]
        for low, high in zip(ends, ends[1:]):
            units, inverse = self._operand, self._inverse
            if selected is None:
                units, inverse = units[low:high], inverse[low:high]
            elif gathered:
                units = units.index_select(0, selected[low:high])
                inverse = inverse.index_select(0, selected[low:high]) if self._scaled else inverse  # else not used
            yield Part(low, high, units, inverse, weights[:, : high - low])

    def _tiled(self, kernel: Any, part: Part, **named: Any) -> None:
        """Launch a kernel over all tiles of a chunk's logits."""
        classes = (part.high - part.low) // self.sub_centres
        kernel[(self._blocks * -(-classes * self._padded // self._tiled_by["COLUMNS"]),)](
            units=part.units, inverse=part.inverse, weights=part.weights, first=part.low // self.sub_centres,
            classes=classes, width=part.weights.stride(0), **self._tiled_by, **named)

    def _begin(self, classes: torch.Tensor) -> None:
        """The first pass: it needs no margin, so the host makes margins while the device computes it."""
        self._low_x, tiles, batch = self._x.to(self._products), self._tiles, len(self._x)
        self._blocks = -(-batch // tiles.batch)
        self._tiled_by = {  # the arguments that kernels over tiles share, the same for all chunks
            "x": self._low_x, "targets": classes, "batch": batch, "scale": self.scale * LOG2_E,
            "ceiling": min(self.ceiling * LOG2_E, 1e30), "dim": self._dim, "SCALED": self._scaled,
            "FILTERED": self.ceiling < np.inf, "K": self.sub_centres, "PADDED": self._padded,
            "WIDENED": self.device.type == "cpu" and self._products == torch.bfloat16, "BATCH": tiles.batch,
            "COLUMNS": max(tiles.columns, self._padded), "DEPTH": tiles.depth, "num_warps": tiles.warps,
            "num_stages": tiles.stages}
        with self._current():
            self._first = self._first_pass()

    def _first_pass(self) -> tuple[Fetched, torch.Tensor]:
        """Weigh the centres by ``2^(logit - reference)``: (3, B) float64, the largest logits, the sums of weights, and
        the references; and the weighted centres (B, D).

        A reference follows the largest logit so far, but within ROOM; so most chunks are done once.
        """
        batch, groups = len(self._x), -(-len(self._x) // kernels.GROUP.value)
        most, references = torch.full((2, batch), -torch.inf, device=self.device)
        total = torch.zeros(batch, dtype=torch.float64, device=self.device)
        grown = torch.empty(groups, dtype=torch.int32, device=self.device)
        weighted = torch.zeros_like(self._x)
        gain = self._raised / 2**ROOM if self._raised > 1 else 1.0
        columns = self._tiled_by["COLUMNS"]
        for part in self._parts(gathered=True):
            tiles = -(-(part.high - part.low) // self.sub_centres * self._padded // columns)
            highest, totals = torch.empty((2, tiles, batch), device=self.device)
            for again in (False, True):
                self._tiled(kernels.exponentials, part, references=references, grown=grown, highest=highest,
                            total=totals, gain=gain, AGAIN=again)
                if not again:
                    kernels.advance[(groups,)](highest, references, grown, total, weighted, batch=batch, tiles=tiles,
                                               room=ROOM, dim=self._dim, DEPTH=min(64, width_of(self._dim)))
            kernels.collect[(groups,)](highest, totals, most, total, batch=batch, tiles=tiles)
            weighted += summed(part.weights, part.units)
        return Fetched(torch.stack([most.double(), total, references.double()])), weighted.div_(gain)

    def statistics(self, target_logits: np.ndarray) -> np.ndarray:
        fetched, self._weighted = self._first
        most, sums, references = fetched()
        self._highest = references / LOG2_E  # what the weighted centres are relative to
        against = np.where(references == -np.inf, 0, references)
        targets = np.full(len(target_logits), -np.inf)
        targets[self._targets.batch] = target_logits[self._targets.batch]
        with np.errstate(invalid="ignore"):
            sums = sums * np.exp2(against - np.where(most == -np.inf, 0, most))
            return merged_statistics(np.stack([most / LOG2_E, targets]), np.stack([sums, np.isfinite(targets)]))

    def _of_batch(self) -> OfBatch:
        (log_sums, count, target_gradients), here = self._given, self._targets.batch
        with np.errstate(invalid="ignore", over="ignore"):
            references = (log_sums * LOG2_E).astype(np.float32)
            rests = np.exp2(references - log_sums * LOG2_E)  # the digits that the references lost
            weights, nearest = np.zeros(len(self._x)), np.full(len(self._x), -1, np.int32)
            weights[here] = target_gradients[here] * (count / self.scale)
        nearest[here] = self._targets.nearest
        largest = np.abs(weights).max(initial=1.0)
        gain = min(self._raised, 2.0 ** math.floor(math.log2(LARGEST / largest))) if largest < np.inf else 1.0
        on_device = self._rows.on_device(references, rests.astype(np.float32), weights.astype(np.float32), nearest)
        return OfBatch(tuple(on_device), gain, self.scale / count)

    def update(self, optimiser: SGD | AdamWStep, replicas: Communicator, measure: bool = False,
               also: np.ndarray | None = None) -> float:
        if not len(self._rows):
            return 0.0
        if isinstance(optimiser, AdamWStep):
            self._need_second_moments()
        (references, rests, of_targets, nearest), gain, factor = self._of_batch()
        squares = torch.empty(len(self._rows) if measure else 1, device=self.device)
        if also is not None:
            more, = self._rows.on_device((also[:-1] * (gain / factor)).astype(np.float32))
        with self._current():
            for part in self._parts(gathered=False):
                self._tiled(kernels.slopes, part, selected=self._rows.selected, references=references, rests=rests,
                            of_targets=of_targets, nearest=nearest, gain=gain)
                gradient = summed(part.weights.T, self._low_x)
                if also is not None:
                    gradient += more
                replicas.sum_in_place(f"centres {self.start} {part.low}", [gradient])
                self._step_of(part, optimiser, gradient, factor / gain, squares, measure)
                del gradient  # before the next one is made
        self._sound &= (self._inverse > 0).all()
        self._finite = Fetched(self._sound)
        return float(squares.double().sum()) if measure else 0.0

    def _step_of(self, part: Part, optimiser: SGD | AdamWStep, gradient: torch.Tensor, factor: float,
                 squares: torch.Tensor, measure: bool) -> None:
        """Update a chunk's centres by ``factor`` times their ``gradient``, (rows, D) float32 by unit vectors."""
        adamw, rows, rounds = (isinstance(optimiser, AdamWStep), rows_of_update(self._dim),
                               self._centres[0].dtype == torch.bfloat16)
        numbers = ({"rate": 0.0, "decay": optimiser.lr * optimiser.wd, "beta1": optimiser.beta1,
                    "beta2": optimiser.beta2, "move": optimiser.lr * optimiser.factor, "eps": optimiser.eps}
                   if isinstance(optimiser, AdamWStep) else
                   {"rate": optimiser.lr, "decay": optimiser.wd, "beta1": optimiser.mu, "beta2": 0.0, "move": 0.0,
                    "eps": 0.0})
        keys = [signed(key_of(self.seed, optimiser.updates, salt)) if rounds else 0 for salt in (0, 1)]
        kernels.update[(-(-(part.high - part.low) // rows),)](
            gradient=gradient, centres=self._centres[0], first_moment=self._centres[1],
            second_moment=self._centres[2 if adamw else 1], inverse=self._inverse, operand=self._operand,
            selected=self._rows.selected, squares=squares, first=part.low, rows=part.high - part.low, factor=factor,
            key=keys[0], key2=keys[1], first_row=self.start * self.sub_centres, dim=self._dim, SCALED=self._scaled,
            ADAMW=adamw, ROUNDED=rounds, MEASURED=measure, ROWS=rows, WIDTH=width_of(self._dim), **numbers)
