# SPDX-License-Identifier: Apache-2.0
"""Batches of decoded images, which a pool of threads makes ahead of the training loop."""
from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np

from recognition.data.augment import Augmentation
from recognition.data.images.image import write_planes
from recognition.data.order import BEGINNING, EpochOrder, Position, uniforms
from recognition.data.sets.image_set import ImageSet
from recognition.errors import UserError

_NEAR_END = 0.95  # share of an epoch after which a thread makes the next order, which takes 3 s for 17 million images
_LARGE_SET_IMAGES = 1 << 18  # the order of a smaller set takes 20 ms and is made when it is needed
_IMAGES_PER_TASK = 16  # few enough to share a batch evenly, enough that a task costs little


@dataclass(frozen=True)
class Batch:
    """One batch. ``index`` counts the batches of ``epoch`` from 0; ``next_position`` is where the next batch begins."""

    images: np.ndarray  # uint8 (b, 3, H, W) RGB, C-contiguous
    labels: np.ndarray  # int64 (b,)
    records: np.ndarray  # int64 (b,), record keys
    epoch: int
    index: int
    next_position: Position


def in_memory(shape: tuple[int, ...]) -> np.ndarray:
    """Memory for images, uint8."""
    return np.empty(shape, np.uint8)


class BatchLoader:
    """Iterator over the batches of all epochs from ``start`` on, without end.

    Each batch is the slice ``part`` (start, stop) of the next ``global_batch`` images in the epoch's order, so
    processes with different parts share the work without overlap. Images that do not fill the last batch of an epoch
    are left out. The content of a batch depends on the order's seed and the position alone, not on ``threads``.

    ``prefetch`` batches are made ahead and held in memory beside those that the caller holds; one more from a call of
    :meth:`coming` on. If the data set does not skip bad images, one ends the iterator: the next call raises a
    ``UserError`` with its record key, even if its batch is not due yet.

    ``buffer`` makes the memory of each batch's images from their shape, uint8; it may give memory again once nobody
    holds the array.
    """

    def __init__(self, dataset: ImageSet, order: EpochOrder, augmentation: Augmentation | None, global_batch: int,
                 part: tuple[int, int] | None = None, start: Position = BEGINNING, threads: int = 2,
                 prefetch: int = 3, buffer: Callable[[tuple[int, ...]], np.ndarray] = in_memory):
        self._part = part or (0, global_batch)
        if order.of != len(dataset):
            raise ValueError(f"an order of {order.of} images for a data set of {len(dataset)}")
        if not 0 <= self._part[0] < self._part[1] <= global_batch:
            raise ValueError(f"part {self._part} of a batch of {global_batch}")
        if order.num_images < global_batch:
            raise UserError(f"{dataset.path}: {order.num_images} images, fewer than one batch of {global_batch}; "
                            "expected a smaller --per-batch-size")
        self._dataset, self._order, self._augmentation = dataset, order, augmentation
        self._global_batch, self._prefetch, self._buffer = global_batch, prefetch, buffer
        self._next = start
        self._permutation = (-1, np.empty(0, np.int64))
        self._ahead: tuple[int, Future | None] = (-1, None)  # an epoch, and the task that makes its permutation
        self._pending: deque[tuple[Batch, list[Future]]] = deque()
        self._failure: Exception | None = None
        self._closed = False
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def __iter__(self) -> BatchLoader:
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise StopIteration
        self._begin_ahead()
        batch, tasks = self._pending.popleft()
        wait(tasks, return_when=FIRST_EXCEPTION)
        if self._failure is not None:
            self.close()
            raise self._failure
        if self._closed:
            raise StopIteration
        return batch

    def labels_ahead(self) -> np.ndarray:
        """The labels (b,) of the batch that the next call returns. Waits for it; an image that ends the iterator is
        met by that call."""
        while not self._pending:
            self._submit()
        batch, tasks = self._pending[0]
        wait(tasks, return_when=FIRST_EXCEPTION)
        return batch.labels

    def coming(self) -> np.ndarray | None:
        """The images of the batch that the next call returns, if they are there yet; they no longer change.

        The batch behind the last one under way is begun, which the next call then need not do: that takes 0.5 ms, and a
        device has something to compute now.
        """
        if self._failure is not None or self._closed:
            return None
        self._begin_ahead()
        batch, tasks = self._pending[0]
        return batch.images if all(task.done() for task in tasks) else None

    def state(self) -> dict[str, np.ndarray]:
        """The arrays that a resumed run needs beside the position after the last batch: none."""
        return {}

    def close(self) -> None:
        """Drop the batches under way and end the threads. May be called twice."""
        self._closed = True  # tasks see it and return. They are not cancelled: wait() never wakes for a cancelled one
        self._pool.shutdown()
        self._pending.clear()

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin_ahead(self) -> None:
        while len(self._pending) <= self._prefetch:
            self._submit()

    def _submit(self) -> None:
        """Hand the next batch to the pool."""
        epoch, offset = self._next
        images = self._order.num_images
        if offset + self._global_batch > images:
            epoch, offset = epoch + 1, 0
        after = offset + self._global_batch
        ends = after + self._global_batch > images
        self._next = Position(epoch + 1, 0) if ends else Position(epoch, after)
        start, stop = self._part
        indices = self._order_of(epoch)[offset + start:offset + stop]
        near_end = images >= _LARGE_SET_IMAGES and after > _NEAR_END * images
        if near_end and self._ahead[0] != epoch + 1:
            self._ahead = epoch + 1, self._pool.submit(self._order.permutation, epoch + 1)
        height, width, channels = self._dataset.image_shape
        batch = Batch(self._buffer((stop - start, channels, height, width)), np.empty(stop - start, np.int64),
                      np.empty(stop - start, np.int64), epoch, offset // self._global_batch, self._next)
        randoms = uniforms(self._order.seed, epoch, indices, Augmentation.NUM_UNIFORMS)
        tasks = [self._pool.submit(self._fill, batch, indices, randoms, first) for first in
                 range(0, stop - start, _IMAGES_PER_TASK)]
        self._pending.append((batch, tasks))

    def _order_of(self, epoch: int) -> np.ndarray:
        """The permutation of ``epoch``, int64 (images,). For a large set a thread has made it near the end of the epoch
        before; else it is made now."""
        if self._permutation[0] != epoch:
            self._dataset.require_unchanged()
            ahead, future = self._ahead
            made = future.result() if future and ahead == epoch else self._order.permutation(epoch)
            self._permutation, self._ahead = (epoch, made), (epoch, None)
        return self._permutation[1]

    def _fill(self, batch: Batch, indices: np.ndarray, randoms: np.ndarray, first: int) -> None:
        """Read, decode and augment up to _IMAGES_PER_TASK images of the batch from ``first`` on."""
        chunk = slice(first, first + _IMAGES_PER_TASK)
        try:
            for row, (i, numbers) in enumerate(zip(indices[chunk].tolist(), randoms[chunk].tolist()), first):
                if self._closed:
                    return
                batch.labels[row], image, batch.records[row] = self._dataset.usable(i)
                if self._augmentation is not None:
                    image = self._augmentation(image, numbers, int(batch.records[row]))
                write_planes(image, batch.images[row])
        except Exception as error:
            self._failure = self._failure or error
            raise


def each_once(dataset: ImageSet, images: np.ndarray, global_batch: int, part: tuple[int, int] | None = None,
              **options: Any) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yield ``images``, int64 (n,), in this order and without augmentation: the images of each batch, int64 (b,), and
    the batch. The last batch is filled up with the first images.

    :param part: this process's part of a batch; ``options``: those of a :class:`BatchLoader`.
    """
    padded = np.resize(images, -(-len(images) // global_batch) * global_batch)
    own = padded.reshape(-1, global_batch)[:, slice(*part or (0, global_batch))]
    order = EpochOrder(len(padded), 0, shuffle=False)
    with BatchLoader(dataset.take(padded), order, None, global_batch, part, **options) as batches:
        yield from zip(own, batches)
