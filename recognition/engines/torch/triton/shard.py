# SPDX-License-Identifier: Apache-2.0
"""A shard on a GPU, by two Triton kernels: what :class:`TorchShard` does in chunks, each pass in one reading of W.

The features' gradient is attention over the classes, without softmax's division: in one reading a tile's logits give
both the sums of exponentials and the centres weighted by them, against the largest logit so far. The gradient of W
needs the merged sums, and a logit again: a second reading, in which W, its moments, norms and 16-bit unit vectors are
renewed. Nothing of size B x C exists.

Products have operands of 16 bits and float32 sums: unit vectors in float16, 2 D bytes a class more than W and its
moments; or W itself where it is stored in 16 bits. With float32 operands they are those of W, as precise as chunks.
Targets' similarities are float32, and margins float64, as in chunks. In 16 bits an angle's cosine errs by some 1e-4.
"""
from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import numpy as np

from recognition.engines.torch.imports import torch
from recognition.engines.torch.shard import TorchShard
from recognition.engines.torch.triton import kernels
from recognition.engines.torch.triton.tiles import tiles_for, width_of
from recognition.head.rounding import key_of
from recognition.head.shard import SGD, ShardState, merged_statistics
from recognition.optim.adamw import AdamWStep
from recognition.processes.communicator import Communicator

LOG2_E = math.log2(math.e)
RAISED = 2.0**14  # weights of float16, at most 1, so that 4e-12 is not yet 0
LARGEST = 2.0**15  # of a weight in float16, below its largest number
RENEWED = 16  # rows at a time whose norms are made
PROGRAMS = 128  # of the first pass at least, where the number of multiprocessors is not known


class TritonShard(TorchShard):
    """Implements :class:`recognition.head.shard.Shard` for normalised heads without bias, up to 512 numbers wide.

    ``products``: float16 or float32, of the operands; where W is stored in bfloat16 it is that.
    """

    def __init__(self, device: torch.device, start: int, stop: int, dim: int, *, products: torch.dtype = torch.float16,
                 **options: Any) -> None:
        super().__init__(device, start, stop, dim, **options)
        self._dim, centres = dim, self._centres[0]
        self._products = centres.dtype if centres.dtype == torch.bfloat16 else products
        self._scaled = self._products == centres.dtype  # W itself is the operand
        self._inverse = torch.empty(len(centres), device=device)
        self._operand = centres if self._scaled else torch.empty_like(centres, dtype=products)
        card = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
        self._tiles = tiles_for(dim, centres.new_empty(0, dtype=self._products).element_size(),
                                card.shared_memory_per_block_optin if card else 1 << 20)
        self._programs = card.multi_processor_count if card else PROGRAMS
        self.about = f"head: Triton's kernels, products of {self._products}".replace("torch.", "") + (
            f"; {self.about}" if self.about else "")
        self._renew(0, len(centres))

    def _renew(self, low: int, high: int, selected: torch.Tensor | None = None) -> None:
        """Norms and operands of rows ``low .. high - 1`` from W; or of these places among the ``selected`` rows."""
        if high > low:
            rows = self._inverse if selected is None else selected  # not read without a sample
            self._launch(kernels.renew, (-(-(high - low) // RENEWED),), self._centres[0], self._inverse, self._operand,
                         rows, low, high, dim=self._dim, SAMPLED=selected is not None, SCALED=self._scaled,
                         COLUMNS=RENEWED, WIDTH=width_of(self._dim))

    def _launch(self, kernel: Any, programs: tuple[int, ...], *arrays: Any, **named: Any) -> None:
        """Launch a kernel on the shard's device: Triton itself takes the current one."""
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            kernel[programs](*arrays, **named)

    def load(self, state: ShardState, first: int | None = None) -> None:
        super().load(state, first)
        low = 0 if first is None else (first - self.start) * self.sub_centres
        self._renew(low, low + len(state.centres))

    def _classes_now(self) -> int:
        """The number of selected classes."""
        return len(self._rows) // self.sub_centres

    def _common(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What both passes of a step take: the first arguments, and those by name."""
        padded = 1 << (self.sub_centres - 1).bit_length()
        selected = self._rows.selected
        named = {"scale": self.scale * LOG2_E, "dim": self._dim, "SAMPLED": selected is not None,
                 "SCALED": self._scaled, "FILTERED": self.ceiling < np.inf, "K": self.sub_centres, "PADDED": padded,
                 "ceiling": min(self.ceiling * LOG2_E, 1e30), "WIDTH": width_of(self._dim),
                 "num_warps": self._tiles.warps, "num_stages": self._tiles.stages, "batch": len(self._x),
                 "classes": self._classes_now(),
                 "WIDENED": self.device.type == "cpu" and self._products == torch.bfloat16}
        rows = self._inverse if selected is None else selected  # not read without a sample
        return (self._x.to(self._products), self._operand, self._inverse, rows, self._of_rows(
            self._targets.places[1] // self.sub_centres)), named

    def _of_rows(self, values: torch.Tensor) -> torch.Tensor:
        """Numbers of the rows of the batch whose targets are here, int32 (B,); -1 for the others."""
        found = torch.full((len(self._x),), -1, dtype=torch.int32, device=self.device)
        found[self._targets.places[0]] = values.int()
        return found

    @property
    def _raised(self) -> float:
        return RAISED if self._products == torch.float16 else 1.0

    def similarities(self, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        found = super().similarities(x, labels)
        self._both = self._common()
        return found

    def statistics(self, target_logits: np.ndarray) -> np.ndarray:
        first, named = self._both
        own, others = self._tiles.own, self._tiles.others
        padded, batch = named["PADDED"], len(self._x)
        others = max(others, padded)
        blocks, tiles = -(-batch // own), -(-self._classes_now() * padded // others)
        a_part = -(-tiles // max(1, self._programs // blocks))
        parts = max(1, -(-tiles // max(1, a_part)))
        highest, total = torch.empty((2, parts, batch), device=self.device)
        weighted = torch.empty((parts, batch, self._dim), device=self.device)
        self._launch(kernels.statistics, (blocks, parts), *first, highest, total, weighted, gain=self._raised,
                     tiles_a_part=a_part, BATCH=own, COLUMNS=others, **named)
        most = highest.amax(dim=0)
        shares = torch.exp2(highest - most.masked_fill(most == -torch.inf, 0))
        self._weighted = torch.einsum("pb,pbd->bd", shares, weighted).div_(self._raised)
        sums = (total.double() * shares).sum(dim=0)
        self._highest, sums = torch.stack([most.double() / LOG2_E, sums]).cpu().numpy()
        targets = np.full(len(target_logits), -np.inf)
        targets[self._targets.batch] = target_logits[self._targets.batch]
        with np.errstate(invalid="ignore"):
            return merged_statistics(np.stack([self._highest, targets]), np.stack([sums, np.isfinite(targets)]))

    def gradient(self, log_sums: np.ndarray, count: int, target_gradients: np.ndarray) -> np.ndarray:
        d_x = super().gradient(log_sums, count, target_gradients)
        with np.errstate(invalid="ignore", over="ignore"):
            references = (log_sums * LOG2_E).astype(np.float32)
            rests = np.exp2(references - log_sums * LOG2_E)  # the digits that the references lost
            weights = np.zeros(len(self._x))
            here = self._targets.batch
            weights[here] = target_gradients[here] * (count / self.scale)
        self._factor = self.scale / count
        largest = np.abs(weights).max(initial=1.0)
        self._gain = min(self._raised, 2.0 ** math.floor(math.log2(LARGEST / largest))) if largest < np.inf else 1.0
        self._of_batch = [self._on_device(array.astype(np.float32)) for array in (weights, references, rests)]
        return d_x

    def update(self, optimiser: SGD | AdamWStep, replicas: Communicator, measure: bool = False,
               also: np.ndarray | None = None) -> float:
        if not len(self._rows):
            return 0.0
        if replicas.size > 1 or also is not None:  # sums of the processes' gradients, and what is added, need chunks
            squares = super().update(optimiser, replicas, measure, also)
            self._renew(0, len(self._rows), self._rows.selected)
            return squares
        adamw = isinstance(optimiser, AdamWStep)
        if adamw:
            self._need_second_moments()
        first, named = self._both
        columns = max(self._tiles.own, named["PADDED"])
        squares = torch.empty(len(self._rows) if measure else 1, device=self.device)
        moments = [self._centres[1], self._centres[2 if adamw else 1]]
        keys = [key_of(self.seed, optimiser.updates, salt) for salt in (0, 1)]
        numbers = ({"rate": 0.0, "decay": optimiser.lr * optimiser.wd, "beta1": optimiser.beta1,
                    "beta2": optimiser.beta2, "move": optimiser.lr * optimiser.factor, "eps": optimiser.eps}
                   if isinstance(optimiser, AdamWStep) else
                   {"rate": optimiser.lr, "decay": optimiser.wd, "beta1": optimiser.mu, "beta2": 0.0, "move": 0.0,
                    "eps": 0.0})
        self._launch(
            kernels.update, (-(-self._classes_now() * named["PADDED"] // columns),), *first,
            self._of_rows(self._targets.places[2]), *self._of_batch, self._centres[0], *moments, squares,
            gain=self._gain, factor=self._factor / self._gain, key=_signed(keys[0]), key2=_signed(keys[1]),
            first_row=self.start * self.sub_centres, ADAMW=adamw, ROUNDED=self._centres[0].dtype == torch.bfloat16,
            MEASURED=measure, BATCH=self._tiles.others, COLUMNS=columns, **numbers, **named)
        self._renew(0, len(self._rows), self._rows.selected)
        self._sound &= (self._inverse > 0).all()
        return float(squares.double().sum()) if measure else 0.0


def _signed(word: int) -> int:
    """The int32 of the same bits as a 32-bit word: Triton would compile anew for larger numbers."""
    return word - (1 << 32) if word >= 1 << 31 else word
