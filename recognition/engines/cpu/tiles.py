# SPDX-License-Identifier: Apache-2.0
"""The inner loops of matrix products for Numba, written as LLVM's vector operations.

A library's product packs its operands first, which does not pay when one of them is a batch of features and the other
gigabytes of class centres. Here a tile of the result stays in registers while one loop over the depth adds outer
products (Goto and van de Geijn, 2008, without the packing). The order of every sum is fixed, so the bits do not depend
on the compiler, on threads, or on the tile's size.
"""
from __future__ import annotations

from typing import Any

import numba
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from recognition.engines.sizes import COLUMNS_A_TILE

# AVX-512 has 32 registers of 16 floats: 24 sums, 4 columns and a factor fill them. AVX2 has 16 of 8.
LANES, VECTORS = (16, 4) if binding.get_host_cpu_features().get("avx512f") else (8, 2)
WIDE_COLUMNS, NARROW_COLUMNS = LANES * VECTORS, COLUMNS_A_TILE  # columns of a tile; then single columns
INT, FLOAT, LINE_BYTES = ir.IntType(64), ir.FloatType(), 64


def _vector(lanes: int) -> ir.Type:
    return ir.VectorType(FLOAT, lanes) if lanes > 1 else FLOAT


def _number(value: int) -> ir.Constant:
    return ir.Constant(INT, value)


def _zero(lanes: int) -> ir.Constant:
    return ir.Constant(_vector(lanes), [0.0] * lanes if lanes > 1 else 0.0)


def _load(builder: Any, address: Any, kind: ir.Type, align: int = 4) -> Any:
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = align
    return value


def _multiply_add(builder: Any, lanes: int, *operands: Any) -> Any:
    """Compute ``a * b + c``, rounded once where the processor can."""
    name = f"llvm.fmuladd.v{lanes}f32" if lanes > 1 else "llvm.fmuladd.f32"
    kind = _vector(lanes)
    return builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name),
                        operands)


def _spread(builder: Any, value: Any, lanes: int) -> Any:
    if lanes == 1:
        return value
    empty = ir.Constant(_vector(lanes), ir.Undefined)
    first = builder.insert_element(empty, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))


def _make_tile(rows: int, vectors: int, lanes: int) -> Any:
    """An intrinsic for one size of tile; see :func:`multiply` for its arguments."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, a_index, a_row, a_k, b, b_index, b_row, c, c_row, depth, add = arguments
        kind, places = _vector(lanes), [(i, j) for i in range(rows) for j in range(vectors)]

        def number_at(address: Any, place: Any) -> Any:
            return _load(builder, builder.add(address, builder.mul(place, _number(8))), INT, 8)

        starts = [builder.add(a, builder.mul(number_at(a_index, _number(i)), a_row)) for i in range(rows)]
        sums_at = [builder.add(builder.add(c, builder.mul(_number(i), c_row)), _number(4 * lanes * j))
                   for i, j in places]
        before = builder.block
        with builder.if_then(builder.icmp_signed("!=", add, _number(0))):
            stored = [_load(builder, address, kind) for address in sums_at]
            loaded = builder.block
        first = [builder.phi(kind) for _ in places]
        for phi, value in zip(first, stored):
            phi.add_incoming(_zero(lanes), before)
            phi.add_incoming(value, loaded)

        entry, body, after = builder.block, builder.append_basic_block("depth"), builder.append_basic_block("store")
        builder.branch(body)
        builder.position_at_end(body)
        k, sums = builder.phi(INT), [builder.phi(kind) for _ in places]
        b_at = builder.add(b, builder.mul(number_at(b_index, k), b_row))
        columns = [_load(builder, builder.add(b_at, _number(4 * lanes * j)), kind) for j in range(vectors)]
        a_at = builder.mul(k, a_k)
        factors = [_spread(builder, _load(builder, builder.add(start, a_at), FLOAT), lanes) for start in starts]
        added = [_multiply_add(builder, lanes, factors[i], columns[j], total) for (i, j), total in zip(places, sums)]
        following = builder.add(k, _number(1))
        for phi, incoming, start in [(k, following, _number(0)), *zip(sums, added, first)]:
            phi.add_incoming(start, entry)
            phi.add_incoming(incoming, body)
        builder.cbranch(builder.icmp_signed("<", following, depth), body, after)
        builder.position_at_end(after)
        for address, total in zip(sums_at, added):
            builder.store(total, builder.inttoptr(address, kind.as_pointer())).align = 4
        return context.get_dummy_value()

    @intrinsic
    def tile(typing, a, a_index, a_row, a_k, b, b_index, b_row, c, c_row, depth, add):  # type: ignore[no-untyped-def]
        return types.void(*[types.int64] * 11), generate

    return tile


_six_wide, _four_wide, _one_wide = (_make_tile(rows, VECTORS, LANES) for rows in (6, 4, 1))
_six_narrow, _four_narrow, _one_narrow = (_make_tile(rows, NARROW_COLUMNS // LANES, LANES) for rows in (6, 4, 1))
_six_single, _four_single, _one_single = (_make_tile(rows, 1, 1) for rows in (6, 4, 1))


@numba.njit(no_cfunc_wrapper=True)
def multiply(width, rows, a, a_index, a_row, a_k, b, b_index, b_row, c, c_row, depth, add):  # type: ignore[no-untyped-def]
    """Compute ``C = A B`` (or ``C += A B`` if ``add``) for ``rows`` rows of A and ``width`` columns of B, in float32.

    All but the first two are int64: addresses, or distances in bytes. Row i of A begins at ``a + a_index[i] * a_row``,
    its elements ``a_k`` apart; row k of B, contiguous, at ``b + b_index[k] * b_row``; row i of C, contiguous, at
    ``c + i * c_row``. ``width`` is WIDE_COLUMNS, NARROW_COLUMNS or 1; ``depth`` at least 1; indices are int64.
    """
    i = 0
    while i < rows:
        size = 6 if rows - i >= 6 and rows - i != 8 else 4 if rows - i >= 4 else 1  # eight are two fours
        index, out = a_index + 8 * i, c + i * c_row
        if width == WIDE_COLUMNS:
            if size == 6:
                _six_wide(a, index, a_row, a_k, b, b_index, b_row, out, c_row, depth, add)
            elif size == 4:
                _four_wide(a, index, a_row, a_k, b, b_index, b_row, out, c_row, depth, add)
            else:
                _one_wide(a, index, a_row, a_k, b, b_index, b_row, out, c_row, depth, add)
        elif width == NARROW_COLUMNS:
            if size == 6:
                _six_narrow(a, index, a_row, a_k, b, b_index, b_row, out, c_row, depth, add)
            elif size == 4:
                _four_narrow(a, index, a_row, a_k, b, b_index, b_row, out, c_row, depth, add)
            else:
                _one_narrow(a, index, a_row, a_k, b, b_index, b_row, out, c_row, depth, add)
        else:
            if size == 6:
                _six_single(a, index, a_row, a_k, b, b_index, b_row, out, c_row, depth, add)
            elif size == 4:
                _four_single(a, index, a_row, a_k, b, b_index, b_row, out, c_row, depth, add)
            else:
                _one_single(a, index, a_row, a_k, b, b_index, b_row, out, c_row, depth, add)
        i += size


@intrinsic
def prefetch(typing, address, count):  # type: ignore[no-untyped-def]
    """Ask for ``count`` bytes from ``address`` on, a hint without effect on any result."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, hint = ir.IntType(8).as_pointer(), [ir.Constant(ir.IntType(32), value) for value in (0, 2, 1)]
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [pointer, *(h.type for h in hint)]), "llvm.prefetch.p0i8")
        lines = builder.udiv(builder.add(arguments[1], _number(LINE_BYTES - 1)), _number(LINE_BYTES))
        with cgutils.for_range(builder, lines) as loop:
            at = builder.add(arguments[0], builder.mul(loop.index, _number(LINE_BYTES)))
            builder.call(function, [builder.inttoptr(at, pointer), *hint])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _dot_lanes(typing, a, b, lines):  # type: ignore[no-untyped-def]
    """The inner product of 16 * ``lines`` floats at two addresses: 16 sums, then their sum in halves."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = _vector(16)
        total = cgutils.alloca_once_value(builder, _zero(16))
        with cgutils.for_range(builder, arguments[2]) as loop:
            offset = builder.mul(loop.index, _number(LINE_BYTES))
            parts = [_load(builder, builder.add(address, offset), kind) for address in arguments[:2]]
            builder.store(_multiply_add(builder, 16, *parts, builder.load(total)), total)
        value, lanes = builder.load(total), 16
        while lanes > 1:
            lanes //= 2
            halves = [builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(ir.IntType(32), lanes),
                                                                       list(range(first, first + lanes))))
                      for first in (0, lanes)]
            value = builder.fadd(*halves)
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return types.float32(types.int64, types.int64, types.int64), generate


@numba.njit(inline="always")
def dot(a, b):  # type: ignore[no-untyped-def]
    """The inner product of two contiguous float32 arrays (n,)."""
    lines = a.shape[0] // 16
    total = _dot_lanes(a.ctypes.data, b.ctypes.data, lines)
    for i in range(16 * lines, a.shape[0]):
        total += a[i] * b[i]
    return total


@intrinsic
def float_of(typing, bits):  # type: ignore[no-untyped-def]
    """The float32 that an int32 holds."""
    return types.float32(types.int32), lambda context, builder, signature, arguments: builder.bitcast(
        arguments[0], FLOAT)


@intrinsic
def bits_of(typing, value):  # type: ignore[no-untyped-def]
    """The int32 that a float32 holds."""
    return types.int32(types.float32), lambda context, builder, signature, arguments: builder.bitcast(
        arguments[0], ir.IntType(32))
