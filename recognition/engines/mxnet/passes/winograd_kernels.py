# SPDX-License-Identifier: Apache-2.0
"""Numba loops of Winograd convolution: maps to transformed tiles, products of these, and back to maps.

A batch of maps (N, C, H, W) is cut into rows of tiles, ``ceil(H / 4)`` an image, numbered over all images; what lies
beyond the edge of a map is zero. Transformed tiles are 36 matrices ("planes") of a row a tile and a column a channel.
All arguments are int64: addresses of contiguous float32 arrays, and numbers. Every sum has a fixed order, which depends
neither on threads nor on the ranges they take.
"""
from __future__ import annotations

import numba

from recognition.engines.cpu.kernels import compiled
from recognition.engines.mxnet.passes import winograd_tiles as tiles
from recognition.engines.mxnet.passes.winograd import IN, OUT, PANEL
from recognition.engines.mxnet.passes.winograd_tiles import LANES, LINE

PLANES = IN * IN
FLOATS = LINE // 4
KEPT_PIXEL_ROWS = 8  # rows of pixels that are kept while a row of tiles needs 6
product_6, product_5, product_4 = tiles.product_6, tiles.product_5, tiles.product_4
product_3, product_2, product_1 = tiles.product_3, tiles.product_2, tiles.product_1


@numba.njit
def tiles_of(size):  # type: ignore[no-untyped-def]
    """Tiles along a side of a map."""
    return (size + OUT - 1) // OUT


@numba.njit
def row_bytes(channels):  # type: ignore[no-untyped-def]
    """Bytes of one row of a plane, padded off powers of two to avoid conflicts in the cache."""
    return (channels + FLOATS) * 4


@numba.njit
def plane_bytes(rows, row):  # type: ignore[no-untyped-def]
    """Bytes of a plane of ``rows`` rows of ``row`` bytes, padded like :func:`row_bytes`."""
    return rows * row + LINE


@numba.njit
def pixel_row_bytes(width):  # type: ignore[no-untyped-def]
    """Bytes of a row of pixels, 16 channels each: whole vectors of pixels between two columns of zeros."""
    return ((width + LANES - 1) // LANES * LANES + 2) * LINE


@numba.njit
def pixel_bytes(width):  # type: ignore[no-untyped-def]
    """Bytes that :func:`input_planes` and its like need for rows of pixels and of half transformed pixels."""
    return (KEPT_PIXEL_ROWS + IN) * ((width + LANES - 1) // LANES * LANES + 2) * LINE


def plane_floats(rows: int, channels: int) -> int:
    """The number of floats in all planes of ``rows`` tiles and ``channels`` channels."""
    return PLANES * int(plane_bytes.py_func(rows, row_bytes.py_func(channels))) // 4


def pixel_floats(width: int) -> int:
    return int(pixel_bytes.py_func(width)) // 4


def weight_floats(channels: int, filters: int) -> int:
    """The number of floats in the planes of weights, and in those of their gradient."""
    return PLANES * int(plane_bytes.py_func(channels, filters * 4)) // 4


@numba.njit(inline="never")
def _load_pixels(source, channel, width, count, out):  # type: ignore[no-untyped-def]
    """Turn a row of 16 channels into vectors, a pixel each; zeros if ``count``, 0 or ``width``, is 0."""
    for x in range(0, width, LANES):
        tiles.gather(source + 4 * x, channel, min(LANES, max(count - x, 0)), out + LINE * x)


@compiled
def input_planes(maps, channels, height, width, first, last, out, plane, pixels):  # type: ignore[no-untyped-def]
    """Write ``B^T d B`` of the rows of tiles ``first`` to ``last - 1`` of ``maps``, into ``out``."""
    down, across, channel = tiles_of(height), tiles_of(width), height * width * 4
    row, pixel_row = row_bytes(channels), pixel_row_bytes(width)
    halves = pixels + KEPT_PIXEL_ROWS * pixel_row
    for slot in range(KEPT_PIXEL_ROWS):  # the columns beside the map
        tiles.clear(pixels + slot * pixel_row)
        tiles.clear(pixels + (slot + 1) * pixel_row - LINE)
    for c in range(0, channels, LANES):
        y = 0  # the next row of pixels to load
        for r in range(first, last):
            n, top = r // down, r % down * OUT - 1
            if r == first or top < 0:
                y = top
            while y < top + IN:
                inside = 0 <= y < height
                source = maps + (n * channels + c) * channel + (y * width * 4 if inside else 0)
                _load_pixels(source, channel, width, width if inside else 0,
                             pixels + (y + 1) % KEPT_PIXEL_ROWS * pixel_row + LINE)
                y += 1
            at = pixels
            r0, r1 = at + (top + 1) % KEPT_PIXEL_ROWS * pixel_row, at + (top + 2) % KEPT_PIXEL_ROWS * pixel_row
            r2, r3 = at + (top + 3) % KEPT_PIXEL_ROWS * pixel_row, at + (top + 4) % KEPT_PIXEL_ROWS * pixel_row
            r4, r5 = at + (top + 5) % KEPT_PIXEL_ROWS * pixel_row, at + (top + 6) % KEPT_PIXEL_ROWS * pixel_row
            for x in range(0, (across * OUT + 2) * LINE, LINE):
                tiles.input_column(r0 + x, r1 + x, r2 + x, r3 + x, r4 + x, r5 + x, halves + x, pixel_row)
            for x in range(across):
                tiles.input_rows(halves + x * OUT * LINE, pixel_row, out + ((r - first) * across + x) * row + c * 4,
                                 plane)


@compiled
def gradient_planes(maps, channels, height, width, first, last, out, plane, pixels):  # type: ignore[no-untyped-def]
    """Write ``A dY A^T`` of the rows of tiles ``first`` to ``last - 1`` of ``maps``, into ``out``."""
    down, across, channel = tiles_of(height), tiles_of(width), height * width * 4
    row, pixel_row = row_bytes(channels), pixel_row_bytes(width)
    halves = pixels + KEPT_PIXEL_ROWS * pixel_row
    for c in range(0, channels, LANES):
        for r in range(first, last):
            n, top = r // down, r % down * OUT
            for i in range(OUT):
                inside = top + i < height
                source = maps + (n * channels + c) * channel + ((top + i) * width * 4 if inside else 0)
                _load_pixels(source, channel, width, width if inside else 0, pixels + i * pixel_row)
            for x in range(0, across * OUT * LINE, LINE):
                at = pixels + x
                tiles.gradient_column(at, at + pixel_row, at + 2 * pixel_row, at + 3 * pixel_row, halves + x, pixel_row)
            for x in range(across):
                tiles.gradient_rows(halves + x * OUT * LINE, pixel_row, out + ((r - first) * across + x) * row + c * 4,
                                    plane)


@compiled
def output_maps(planes, plane, channels, height, width, first, last, maps, pixels):  # type: ignore[no-untyped-def]
    """Write ``A^T M A`` into the rows of tiles ``first`` to ``last - 1`` of ``maps``."""
    down, across, channel = tiles_of(height), tiles_of(width), height * width * 4
    row, pixel_row = row_bytes(channels), pixel_row_bytes(width)
    for c in range(0, channels, LANES):
        for r in range(first, last):
            n, top = r // down, r % down * OUT
            for x in range(across):
                tiles.output_tile(planes + ((r - first) * across + x) * row + c * 4, plane,
                                  pixels + x * OUT * LINE, pixel_row)
            for i in range(min(OUT, height - top)):
                out = maps + (n * channels + c) * channel + (top + i) * width * 4
                for x in range(0, width, LANES):
                    tiles.scatter(pixels + i * pixel_row + LINE * x, out + 4 * x, channel, min(LANES, width - x))


@numba.njit(inline="never")
def _panel(rows, a, a_row, a_k, b, b_row, c, c_row, depth, add):  # type: ignore[no-untyped-def]
    """Compute ``C = A B``, or ``C += A B`` if ``add``, for any number of rows and PANEL columns."""
    i = 0
    while i < rows:
        left = rows - i
        size = 6 if left == 6 or left > 9 else 5 if left in (5, 9) else 4 if left > 6 else left
        at, out = a + i * a_row, c + i * c_row
        if size == 6:
            product_6(at, a_row, a_k, b, b_row, out, c_row, depth, add)
        elif size == 5:
            product_5(at, a_row, a_k, b, b_row, out, c_row, depth, add)
        elif size == 4:
            product_4(at, a_row, a_k, b, b_row, out, c_row, depth, add)
        elif size == 3:
            product_3(at, a_row, a_k, b, b_row, out, c_row, depth, add)
        elif size == 2:
            product_2(at, a_row, a_k, b, b_row, out, c_row, depth, add)
        else:
            product_1(at, a_row, a_k, b, b_row, out, c_row, depth, add)
        i += size


@compiled
def convolve(maps, channels, weights, filters, height, width, first, last, out, scratch):  # type: ignore[no-untyped-def]
    """Convolve ``maps`` (N, channels, height, width) with the planes of :func:`weight_planes`: write the rows of tiles
    ``first`` to ``last - 1`` of ``out`` (N, filters, height, width).

    ``scratch``: :func:`pixel_bytes` and the planes of as many tiles for both channels and filters.
    """
    rows = (last - first) * tiles_of(width)
    in_row, out_row = row_bytes(channels), row_bytes(filters)
    in_plane, out_plane, weight_plane = (plane_bytes(rows, in_row), plane_bytes(rows, out_row),
                                         plane_bytes(channels, filters * 4))
    inputs = scratch + pixel_bytes(width)
    outputs = inputs + PLANES * in_plane
    input_planes(maps, channels, height, width, first, last, inputs, in_plane, scratch)
    for p in range(PLANES):
        for f in range(0, filters, PANEL):
            _panel(rows, inputs + p * in_plane, in_row, 4, weights + p * weight_plane + f * channels * 4, PANEL * 4,
                   outputs + p * out_plane + f * 4, out_row, channels, 0)
    output_maps(outputs, out_plane, filters, height, width, first, last, out, scratch)


@compiled
def weight_products(inputs, channels, gradients, filters, rows, first, last, out, add):  # type: ignore[no-untyped-def]
    """Sum ``dU = V^T dM`` over ``rows`` tiles, for the planes ``first`` to ``last - 1``, (channels, filters) each."""
    in_row, out_row = row_bytes(channels), row_bytes(filters)
    in_plane, out_plane, weight_plane = (plane_bytes(rows, in_row), plane_bytes(rows, out_row),
                                         plane_bytes(channels, filters * 4))
    for p in range(first, last):
        for f in range(0, filters, PANEL):
            _panel(channels, inputs + p * in_plane, 4, in_row, gradients + p * out_plane + f * 4, out_row,
                   out + p * weight_plane + f * 4, filters * 4, rows, add)


@compiled
def weight_planes(weights, channels, filters, first, last, out, nine):  # type: ignore[no-untyped-def]
    """Write ``G g G^T`` of weights (filters, channels, 3, 3), filters ``first`` to ``last - 1``, multiples of 16.

    Each plane is (filters / PANEL, channels, PANEL). ``nine``: scratch of 9 * 16 vectors.
    """
    plane = plane_bytes(channels, filters * 4)
    for f in range(first, last, LANES):
        for c in range(0, channels, LANES):
            for part in range(9):
                tiles.gather(weights + (f * channels + c) * 36 + part * LINE, channels * 36, LANES,
                             nine + part * LANES * LINE)
            for i in range(LANES):
                tiles.weights_tile(nine + i * 9 * LINE,
                                   out + ((f // PANEL * channels + c + i) * PANEL + f % PANEL) * 4, plane)


@compiled
def turned_weight_planes(weights, channels, filters, first, last, out, nine):  # type: ignore[no-untyped-def]
    """Write the planes of the weights that turn gradients of the output into those of the input.

    They are like those of :func:`weight_planes`, but channels and filters change places, and the 3 x 3 weights are
    turned by half a circle. The channels are ``first`` to ``last - 1``, multiples of 16.
    """
    plane = plane_bytes(filters, channels * 4)
    for c in range(first, last, LANES):
        for f in range(filters):
            tiles.gather(weights + (f * channels + c) * 36, 36, 9, nine)
            tiles.turned_weights_tile(nine, out + ((c // PANEL * filters + f) * PANEL + c % PANEL) * 4, plane)


@compiled
def weight_gradient(planes, channels, filters, first, last, out, nine):  # type: ignore[no-untyped-def]
    """Write ``G^T dU G`` into ``out`` (filters, channels, 3, 3), for the filters ``first`` to ``last - 1``, of 16."""
    plane = plane_bytes(channels, filters * 4)
    for f in range(first, last, LANES):
        for c in range(0, channels, LANES):
            for i in range(LANES):
                tiles.weights_gradient_tile(planes + ((c + i) * filters + f) * 4, plane, nine + i * 9 * LINE, 3 * LINE)
            for part in range(9):
                tiles.scatter(nine + part * LANES * LINE, out + (f * channels + c) * 36 + part * LINE, channels * 36,
                              LANES)
