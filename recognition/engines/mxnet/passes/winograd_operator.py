# SPDX-License-Identifier: Apache-2.0
"""The operator that computes 3 x 3 convolutions by ``winograd_kernels``, on MXNet's own arrays.

MXNet runs an operator of Python's on threads of its own. The kernels let go of Python's lock, take addresses, and are
called for one range of work after the other by as many threads as OMP_NUM_THREADS gives to MXNet's operators.
"""
from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, NamedTuple

import numpy as np

from recognition.config.devices import processors
from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.passes import winograd_kernels as kernels
from recognition.engines.mxnet.passes.winograd import OPERATOR
from recognition.engines.mxnet.passes.winograd_tiles import LANES

TILES = 64  # that a thread convolves at once: it reads all weights once for them
GRADIENT_BYTES = 16 << 20  # of transformed tiles that one sum of the gradient of the weights takes at once
PARTS = 12  # that the 36 planes, the filters and the rows of tiles are cut into for threads
NINE = 9 * LANES * LANES  # numbers in a block of weights
Work = Callable[[int, int], None]  # of a part, with the scratch at an address


class Sizes(NamedTuple):
    """Of a convolution: maps (batch, channels, height, width) to (batch, filters, height, width)."""

    batch: int
    channels: int
    filters: int
    height: int
    width: int

    @property
    def across(self) -> int:
        return int(kernels.tiles_of.py_func(self.width))

    @property
    def rows(self) -> int:
        """Rows of tiles in the batch."""
        return self.batch * int(kernels.tiles_of.py_func(self.height))

    @property
    def pixel_floats(self) -> int:
        return kernels.pixel_floats(self.width)


class Workspace:
    """Threads, and memory between the passes of one convolution, which the next one gets again."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(processors())
        self._free: list[np.ndarray] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def memory(self, floats: int) -> Iterator[int]:
        """The address of so many numbers, at a line of the cache."""
        with self._lock:
            self._free.sort(key=len)
            place = next((i for i, block in enumerate(self._free) if len(block) >= floats + LANES), -1)
            block = self._free.pop(place) if self._free else np.empty(0, np.float32)
        if len(block) < floats + LANES:
            block = np.empty(floats + LANES, np.float32)
        try:
            yield -(-block.ctypes.data // 64) * 64
        finally:
            with self._lock:
                self._free.append(block)

    def run(self, work: Work, parts: int, floats: int) -> None:
        """``work(part, scratch)`` for each part, with ``floats`` numbers of scratch a thread."""
        waiting = iter(range(parts))  # under Python's lock each part is taken once

        def take(address: int) -> None:
            for part in waiting:
                work(part, address)

        threads = min(self.threads, parts)
        each = -(-floats // LANES) * LANES + LANES
        with self.memory(threads * each) as scratch:
            others = []
            with contextlib.suppress(RuntimeError):  # Python ends its pools before MXNet ends: this thread does it all
                for i in range(1, threads):
                    others.append(self._pool.submit(take, scratch + 4 * each * i))
            take(scratch)
            for other in others:
                other.result()


def _cut(size: int, parts: int, unit: int = 1) -> list[tuple[int, int]]:
    """At most so many ranges of ``size`` things, whole units of them."""
    units = -(-size // unit)
    parts = min(parts, units)
    bounds = [min(units * i // parts * unit, size) for i in range(parts + 1)]
    return list(zip(bounds, bounds[1:]))


def convolve(space: Workspace, sizes: Sizes, maps: int, weights: int, out: int, turned: bool = False) -> None:
    """The convolution of the maps at an address with the weights, into ``out``.

    ``turned``: the gradient by the input of a convolution from ``filters`` to ``channels`` by that of its output.
    """
    _, channels, filters, height, width = sizes
    planes = kernels.turned_weight_planes if turned else kernels.weight_planes
    given = (filters, channels) if turned else (channels, filters)
    with space.memory(kernels.weight_floats(channels, filters)) as transformed:
        ranges = _cut(filters, PARTS, LANES)
        space.run(lambda i, scratch: planes(weights, *given, *ranges[i], transformed, scratch), len(ranges), NINE)
        rows = max(1, min(TILES // sizes.across, sizes.rows))
        tiles = rows * sizes.across
        floats = sizes.pixel_floats + kernels.plane_floats(tiles, channels) + kernels.plane_floats(tiles, filters)
        blocks = _cut(sizes.rows, -(-sizes.rows // rows))
        space.run(lambda i, scratch: kernels.convolve(maps, channels, transformed, filters, height, width, *blocks[i],
                                                      out, scratch), len(blocks), floats)


def gradient_of_weights(space: Workspace, sizes: Sizes, maps: int, gradients: int, out: int) -> None:
    """The gradient by the weights (filters, channels, 3, 3), by the input and the gradient of the output."""
    channels, filters = sizes.channels, sizes.filters
    tile = 4 * kernels.PLANES * (channels + filters)  # bytes
    blocks = _cut(sizes.rows, -(-sizes.rows // max(1, GRADIENT_BYTES // (tile * sizes.across))))
    with space.memory(kernels.weight_floats(channels, filters)) as sums:
        for first, last in blocks:
            _add_gradients(space, sizes, maps, gradients, first, last, sums)
        ranges = _cut(filters, PARTS, LANES)
        space.run(lambda i, scratch: kernels.weight_gradient(sums, channels, filters, *ranges[i], out, scratch),
                  len(ranges), NINE)


def _add_gradients(space: Workspace, sizes: Sizes, maps: int, gradients: int, first: int, last: int, sums: int) -> None:
    """Add to the transformed gradient of the weights that of some rows of tiles; the first rows begin the sums."""
    _, channels, filters, height, width = sizes
    tiles = (last - first) * sizes.across
    floats = kernels.plane_floats(tiles, channels), kernels.plane_floats(tiles, filters)
    rows, parts = _cut(last - first, PARTS), _cut(kernels.PLANES, PARTS)
    with space.memory(sum(floats)) as planes:
        sides = ((kernels.input_planes, maps, channels, planes, floats[0]),
                 (kernels.gradient_planes, gradients, filters, planes + 4 * floats[0], floats[1]))

        def transform(part: int, scratch: int) -> None:
            low, high = rows[part // 2]
            kernel, source, depth, target, size = sides[part % 2]
            kernel(source, depth, height, width, first + low, first + high,
                   target + low * sizes.across * kernels.row_bytes.py_func(depth), 4 * size // kernels.PLANES, scratch)

        space.run(transform, 2 * len(rows), sizes.pixel_floats)
        space.run(lambda i, _: kernels.weight_products(planes, channels, sides[1][3], filters, tiles, *parts[i], sums,
                                                       int(first > 0)), len(parts), 0)


def _address(array: mx.nd.NDArray) -> int:
    """Of the numbers of an array in host memory, which is ready: MXNet waits before it calls an operator."""
    pointer = ctypes.c_void_p()
    mx.base.check_call(mx.base._LIB.MXNDArrayGetData(array.handle, ctypes.byref(pointer)))
    return pointer.value or 0


def _write(array: mx.nd.NDArray, request: str, compute: Callable[[int], None]) -> None:
    """``compute(address)`` where MXNet wants the result, or added to what is there."""
    if request == "null":
        return
    if request != "add":
        compute(_address(array))
        return
    part = np.empty(array.shape, np.float32)
    compute(part.ctypes.data)
    there = np.ctypeslib.as_array((ctypes.c_float * part.size).from_address(_address(array))).reshape(part.shape)
    there += part


class _Winograd(mx.operator.CustomOp):
    def __init__(self, space: Workspace) -> None:
        super().__init__()
        self._space = space

    def forward(self, is_train: bool, req: Sequence[str], in_data: Sequence[Any], out_data: Sequence[Any],
                aux: Sequence[Any]) -> None:
        maps, weights = in_data
        sizes = Sizes(maps.shape[0], maps.shape[1], weights.shape[0], *maps.shape[2:])
        _write(out_data[0], req[0], lambda out: convolve(self._space, sizes, _address(maps), _address(weights), out))

    def backward(self, req: Sequence[str], out_grad: Sequence[Any], in_data: Sequence[Any], out_data: Sequence[Any],
                 in_grad: Sequence[Any], aux: Sequence[Any]) -> None:
        maps, weights = in_data
        batch, channels, height, width = maps.shape
        sizes = Sizes(batch, channels, weights.shape[0], height, width)
        back = sizes._replace(channels=sizes.filters, filters=channels)
        given = _address(out_grad[0])
        _write(in_grad[0], req[0], lambda out: convolve(self._space, back, given, _address(weights), out, turned=True))
        _write(in_grad[1], req[1], lambda out: gradient_of_weights(self._space, sizes, _address(maps), given, out))


@mx.operator.register(OPERATOR)
class _Properties(mx.operator.CustomOpProp):
    """What MXNet asks before it makes an operator; parameters come as text."""

    space: Workspace | None = None  # one for the process

    def __init__(self, num_filter: str, **attributes: str) -> None:  # those of the node, such as recompute's
        super().__init__(need_top_grad=True)
        self._filters = int(num_filter)

    def list_arguments(self) -> list[str]:
        return ["data", "weight"]

    def infer_shape(self, in_shape: list[list[int]]) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
        data = in_shape[0]
        return [data, [self._filters, data[1], 3, 3]], [[data[0], self._filters, *data[2:]]], []

    def declare_backward_dependency(self, out_grad: list[int], in_data: list[int], out_data: list[int]) -> list[int]:
        return [*out_grad, *in_data]

    def create_operator(self, ctx: Any, in_shapes: Any, in_dtypes: Any) -> _Winograd:
        kind = type(self)
        if kind.space is None:
            kind.space = Workspace(int(os.environ.get("OMP_NUM_THREADS") or processors()))
        return _Winograd(kind.space)
