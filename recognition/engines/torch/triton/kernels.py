# SPDX-License-Identifier: Apache-2.0
"""The head's passes over a chunk of W as Triton kernels: logits become 16-bit weights on the chip.

Names of their arguments, in addition to those of :mod:`recognition.engines.torch.triton.shard`:

- ``x`` (batch, dim), features, and ``units`` (rows, dim), the chunk's unit vectors of 16 bits; or centres themselves,
  whose inner products ``inverse`` (rows,) then makes cosines (SCALED). Sums are float32.
- ``first``: the number of the chunk's first class among the selected ones; ``classes``: how many the chunk has.
- ``targets``: (batch,) int32, the number of the label's class among the selected ones, or -1.
- ``scale``, ``ceiling``: from a cosine to a logit, and the largest logit that counts (with FILTERED), to base 2.
- ``references``: (batch,) float32: a logit's weight is ``2^(logit - reference)``.
- ``gain``: a power of two by which 16-bit weights are raised, lest the least of them vanish.
- WIDENED: products of bfloat16 are made as float32, for Triton's interpreter, which has none.
- BATCH and COLUMNS are a tile's rows of the batch and columns (of classes), DEPTH the numbers that a product takes at
  a time. A class takes PADDED columns, a power of two, of which the first K are its sub-centres.
"""
from __future__ import annotations

import triton
import triton.language as tl

from recognition.engines.torch.triton.parts import columns_of_tile, logits_of_tile, unit_vectors
from recognition.engines.torch.triton.steps import optimise

GROUP = tl.constexpr(16)  # rows of the batch whose references are raised together
SUMMED = tl.constexpr(128)  # tiles of classes whose sums are read at once


@triton.jit(do_not_specialize=["first", "classes", "width"])
def exponentials(x, units, inverse, targets, references, grown, highest, total, weights,  # type: ignore[no-untyped-def]
                 batch, first, classes, width, scale, ceiling, gain, dim: tl.constexpr, AGAIN: tl.constexpr,
                 SCALED: tl.constexpr, FILTERED: tl.constexpr, WIDENED: tl.constexpr, K: tl.constexpr,
                 PADDED: tl.constexpr, BATCH: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):
    """The weights of a chunk's classes, targets apart: one program a tile, those of the same classes side by side.

    :param grown: (groups of the batch,) int32; AGAIN, only blocks with one where it is not 0 are computed.
    :param highest, total: out, (tiles of classes, batch): the largest logit of a row in a tile, -inf if none counts,
        and the sum of its weights.
    :param weights: out, (batch, ``width``): ``gain`` times the weights; by ``inverse``, too, with SCALED.
    """
    blocks = tl.cdiv(batch, BATCH)
    block, tile = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    if AGAIN:
        groups = block * (BATCH // GROUP) + tl.arange(0, BATCH // GROUP)
        if tl.max(tl.load(grown + groups, mask=groups * GROUP < batch, other=0), 0) == 0:
            return
    b = block * BATCH + tl.arange(0, BATCH)
    number, row, there = columns_of_tile(tile, classes, K, PADDED, COLUMNS)
    at_end = (tile + 1) * COLUMNS > classes * PADDED
    z, factor = logits_of_tile(x, units, inverse, targets, b, number, tl.minimum(row, classes * K - 1), there,
                               at_end=at_end, batch=batch, first=first, scale=scale, ceiling=ceiling, dim=dim,
                               SCALED=SCALED, FILTERED=FILTERED, WIDENED=WIDENED, K=K, PADDED=PADDED, BATCH=BATCH,
                               COLUMNS=COLUMNS, DEPTH=DEPTH)
    reference = tl.load(references + b, mask=b < batch, other=0.0)
    reference = tl.where(reference == float("-inf"), 0.0, reference)
    p = tl.exp2(z - reference[:, None])
    at = tile.to(tl.int64) * batch + b
    tl.store(highest + at, tl.max(z, 1), mask=b < batch)
    tl.store(total + at, tl.sum(p, 1), mask=b < batch)
    p = p * (factor * gain)[None, :] if SCALED else p * gain
    tl.store(weights + b.to(tl.int64)[:, None] * width + row[None, :], p.to(weights.dtype.element_ty),
             mask=(b < batch)[:, None] & there[None, :])


@triton.jit(do_not_specialize=["tiles"])
def advance(highest, references, grown, total, weighted, batch, tiles, room, dim: tl.constexpr,  # type: ignore[no-untyped-def]
            DEPTH: tl.constexpr):
    """Raise the references of rows whose largest logit of a chunk is more than ``room`` above: one program a group.

    :param highest: (tiles of classes, batch), of the chunk; ``grown`` is written, and the sums until now, ``total``
        (batch,) float64 and ``weighted`` (batch, dim) float32, shrink with the weights.
    """
    b = tl.program_id(0) * GROUP + tl.arange(0, GROUP)
    inside = b < batch
    most = tl.full((GROUP,), float("-inf"), tl.float32)
    for start in range(0, tiles, SUMMED):
        tile = start + tl.arange(0, SUMMED)
        most = tl.maximum(most, tl.max(tl.load(highest + tile[:, None] * batch + b[None, :],
                                               mask=(tile < tiles)[:, None] & inside[None, :], other=float("-inf")), 0))
    before = tl.load(references + b, mask=inside, other=0.0)
    grows = inside & (most > before + room)
    now = tl.where(grows, most, before)
    tl.store(grown + tl.program_id(0), tl.max(grows.to(tl.int32), 0))
    tl.store(references + b, now, mask=grows)
    shrink = tl.where(grows, tl.exp2(before - now), 1.0)
    tl.store(total + b, tl.load(total + b, mask=grows, other=0.0) * shrink, mask=grows)
    for start in range(0, dim, DEPTH):
        d = start + tl.arange(0, DEPTH)
        at = b[:, None] * dim + d[None, :]
        there = grows[:, None] & (d < dim)[None, :]
        tl.store(weighted + at, tl.load(weighted + at, mask=there, other=0.0) * shrink[:, None], mask=there)


@triton.jit(do_not_specialize=["tiles"])
def collect(highest, totals, most, total, batch, tiles):  # type: ignore[no-untyped-def]
    """Add a chunk's sums ``totals`` (tiles of classes, batch) to ``total`` (batch,) float64, and its largest logits to
    ``most`` (batch,): one program a group."""
    b = tl.program_id(0) * GROUP + tl.arange(0, GROUP)
    inside = b < batch
    largest = tl.load(most + b, mask=inside, other=float("-inf"))
    sums = tl.load(total + b, mask=inside, other=0.0)
    for start in range(0, tiles, SUMMED):
        tile = start + tl.arange(0, SUMMED)
        at, there = tile[:, None] * batch + b[None, :], (tile < tiles)[:, None] & inside[None, :]
        largest = tl.maximum(largest, tl.max(tl.load(highest + at, mask=there, other=float("-inf")), 0))
        sums += tl.sum(tl.load(totals + at, mask=there, other=0.0), 0).to(tl.float64)
    tl.store(most + b, largest, mask=inside)
    tl.store(total + b, sums, mask=inside)


@triton.jit(do_not_specialize=["first", "classes", "width"])
def slopes(x, units, inverse, selected, targets, references, rests, nearest, of_targets, weights,  # type: ignore[no-untyped-def]
           batch, first, classes, width, scale, ceiling, gain, dim: tl.constexpr, SCALED: tl.constexpr,
           FILTERED: tl.constexpr, WIDENED: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr, BATCH: tl.constexpr,
           COLUMNS: tl.constexpr, DEPTH: tl.constexpr):
    """The gradient by a chunk's cosines, up to a factor that all have: one program a tile.

    :param selected: of a sample, the rows of all selected centres, int64: ``units`` and ``inverse`` are then those of
        all centres; else None.
    :param rests: (batch,) float32: a weight is ``2^(logit - reference) * rest``.
    :param nearest: (batch,) int32, the place of the row of the target's nearest sub-centre, or -1.
    :param of_targets: (batch,) float32: what stands there in place of the weight.
    :param weights: out, (batch, ``width``): ``gain`` times the gradient.
    """
    blocks = tl.cdiv(batch, BATCH)
    block, tile = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    b = block * BATCH + tl.arange(0, BATCH)
    number, row, there = columns_of_tile(tile, classes, K, PADDED, COLUMNS)
    at_end = (tile + 1) * COLUMNS > classes * PADDED
    source = tl.minimum(row, classes * K - 1)
    if selected is not None:
        source = tl.load(selected + first * K + source)
    z, _ = logits_of_tile(x, units, inverse, targets, b, number, source, there, at_end=at_end, batch=batch, first=first,
                          scale=scale, ceiling=ceiling, dim=dim, SCALED=SCALED, FILTERED=FILTERED, WIDENED=WIDENED,
                          K=K, PADDED=PADDED, BATCH=BATCH, COLUMNS=COLUMNS, DEPTH=DEPTH)
    reference = tl.load(references + b, mask=b < batch, other=float("inf"))
    p = tl.exp2(z - reference[:, None]) * (tl.load(rests + b, mask=b < batch, other=0.0) * gain)[:, None]
    place = tl.load(nearest + b, mask=b < batch, other=-1) - first * K
    if tl.max(((place >= tl.min(row, 0)) & (place <= tl.max(row, 0))).to(tl.int32), 0) > 0:
        of_target = tl.load(of_targets + b, mask=b < batch, other=0.0) * gain
        p = tl.where(row[None, :] == place[:, None], of_target[:, None], p)
    tl.store(weights + b.to(tl.int64)[:, None] * width + row[None, :], p.to(weights.dtype.element_ty),
             mask=(b < batch)[:, None] & there[None, :])


@triton.jit(do_not_specialize=["first", "rows", "key", "key2", "first_row"])
def update(gradient, centres, first_moment, second_moment, inverse, operand, selected, squares,  # type: ignore[no-untyped-def]
           first, rows, factor, rate, decay, beta1, beta2, move, eps, key, key2, first_row, dim: tl.constexpr,
           SCALED: tl.constexpr, ADAMW: tl.constexpr, ROUNDED: tl.constexpr, MEASURED: tl.constexpr,
           ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The optimiser's step of a chunk's centres, and their new norms and unit vectors: one program a few rows.

    :param gradient: (rows, dim) float32: times ``factor``, by the unit vectors.
    :param centres: and their moments, float32 or bfloat16 (ROUNDED), are updated; and ``inverse`` and, unless SCALED,
        ``operand``, as :func:`renew` does.
    :param selected: of a sample, the rows of its centres, int64, of which ``first`` is the chunk's first; else None.
    :param squares: out, float32, with MEASURED: the squared norms of the gradients by the selected centres.
    :param rate, decay, beta1: of SGD: learning rate, decay and momentum. Of AdamW: as in AdamWStep, ``decay`` is
        ``lr * wd``, and ``move`` ``lr * factor``.
    :param key, key2: of the random bits, for the centres and their first moment, and for the second one.
    :param first_row: the number, among all rows, of the shard's first.
    """
    local = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there, place, d = local < rows, first + local, tl.arange(0, WIDTH)
    row = tl.load(selected + place, mask=there, other=0) if selected is not None else place.to(tl.int64)
    at = row[:, None] * dim + d[None, :]
    inside = there[:, None] & (d < dim)[None, :]
    values = tl.load(centres + at, mask=inside, other=0.0).to(tl.float32)
    lengths = tl.load(inverse + row, mask=there, other=0.0)
    slope = tl.load(gradient + local[:, None] * dim + d[None, :], mask=inside, other=0.0) * factor
    vectors = values * lengths[:, None]
    slope = (slope - tl.sum(slope * vectors, 1)[:, None] * vectors) * lengths[:, None]
    if MEASURED:
        tl.store(squares + place, tl.sum(slope * slope, 1), mask=there)
    values = optimise(values, slope, at, inside, first_row + row, d, first_moment, second_moment, rate=rate,
                      decay=decay, beta1=beta1, beta2=beta2, move=move, eps=eps, key=key, key2=key2, ADAMW=ADAMW,
                      ROUNDED=ROUNDED)
    tl.store(centres + at, values.to(centres.dtype.element_ty), mask=inside)
    lengths, vectors = unit_vectors(values)
    tl.store(inverse + row, lengths, mask=there)
    if not SCALED:
        tl.store(operand + at, vectors.to(operand.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["first", "last"])
def renew(centres, inverse, operand, first, last, dim: tl.constexpr, SCALED: tl.constexpr,  # type: ignore[no-untyped-def]
          ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Inverse norms ``1 / sqrt(|w|^2 + 1e-10)`` and, unless SCALED, unit vectors of the rows ``first .. last - 1``: one
    program a few rows, with the bits of :func:`update`, so that a run that goes on has those of the one that stopped.
    """
    row = (first + tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    there, d = row < last, tl.arange(0, WIDTH)
    at = row[:, None] * dim + d[None, :]
    inside = there[:, None] & (d < dim)[None, :]
    lengths, vectors = unit_vectors(tl.load(centres + at, mask=inside, other=0.0).to(tl.float32))
    tl.store(inverse + row, lengths, mask=there)
    if not SCALED:
        tl.store(operand + at, vectors.to(operand.dtype.element_ty), mask=inside)
