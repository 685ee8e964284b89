# SPDX-License-Identifier: Apache-2.0
"""Batches of triplets: the network embeds a bag of images, and triplets are chosen among them.

The logs call a bag an epoch. Its images are a function of (seed, bag). Its triplets also depend on the network at the
start of the bag, so a training state that is saved in the middle of a bag holds them.
"""
from __future__ import annotations

import logging
import time
from collections.abc import Generator, Mapping
from typing import Any, Callable

import numpy as np

from recognition.data.augment import Augmentation
from recognition.data.loader import Batch, BatchLoader, each_once, in_memory
from recognition.data.order import BEGINNING, EpochOrder, Position
from recognition.data.sets.image_set import NO_LABEL, ImageSet
from recognition.data.triplet_choice import choose_triplets
from recognition.errors import UserError

MAX_BAGS = 10  # the loader gives up if so many bags in a row together hold less than a batch
_IDENTITIES, _IMAGES, _NEGATIVES = 2, 3, 4  # random streams; data/order.py uses 0 and 1
_logger = logging.getLogger(__name__)
Judge = Callable[[int, np.ndarray, np.ndarray, np.ndarray], str]


def refuse(bag: int, records: np.ndarray, labels: np.ndarray, features: np.ndarray) -> str:
    """The default judge of a :class:`TripletLoader`: it leaves no image out.

    :raises UserError: always.
    """
    bad = records[~np.isfinite(features).all(axis=1)]
    raise UserError(f"bag {bag}: the embeddings of {len(bad)} of {len(records)} images are not finite, the first of "
                    f"them record {bad[0]}; try a lower --lr")


class Bags:
    """The images of each bag.

    In a round every identity comes up once, in random order, with up to ``images_per_identity`` random images. A bag is
    the next ``bag_size`` of these, or fewer; only its last identity may be cut. Images that do not fill the last bag of
    a round are left out.
    """

    def __init__(self, dataset: ImageSet, images_per_identity: int, bag_size: int, seed: int):
        """:raises UserError: if the set has no triplet."""
        self.labels = dataset.labels()
        self.seed, self._most, self._size = seed, images_per_identity, bag_size
        by_identity = np.argsort(self.labels, kind="stable")
        self._images = by_identity[self.labels[by_identity] != NO_LABEL]
        present, self._starts, self._counts = np.unique(self.labels[self._images], return_index=True,
                                                        return_counts=True)
        if len(present) < 2 or self._counts.max() < 2:
            raise UserError(f"{dataset.path}: triplets need two identities and two images of one of them, found "
                            f"{len(present)} identities with at most {self._counts.max()} images each")
        in_round = int(np.minimum(self._counts, images_per_identity).sum())
        self._bags_in_round = max(1, in_round // bag_size)
        if in_round < bag_size:
            _logger.info("%s: bags of %d images, %d of each identity at most, instead of triplet_bag_size %d",
                         dataset.path, in_round, images_per_identity, bag_size)

    def images(self, bag: int) -> np.ndarray:
        """The images of ``bag`` (from 0), int64; those of an identity side by side."""
        identities = self._identities(bag)
        counts = self._counts[identities]
        owner = np.repeat(np.arange(len(identities)), counts)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        # Random order within each identity: its rows keep their place and get other images.
        shuffled = np.lexsort((self._random(len(owner), bag, _IMAGES), owner))
        images = self._images[self._starts[identities][owner] + within][shuffled]
        return images[within < self._most][:self._size]

    def _identities(self, bag: int) -> np.ndarray:
        in_round, place = divmod(bag, self._bags_in_round)
        order = np.argsort(self._random(len(self._counts), in_round, _IDENTITIES), kind="stable")
        taken = np.minimum(self._counts[order], self._most)
        return order[(np.cumsum(taken) - taken) // self._size == place]

    def _random(self, count: int, number: int, stream: int) -> np.ndarray:
        return np.random.PCG64(np.random.SeedSequence([self.seed, number, stream])).random_raw(count)


class TripletLoader:
    """Iterator over batches of triplets from ``start`` on: ``start.epoch`` is a bag, ``start.offset`` the number of its
    images that are used up.

    A batch of T triplets holds 3 T images: device by device its anchors, positives, negatives, each augmented anew.
    The triplets of a bag that do not fill a batch are left out; a bag of less than a batch is joined to the next. If
    MAX_BAGS bags together give no batch, nothing is left to learn: the iterator logs a line and ends, or raises a
    ``UserError`` if the first bag is among them.
    """

    def __init__(self, dataset: ImageSet, bags: Bags, embed: Callable[[np.ndarray], np.ndarray],
                 augmentation: Augmentation | None, alpha: float, max_ap: float, global_batch: int, device_batch: int,
                 part: tuple[int, int] | None = None, start: Position = BEGINNING,
                 saved: Mapping[str, np.ndarray] | None = None, threads: int = 2, prefetch: int = 3,
                 gather: Callable[[np.ndarray], np.ndarray] = np.asarray, judge: Judge = refuse,
                 buffer: Callable[[tuple[int, ...]], np.ndarray] = in_memory):
        """:param embed: gives features (n, D) of images uint8 (n, 3, H, W); each process embeds its ``part`` of a bag.
        :param device_batch: images of a device, a multiple of 3.
        :param saved: the :meth:`state` of the run that was saved at ``start``.
        :param gather: the communicator's ``all_gather``, with several processes.
        :param judge: called, in all processes alike, for a bag with embeddings that are not finite: with its number,
            record keys and labels (n,), embeddings (n, D). It raises a ``UserError``, or returns the log line about
            leaving these images out.
        :param buffer: that of a :class:`recognition.data.loader.BatchLoader`.
        """
        self._dataset, self._bags, self._embed, self._gather, self._judge = dataset, bags, embed, gather, judge
        self._augmentation, self._alpha, self._max_ap = augmentation, alpha, max_ap
        self._global_batch, self._device_batch, self._part = global_batch, device_batch, part
        self._options: dict[str, Any] = {"threads": threads, "prefetch": prefetch, "buffer": buffer}
        self._position = start
        self._triplets = saved["triplets"] if saved else np.empty((0, 3), np.int64)
        self._batches = self._generate()

    def __iter__(self) -> TripletLoader:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def state(self) -> dict[str, np.ndarray]:
        """The arrays that a resumed run needs beside the position after the last batch: the triplets of an unfinished
        bag."""
        return {"triplets": self._triplets} if self._position.offset else {}

    def close(self) -> None:
        """Drop the batches under way and end the threads. May be called twice."""
        self._batches.close()

    def __enter__(self) -> TripletLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _generate(self) -> Generator[Batch, None, None]:
        while True:
            bag, offset = self._position
            if not offset:
                bag, self._triplets = self._mine(bag)
                if not len(self._triplets):
                    return
            images = lay_out(self._triplets, offset, self._global_batch, self._device_batch)
            if len(images) == offset:  # the rest of the bag does not fill a batch, which is larger than before
                self._position = Position(bag + 1, 0)
                continue
            order = EpochOrder(len(images), self._bags.seed, shuffle=False)
            # Random numbers belong to the place, not to the image.
            with BatchLoader(self._dataset.take(images), order, self._augmentation, self._global_batch, self._part,
                             Position(bag, offset), **self._options) as batches:
                for batch in batches:
                    self._position = batch.next_position
                    yield batch
                    if batch.next_position.epoch > bag:
                        break

    def _mine(self, first: int) -> tuple[int, np.ndarray]:
        """Choose at least a batch of triplets, from bag ``first`` and, if need be, from the bags after it. Returns the
        last of these bags, and the triplets, int64 (T, 3); T = 0 if there is nothing left to learn.

        :raises UserError: if bag 0 is among bags that give no batch, or if no image has an embedding other than zero.
        """
        needed, found, bag, usable = self._global_batch // 3, np.empty((0, 3), np.int64), first, 0
        for bag in range(first, first + MAX_BAGS):
            triplets, images = self._choose(bag)
            found, usable = np.concatenate([found, triplets]), usable + images
            if len(found) >= needed:
                return bag, found
        if not usable:
            raise UserError(f"bags {first} to {bag}: no image has an embedding other than zero, so there are no "
                            "triplets; look at the images, or try a lower --lr")
        line = (f"{len(found)} triplets in bags {first} to {bag}, a batch takes {needed}: negatives farther than the "
                f"positive by less than triplet_alpha {self._alpha:g} are rare or gone")
        if first == 0:
            raise UserError(line)
        _logger.info("%s; the run ends", line)
        return bag, found[:0]

    def _choose(self, bag: int) -> tuple[np.ndarray, int]:
        """The triplets of one bag, int64 (T, 3), as images of the set; and the number of images they were chosen from.
        """
        began = time.perf_counter()
        images = self._bags.images(bag)
        labels = self._bags.labels[images]
        there, features = self._features(images)
        embedded = time.perf_counter()
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            self._leave_out(bag, images, labels, features, there & finite)
        usable = there & finite & features.any(axis=1)
        rows = choose_triplets(features[usable], labels[usable], self._alpha, self._max_ap,
                               (self._bags.seed, bag, _NEGATIVES))
        reasons = {"cannot be read": ~there, "have embeddings that are not finite": ~finite,
                   "have embeddings of nothing but zeros": there & finite & ~usable}
        left_out = "".join(f", {which.sum()} left out that {why}" for why, which in reasons.items() if which.any())
        _logger.info("bag %d: %d images of %d identities%s, %d triplets; embedded in %.1f s, chosen in %.1f s", bag,
                     len(images), len(np.unique(labels)), left_out, len(rows), embedded - began,
                     time.perf_counter() - embedded)
        return images[usable][rows], int(usable.sum())

    def _leave_out(self, bag: int, images: np.ndarray, labels: np.ndarray, features: np.ndarray,
                   usable: np.ndarray) -> None:
        """Let the judge decide about embeddings that are not finite, and log its line.

        :raises UserError: if the judge ends the run, or if the ``usable`` images hold no triplet.
        """
        line = self._judge(bag, self._dataset.keys[images], labels, features)
        _, counts = np.unique(labels[usable], return_counts=True)
        if len(counts) < 2 or counts.max() < 2:
            raise UserError(f"{line}; the {usable.sum()} images left hold no triplet")
        _logger.info("%s", line)  # only the first process logs it

    def _features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Embed images, int64 (n,), without augmentation. Returns bool (n,), False where another image took the place
        of a bad one, and the embeddings (n, D), zeros in those rows."""
        parts = []
        for own, batch in each_once(self._dataset, images, self._global_batch, self._part, **self._options):
            itself = self._dataset.is_image(own, batch.records)[:, None]
            features = np.where(itself, self._embed(batch.images), np.float32(0))
            parts.append(self._gather(np.concatenate([itself, features], axis=1, dtype=features.dtype)))
        rows = np.concatenate(parts)[:len(images)]
        return rows[:, 0] > 0, rows[:, 1:]


def lay_out(triplets: np.ndarray, offset: int, global_batch: int, device_batch: int) -> np.ndarray:
    """The images of ``triplets`` (T, 3), batch by batch and device by device: anchors, positives, negatives.

    The first ``offset`` images are used up, in any layout; the rest fills whole batches.
    """
    used, rest = triplets[:offset // 3], triplets[offset // 3:]
    whole = len(rest) * 3 // global_batch * global_batch // 3
    laid = rest[:whole].reshape(-1, device_batch // 3, 3).swapaxes(1, 2)
    return np.concatenate([used.ravel(), laid.ravel()])
