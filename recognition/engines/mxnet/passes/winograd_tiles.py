# SPDX-License-Identifier: Apache-2.0
"""The innermost parts of Winograd convolution for Numba, written as LLVM's vector operations on 16 floats.

F(4 x 4, 3 x 3) of Lavin and Gray (arXiv 1509.09308): a tile of 4 x 4 outputs of a 3 x 3 convolution needs 36 products
where the plain way needs 144. With d the tile's 6 x 6 inputs, g the weights and * the product of numbers in like places

    Y = A^T ((G g G^T) * (B^T d B)) A

for the polynomials' points 0, +-a, +-b and infinity. Lavin and Gray have a = 1, b = 2; a = 5/8, b = 3/2 halve the
rounding error (the choice of points: Barabasz and others, arXiv 1803.10986).

The 16 lanes are channels. Maps in NCHW come in and go out through transposes of 16 x 16 numbers in registers. All
arguments are int64: addresses, distances in bytes, counts.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from recognition.engines.mxnet.passes.winograd import IN, OUT, PANEL

LANES, LINE = 16, 64
A, B = 0.625, 1.5

INT, INT32, FLOAT = ir.IntType(64), ir.IntType(32), ir.FloatType()
VECTOR, INTS, BITS = (ir.VectorType(kind, LANES) for kind in (FLOAT, INT32, ir.IntType(1)))
Values = list[Any]
Transform = Callable[[Any, Sequence[Any]], Values]


def _number(value: int) -> ir.Constant:
    return ir.Constant(INT, value)


def _all(value: float) -> ir.Constant:
    return ir.Constant(VECTOR, [value] * LANES)


def _load(builder: Any, address: Any, kind: ir.Type = VECTOR) -> Any:
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = 4
    return value


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, VECTOR.as_pointer())).align = 4


def _beside(builder: Any, address: Any, vectors: int) -> Any:
    """The address of the vector so many vectors further on."""
    return builder.add(address, _number(LINE * vectors)) if vectors else address


def _places(builder: Any, first: Any, distance: Any, count: int) -> Values:
    places = [first]
    for _ in range(count - 1):
        places.append(builder.add(places[-1], distance))
    return places


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, rounded once."""
    kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.fma.v16f32"), (a, b, c))


def _spread(builder: Any, value: Any) -> Any:
    kind = value.type
    empty = ir.Constant(ir.VectorType(kind, LANES), ir.Undefined)
    first = builder.insert_element(empty, value, ir.Constant(INT32, 0))
    return builder.shuffle_vector(first, empty, ir.Constant(INTS, [0] * LANES))


def _void(count: int, generate: Callable[..., None]) -> Any:
    """An intrinsic without a result, of ``count`` int64 arguments."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        generate(builder, *arguments)
        return context.get_dummy_value()

    return intrinsic(_TYPINGS[count]((types.void(*[types.int64] * count), code)))


# Numba counts the parameters that an intrinsic names.
_TYPINGS: dict[int, Callable[[Any], Any]] = {
    1: lambda found: lambda typing, a: found,
    3: lambda found: lambda typing, a, b, c: found,
    4: lambda found: lambda typing, a, b, c, d: found,
    6: lambda found: lambda typing, a, b, c, d, e, f: found,
    8: lambda found: lambda typing, a, b, c, d, e, f, g, h: found,
    9: lambda found: lambda typing, a, b, c, d, e, f, g, h, i: found,
}


# One side of each transform: numbers in a row of a tile to numbers in a row of the transformed tile.


def _scaled(builder: Any, factor: float, x: Any) -> Any:
    return builder.fmul(_all(factor), x)


def _added(builder: Any, factor: float, x: Any, y: Any) -> Any:
    return _multiply_add(builder, _all(factor), x, y)


def _both(builder: Any, even: Any, odd: Any) -> Values:
    """What the parts that are even and odd in a point give at the point and at its negative."""
    return [builder.fadd(even, odd), builder.fsub(even, odd)]


def _input(builder: Any, d: Sequence[Any]) -> Values:
    """B^T d: 6 to 6."""
    a, b = A * A, B * B
    near = _both(builder, _added(builder, -b, d[2], d[4]),
                 _scaled(builder, A, _added(builder, -b, d[1], d[3])))
    far = _both(builder, _added(builder, -a, d[2], d[4]),
                _scaled(builder, B, _added(builder, -a, d[1], d[3])))
    zero, infinity = (_added(builder, a * b, d[i], _added(builder, -(a + b), d[i + 2], d[i + 4])) for i in (0, 1))
    return [zero, *near, *far, infinity]


def _output(builder: Any, m: Sequence[Any]) -> Values:
    """A^T m: 6 to 4."""
    near, less = builder.fadd(m[1], m[2]), builder.fsub(m[1], m[2])
    far, least = builder.fadd(m[3], m[4]), builder.fsub(m[3], m[4])
    return [builder.fadd(m[0], builder.fadd(near, far)),
            _added(builder, A, less, _scaled(builder, B, least)),
            _added(builder, A**2, near, _scaled(builder, B**2, far)),
            _added(builder, A**3, less, _added(builder, B**3, least, m[5]))]


def _output_gradient(builder: Any, y: Sequence[Any]) -> Values:
    """A y: 4 to 6."""
    pairs = [_both(builder, _added(builder, point**2, y[2], y[0]),
                   _added(builder, point**3, y[3], _scaled(builder, point, y[1]))) for point in (A, B)]
    return [y[0], *pairs[0], *pairs[1], y[3]]


_ZERO, _NEAR, _FAR = 1 / (A * B) ** 2, 1 / (2 * A**2 * (A**2 - B**2)), 1 / (2 * B**2 * (B**2 - A**2))  # scales of G


def _weights(builder: Any, g: Sequence[Any]) -> Values:
    """G g: 3 to 6."""
    pairs = [_both(builder, _added(builder, scale * point**2, g[2], _scaled(builder, scale, g[0])),
                   _scaled(builder, scale * point, g[1])) for scale, point in ((_NEAR, A), (_FAR, B))]
    return [_scaled(builder, _ZERO, g[0]), *pairs[0], *pairs[1], g[2]]


def _weights_gradient(builder: Any, u: Sequence[Any]) -> Values:
    """G^T u: 6 to 3."""
    near, less = builder.fadd(u[1], u[2]), builder.fsub(u[1], u[2])
    far, least = builder.fadd(u[3], u[4]), builder.fsub(u[3], u[4])
    return [_added(builder, _ZERO, u[0], _added(builder, _NEAR, near, _scaled(builder, _FAR, far))),
            _added(builder, _NEAR * A, less, _scaled(builder, _FAR * B, least)),
            _added(builder, _NEAR * A**2, near, _added(builder, _FAR * B**2, far, u[5]))]


def _squared(builder: Any, transform: Transform, side: int, values: Sequence[Any]) -> list[Values]:
    """A transform of both sides of a square of ``side`` x ``side`` vectors, row by row."""
    columns = [transform(builder, [values[side * i + j] for i in range(side)]) for j in range(side)]
    return [transform(builder, [column[i] for column in columns]) for i in range(len(columns[0]))]


# The intrinsics. "Planes" are the 36 places of a transformed tile, each in a matrix of its own, a plane apart.


def _columns(transform: Transform, rows: int) -> Any:
    """(row 0, ..., out, out_row): a column of ``rows`` vectors, one in each row, to one in each of six rows."""

    def generate(builder: Any, *arguments: Any) -> None:
        values = transform(builder, [_load(builder, address) for address in arguments[:rows]])
        for value, address in zip(values, _places(builder, arguments[rows], arguments[rows + 1], IN)):
            _store(builder, value, address)

    return _void(rows + 2, generate)


def _rows(transform: Transform, side: int) -> Any:
    """(rows, row, out, plane): ``side`` vectors in each of six rows to a vector in each of 36 planes."""

    def generate(builder: Any, rows: Any, row: Any, out: Any, plane: Any) -> None:
        planes = iter(_places(builder, out, plane, IN * IN))
        for first in _places(builder, rows, row, IN):
            for value in transform(builder, [_load(builder, _beside(builder, first, x)) for x in range(side)]):
                _store(builder, value, next(planes))

    return _void(4, generate)


def _from_planes(transform: Transform) -> Any:
    """(planes, plane, out, out_row): a vector in each of 36 planes to a square of vectors."""

    def generate(builder: Any, planes: Any, plane: Any, out: Any, out_row: Any) -> None:
        loaded = [_load(builder, address) for address in _places(builder, planes, plane, IN * IN)]
        rows = _squared(builder, transform, IN, loaded)
        for values, first in zip(rows, _places(builder, out, out_row, len(rows))):
            for x, value in enumerate(values):
                _store(builder, value, _beside(builder, first, x))

    return _void(4, generate)


def _to_planes(turned: bool) -> Any:
    """(nine, out, plane): 3 x 3 vectors of weights, turned by half a circle or not, to one in each of 36 planes."""

    def generate(builder: Any, nine: Any, out: Any, plane: Any) -> None:
        values = [_load(builder, _beside(builder, nine, 8 - i if turned else i)) for i in range(9)]
        planes = iter(_places(builder, out, plane, IN * IN))
        for row in _squared(builder, _weights, 3, values):
            for value in row:
                _store(builder, value, next(planes))

    return _void(3, generate)


def _transposed(builder: Any, rows: Sequence[Any]) -> Values:
    """Of 16 vectors: pairs, then fours within quarters, then the quarters."""

    def pair(x: Any, y: Any, low: list[int], high: list[int]) -> Values:
        return [builder.shuffle_vector(x, y, ir.Constant(INTS, mask)) for mask in (low, high)]

    def quarters(*mask: int) -> list[int]:
        return [4 * quarter + lane for quarter in range(4) for lane in mask]

    def chosen(*which: int) -> list[int]:
        return [4 * quarter + lane for quarter in which for lane in range(4)]

    pairs = [value for i in range(0, LANES, 2)
             for value in pair(rows[i], rows[i + 1], quarters(0, 16, 1, 17), quarters(2, 18, 3, 19))]
    fours = [value for i in range(0, LANES, 4) for j in (i, i + 1)
             for value in pair(pairs[j], pairs[j + 2], quarters(0, 1, 16, 17), quarters(2, 3, 18, 19))]
    split = chosen(0, 2, 4, 6), chosen(1, 3, 5, 7)
    columns: Values = [None] * LANES
    for j in range(4):  # quarter q of fours[4 i + j] is column 4 q + j of rows 4 i to 4 i + 3
        upper, lower = pair(fours[j], fours[4 + j], *split), pair(fours[8 + j], fours[12 + j], *split)
        columns[j], columns[8 + j] = pair(upper[0], lower[0], *split)
        columns[4 + j], columns[12 + j] = pair(upper[1], lower[1], *split)
    return columns


def _masked(builder: Any, count: Any) -> tuple[Any, Any]:
    """The mask of the first ``count`` lanes, and LLVM's type of a pointer to a vector."""
    lanes = ir.Constant(INTS, list(range(LANES)))
    return builder.icmp_signed("<", lanes, _spread(builder, builder.trunc(count, INT32))), VECTOR.as_pointer()


def _gather(builder: Any, source: Any, row: Any, count: Any, out: Any) -> None:
    mask, pointer = _masked(builder, count)
    load = cgutils.get_or_insert_function(builder.module, ir.FunctionType(VECTOR, [pointer, INT32, BITS, VECTOR]),
                                          "llvm.masked.load.v16f32.p0v16f32")
    rows = [builder.call(load, [builder.inttoptr(address, pointer), ir.Constant(INT32, 4), mask, _all(0.0)])
            for address in _places(builder, source, row, LANES)]
    for x, column in enumerate(_transposed(builder, rows)):
        _store(builder, column, _beside(builder, out, x))


def _scatter(builder: Any, source: Any, out: Any, row: Any, count: Any) -> None:
    mask, pointer = _masked(builder, count)
    store = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [VECTOR, pointer, INT32, BITS]),
        "llvm.masked.store.v16f32.p0v16f32")
    rows = _transposed(builder, [_load(builder, _beside(builder, source, x)) for x in range(LANES)])
    for value, address in zip(rows, _places(builder, out, row, LANES)):
        builder.call(store, [value, builder.inttoptr(address, pointer), ir.Constant(INT32, 4), mask])


def _product(rows: int) -> Any:
    """(a, a_row, a_k, b, b_row, c, c_row, depth, add): ``C = A B``, or ``C += A B`` if ``add``, of ``rows`` rows and
    PANEL columns, which stay in registers while one loop over the depth, at least 1, adds outer products.

    Row i of A begins at ``a + i * a_row``, its elements ``a_k`` apart; rows of B and C are contiguous.
    """

    def generate(builder: Any, a: Any, a_row: Any, a_k: Any, b: Any, b_row: Any, c: Any, c_row: Any, depth: Any,
                 add: Any) -> None:
        vectors = PANEL // LANES
        starts = _places(builder, a, a_row, rows)
        sums_at = [_beside(builder, first, j) for first in _places(builder, c, c_row, rows) for j in range(vectors)]
        before = builder.block
        with builder.if_then(builder.icmp_signed("!=", add, _number(0))):
            stored = [_load(builder, address) for address in sums_at]
            loaded = builder.block
        first = [builder.phi(VECTOR) for _ in sums_at]
        for phi, value in zip(first, stored):
            phi.add_incoming(_all(0.0), before)
            phi.add_incoming(value, loaded)

        entry, body, after = builder.block, builder.append_basic_block("depth"), builder.append_basic_block("store")
        builder.branch(body)
        builder.position_at_end(body)
        left, a_at, b_at = (builder.phi(INT) for _ in range(3))
        sums = [builder.phi(VECTOR) for _ in sums_at]
        columns = [_load(builder, _beside(builder, b_at, j)) for j in range(vectors)]
        factors = [_spread(builder, _load(builder, builder.add(start, a_at), FLOAT)) for start in starts]
        added = [_multiply_add(builder, factors[i // vectors], columns[i % vectors], total)
                 for i, total in enumerate(sums)]
        less = builder.sub(left, _number(1))
        steps = [(left, less, depth), (a_at, builder.add(a_at, a_k), _number(0)), (b_at, builder.add(b_at, b_row), b)]
        for phi, incoming, start in [*steps, *zip(sums, added, first)]:
            phi.add_incoming(start, entry)
            phi.add_incoming(incoming, body)
        builder.cbranch(builder.icmp_signed(">", less, _number(0)), body, after)
        builder.position_at_end(after)
        for address, total in zip(sums_at, added):
            _store(builder, total, address)

    return _void(9, generate)


clear = _void(1, lambda builder, address: _store(builder, _all(0.0), address))
gather = _void(4, _gather)  # (source, row, count, out): 16 rows of ``count`` floats to 16 columns, zeros behind
scatter = _void(4, _scatter)  # (source, out, row, count): 16 columns to 16 rows of ``count`` floats
input_column, input_rows = _columns(_input, IN), _rows(_input, IN)
gradient_column, gradient_rows = _columns(_output_gradient, OUT), _rows(_output_gradient, OUT)
output_tile, weights_gradient_tile = _from_planes(_output), _from_planes(_weights_gradient)
weights_tile, turned_weights_tile = _to_planes(turned=False), _to_planes(turned=True)
product_6, product_5, product_4, product_3, product_2, product_1 = (_product(rows) for rows in (6, 5, 4, 3, 2, 1))
