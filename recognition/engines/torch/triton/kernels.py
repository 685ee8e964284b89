# SPDX-License-Identifier: Apache-2.0
"""The head's passes over W as Triton kernels: tiles of logits live on the chip alone.

Names of their arguments, in addition to those of :mod:`recognition.engines.torch.triton.shard`:

- ``x`` (batch, dim), features, and ``operand`` (rows, dim), what their products are with: unit vectors of 16 bits, or W
  itself, whose inner products ``inverse`` (rows,) then makes cosines (SCALED). Sums are float32.
- ``classes``: the number of selected classes; ``selected``: the rows of their centres, int64 (with SAMPLED).
- ``targets``: (batch,) int32, the number of the label's class among them, or -1.
- ``scale``, ``ceiling``: from a cosine to a logit, and the largest logit that counts (with FILTERED), to base 2.
- ``gain``: a power of two by which 16-bit weights are raised, lest the least of them vanish.
- WIDENED: products of bfloat16 are made as float32, for Triton's interpreter, which has none.
- BATCH and COLUMNS are a tile's rows of the batch and columns (of classes); WIDTH is ``dim`` raised to a power of two.
"""
from __future__ import annotations

import triton
import triton.language as tl

from recognition.engines.torch.triton.parts import nearest_only, product, rows_of_tile
from recognition.engines.torch.triton.steps import halves, optimise


@triton.jit(do_not_specialize=["classes", "tiles_a_part"])
def statistics(x, operand, inverse, selected, targets, highest, total, weighted, batch, classes,  # type: ignore[no-untyped-def]
               scale, ceiling, gain, tiles_a_part, dim: tl.constexpr, SAMPLED: tl.constexpr, SCALED: tl.constexpr,
               FILTERED: tl.constexpr, WIDENED: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr,
               BATCH: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr):
    """The softmax of a block of the batch over a part of the classes, and the centres weighted by it.

    Programs: (blocks of the batch, parts). Those of one part run side by side, and read its tiles from the cache.

    :param highest: out, (parts, batch): the largest logit to base 2, targets apart; -inf if none counts.
    :param total: out, (parts, batch): the sum of ``2^(logit - highest)``.
    :param weighted: out, (parts, batch, dim): ``gain`` times the sum of these numbers by the centres' unit vectors.
    """
    part = tl.program_id(1)
    b = tl.program_id(0) * BATCH + tl.arange(0, BATCH)
    d = tl.arange(0, WIDTH)
    features = tl.load(x + b[:, None] * dim + d[None, :], mask=(b < batch)[:, None] & (d < dim)[None, :], other=0.0)
    target = tl.load(targets + b, mask=b < batch, other=-1)
    most = tl.full((BATCH,), float("-inf"), tl.float32)
    sums = tl.zeros((BATCH,), tl.float32)
    vectors = tl.zeros((BATCH, WIDTH), tl.float32)
    last = tl.minimum((part + 1) * tiles_a_part, tl.cdiv(classes * PADDED, COLUMNS))
    for tile in range(part * tiles_a_part, last):
        number, _, row, there = rows_of_tile(tile, classes, selected, SAMPLED, K, PADDED, COLUMNS)
        w = tl.load(operand + row[:, None] * dim + d[None, :], mask=there[:, None] & (d < dim)[None, :], other=0.0)
        z = product(features, tl.trans(w), tl.zeros((BATCH, COLUMNS), tl.float32), WIDENED) * scale
        if SCALED:
            factor = tl.load(inverse + row, mask=there, other=0.0)
            z = z * factor[None, :]
        z = tl.where(there[None, :], z, float("-inf"))
        if K > 1:
            z = tl.trans(nearest_only(tl.trans(z), COLUMNS // PADDED, PADDED, BATCH))
        if FILTERED:
            z = tl.where(z > ceiling, float("-inf"), z)
        z = tl.where(number[None, :] == target[:, None], float("-inf"), z)
        before = most
        most = tl.maximum(before, tl.max(z, 1))
        reference = tl.where(most == float("-inf"), 0.0, most)
        shrink = tl.exp2(before - reference)
        p = tl.exp2(z - reference[:, None])
        sums = sums * shrink + tl.sum(p, 1)
        p = p * gain
        if SCALED:
            p = p * factor[None, :]
        vectors = product(p.to(w.dtype), w, vectors * shrink[:, None], WIDENED)
    place = part.to(tl.int64) * batch + b
    tl.store(highest + place, most, mask=b < batch)
    tl.store(total + place, sums, mask=b < batch)
    tl.store(weighted + place[:, None] * dim + d[None, :], vectors, mask=(b < batch)[:, None] & (d < dim)[None, :])


@triton.jit(do_not_specialize=["classes", "key", "key2", "first_row"])
def update(x, operand, inverse, selected, targets, nearest, weights, references, rests,  # type: ignore[no-untyped-def]
           centres, first_moment, second_moment, squares, batch, classes, scale, ceiling, gain, factor, rate, decay,
           beta1, beta2, move, eps, key, key2, first_row, dim: tl.constexpr, SAMPLED: tl.constexpr,
           SCALED: tl.constexpr, FILTERED: tl.constexpr, ADAMW: tl.constexpr, ROUNDED: tl.constexpr,
           MEASURED: tl.constexpr, WIDENED: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr, BATCH: tl.constexpr,
           COLUMNS: tl.constexpr, WIDTH: tl.constexpr):
    """A tile's logits again, its part of the gradient of W, and its optimiser's step: one program a tile.

    :param nearest: (batch,) int32, the place of the row of the target's nearest sub-centre, or -1.
    :param weights: (batch,) float32: what stands there in place of the exponential.
    :param references, rests: (batch,) float32: a logit's weight is ``2^(logit - reference) * rest``.
    :param centres: and their moments, float32 or bfloat16 (ROUNDED), are updated; :func:`renew` is for ``inverse`` and
        ``operand``.
    :param squares: out, (places,) float32, with MEASURED: the squared norms of the gradients by the centres.
    :param factor: of the sum of weighted features, to make it the gradient by a unit vector.
    :param rate, decay, beta1: of SGD: learning rate, decay and momentum. Of AdamW: as in AdamWStep, ``decay`` is
        ``lr * wd``, and ``move`` ``lr * factor``.
    :param key, key2: of the random bits, for the centres and their first moment, and for the second one.
    :param first_row: the number, among all rows, of the shard's first.
    """
    d = tl.arange(0, WIDTH)
    number, place, row, there = rows_of_tile(tl.program_id(0), classes, selected, SAMPLED, K, PADDED, COLUMNS)
    at = row[:, None] * dim + d[None, :]
    inside = there[:, None] & (d < dim)[None, :]
    lengths = tl.load(inverse + row, mask=there, other=0.0)
    w = tl.load(operand + at, mask=inside, other=0.0)
    gradient = tl.zeros((COLUMNS, WIDTH), tl.float32)
    along = tl.zeros((COLUMNS,), tl.float32)  # the gradient's part along the unit vectors
    for first in range(0, batch, BATCH):
        b = first + tl.arange(0, BATCH)
        features = tl.load(x + b[:, None] * dim + d[None, :], mask=(b < batch)[:, None] & (d < dim)[None, :], other=0.0)
        z = product(w, tl.trans(features), tl.zeros((COLUMNS, BATCH), tl.float32), WIDENED) * scale
        if SCALED:
            z = z * lengths[:, None]
        similarity = z
        if K > 1:
            z = nearest_only(tl.where(there[:, None], z, float("-inf")), COLUMNS // PADDED, PADDED, BATCH)
        if FILTERED:
            z = tl.where(z > ceiling, float("-inf"), z)
        reference = tl.load(references + b, mask=b < batch, other=float("inf"))
        p = tl.exp2(z - reference[None, :]) * tl.load(rests + b, mask=b < batch, other=0.0)[None, :]
        p = tl.where(number[:, None] == tl.load(targets + b, mask=b < batch, other=-1)[None, :], 0.0, p)
        is_target = place[:, None] == tl.load(nearest + b, mask=b < batch, other=-1)[None, :]
        p = tl.where(is_target & there[:, None], tl.load(weights + b, mask=b < batch, other=0.0)[None, :], p)
        along += tl.sum(p * similarity, 1)
        gradient = product((p * gain).to(w.dtype), features, gradient, WIDENED)

    along = along * (factor * gain / scale) * lengths
    left, right = halves(gradient * factor, COLUMNS, WIDTH)
    a, b = halves(left, COLUMNS, WIDTH // 2)
    c, e = halves(right, COLUMNS, WIDTH // 2)
    quarter: tl.constexpr = WIDTH // 4
    square = optimise(a, 0, along, lengths, row, there, centres=centres, first_moment=first_moment,
                      second_moment=second_moment, rate=rate, decay=decay, beta1=beta1, beta2=beta2, move=move,
                      eps=eps, key=key, key2=key2, first_row=first_row, dim=dim,
                      ADAMW=ADAMW, ROUNDED=ROUNDED, WIDTH=quarter)
    square += optimise(b, quarter, along, lengths, row, there, centres=centres, first_moment=first_moment,
                       second_moment=second_moment, rate=rate, decay=decay, beta1=beta1, beta2=beta2, move=move,
                       eps=eps, key=key, key2=key2, first_row=first_row, dim=dim,
                       ADAMW=ADAMW, ROUNDED=ROUNDED, WIDTH=quarter)
    square += optimise(c, 2 * quarter, along, lengths, row, there, centres=centres, first_moment=first_moment,
                       second_moment=second_moment, rate=rate, decay=decay, beta1=beta1, beta2=beta2, move=move,
                       eps=eps, key=key, key2=key2, first_row=first_row, dim=dim,
                       ADAMW=ADAMW, ROUNDED=ROUNDED, WIDTH=quarter)
    square += optimise(e, 3 * quarter, along, lengths, row, there, centres=centres, first_moment=first_moment,
                       second_moment=second_moment, rate=rate, decay=decay, beta1=beta1, beta2=beta2, move=move,
                       eps=eps, key=key, key2=key2, first_row=first_row, dim=dim,
                       ADAMW=ADAMW, ROUNDED=ROUNDED, WIDTH=quarter)
    if MEASURED:
        tl.store(squares + place, square, mask=there)


@triton.jit(do_not_specialize=["first", "last"])
def renew(centres, inverse, operand, selected, first, last, dim: tl.constexpr, SAMPLED: tl.constexpr,  # type: ignore[no-untyped-def]
          SCALED: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr):
    """Inverse norms ``1 / sqrt(|w|^2 + 1e-10)`` and, unless SCALED, unit vectors of the rows ``first .. last - 1``, or
    of those places among the selected ones: one program a tile.

    They are made here alone, after an update as after a load: so a run that goes on has the bits of the one that
    stopped. In the second pass itself they would save one of its readings of W, and spill 1.2 KB a thread.
    """
    place = first + tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there = place < last
    row = tl.load(selected + place, mask=there, other=0) if SAMPLED else place.to(tl.int64)
    d = tl.arange(0, WIDTH)
    at = row[:, None] * dim + d[None, :]
    inside = there[:, None] & (d < dim)[None, :]
    values = tl.load(centres + at, mask=inside, other=0.0).to(tl.float32)
    lengths = tl.div_rn(1.0, tl.sqrt_rn(tl.sum(values * values, 1) + 1e-10))
    tl.store(inverse + row, lengths, mask=there)
    if not SCALED:
        tl.store(operand + at, (values * lengths[:, None]).to(operand.dtype.element_ty), mask=inside)
