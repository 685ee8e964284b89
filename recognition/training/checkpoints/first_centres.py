# SPDX-License-Identifier: Apache-2.0
"""The first values of the class centres W: from a checkpoint, from embeddings, or from the seed."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np

from recognition.config.cli import split_pretrained
from recognition.config.types import CENTRES_FROM
from recognition.data.loader import each_once
from recognition.data.sets.image_set import NO_LABEL, ImageSet
from recognition.errors import UserError
from recognition.head.shard import Shard, ShardState, pieces
from recognition.io.centres import SavedCentres, centres_in_file, centres_in_folder, find_centres, rows_between
from recognition.io.names import params_file
from recognition.io.params import read_arrays
from recognition.processes.communicator import Communicator

MOST_IMAGES = 10  # of a class: more hardly change the mean direction


@dataclass(frozen=True)
class CentresSource:
    """The source of the first values of the class centres."""

    origin: str  # a value of --centres-from: checkpoint, embeddings, random, or the name of a file or folder
    sub_centres: int = 1
    dim: int = 512
    batch: int = 128  # images that this process embeds at a time
    threads: int = 2  # for decoding


def start_centres(source: CentresSource, checkpoint: Path | None, dataset: ImageSet, shards: Sequence[Shard],
                  embed: Callable[[np.ndarray], np.ndarray], communicator: Communicator) -> str:
    """Fill the shards from ``source``; with ``random`` they keep the seed's values. Returns a line about it, and about
    class centres of the checkpoint that are not used; it may be empty. All processes call it together.

    :param checkpoint: the file of the backbone's first values; None if they come from the seed.
    :raises UserError: if a file of W cannot be read, or does not fit where it was named; if the embeddings are not
        finite.
    """
    if source.origin not in CENTRES_FROM:
        return _from_named(source, dataset.num_classes, shards)
    if checkpoint is None:
        return ""
    if not shards:
        return _left_out(checkpoint, "a triplet loss has none")
    if source.origin == "checkpoint":
        return from_checkpoint(checkpoint, shards, dataset.num_classes, source.sub_centres, source.dim)
    left = _left_out(checkpoint, f"--centres-from {source.origin}")
    if source.origin == "random":
        return left
    line = _from_embeddings(source, dataset, shards, embed, communicator)
    return f"{line}; {left}" if left else line


def _left_out(path: Path, why: str) -> str:
    """A line about class centres in a checkpoint that are not used; empty if it has none."""
    saved = centres_in_file(path, read_arrays(path))
    return f"{saved.where}: class centres left out: {why}" if saved else ""


def from_checkpoint(path: Path, shards: Sequence[Shard], num_classes: int, sub_centres: int, dim: int) -> str:
    """Fill ``shards`` with W from the checkpoint or its folder, if it fits; only their rows are read. Returns a line.
    """
    saved = find_centres(path)
    if saved is None:
        return f"{path}: no class centres there; they start anew"
    if mismatch := _mismatch(saved, num_classes, sub_centres, dim):
        return f"{saved.where}: {mismatch}; the class centres start anew"
    return _filled(saved, shards, num_classes, sub_centres)


def _from_named(source: CentresSource, num_classes: int, shards: Sequence[Shard]) -> str:
    """Fill ``shards`` with W of another network, such as a teacher: of a checkpoint, PREFIX,EPOCH, or of a folder.

    :raises UserError: if there is none, or if it does not fit.
    """
    place = Path(source.origin)
    path = place if place.is_dir() else Path(params_file(*split_pretrained(source.origin, 1)))
    saved = centres_in_folder(place) if place.is_dir() else find_centres(path)
    if saved is None:
        raise UserError(f"--centres-from: {path}: found no class centres there, expected those of a training state, or "
                        "of a checkpoint that config.ckpt_embedding = False saved")
    if mismatch := _mismatch(saved, num_classes, source.sub_centres, source.dim):
        raise UserError(f"--centres-from: {saved.where}: {mismatch}")
    return _filled(saved, shards, num_classes, source.sub_centres)


def _mismatch(saved: SavedCentres, num_classes: int, sub_centres: int, dim: int) -> str:
    """The reason why this is not W of the run; empty if it is."""
    found = saved.mismatch(num_classes, sub_centres)
    return found or ("" if saved.dim == dim else f"found centres of {saved.dim} numbers, expected {dim}")


def _filled(saved: SavedCentres, shards: Sequence[Shard], num_classes: int, sub_centres: int) -> str:
    """Fill ``shards`` with their rows of W; returns a line."""
    for shard in shards:
        for low, high in pieces(shard.start, shard.stop, sub_centres):
            shard.load(_rows(saved, low * sub_centres, high * sub_centres, shard.with_bias), low)
    taken = ["class centres", *(["their bias"] if saved.bias and shards[0].with_bias else [])]
    left = "; their bias left out, this loss has none" if saved.bias and not shards[0].with_bias else ""
    left += "; their momentum left out, as the backbone's" if saved.momentum else ""
    return f"{saved.where}: {' and '.join(taken)} of {num_classes} classes loaded{left}"


def _rows(saved: SavedCentres, low: int, high: int, with_bias: bool) -> ShardState:
    """The rows ``low .. high - 1``, with zeros for moments and for a bias that is missing or not wanted."""
    centres = np.concatenate(rows_between(saved.centres, low, high), dtype=np.float32)
    none = np.zeros(len(centres), np.float32)
    bias = np.concatenate(rows_between(saved.bias, low, high)) if saved.bias and with_bias else none
    return ShardState(centres, np.zeros_like(centres), bias, none)


def _from_embeddings(source: CentresSource, dataset: ImageSet, shards: Sequence[Shard],
                     embed: Callable[[np.ndarray], np.ndarray], communicator: Communicator) -> str:
    k = source.sub_centres
    images, rows = choose_images(dataset.labels(), k)
    states = [shard.state() for shard in shards]
    sums = [np.zeros_like(state.centres) for state in states]
    for low, features in _features(dataset, images, embed, source.batch, communicator, source.threads):
        _add(sums, [shard.start * k for shard in shards], rows[low : low + len(features)], features)
    for shard, state, total in zip(shards, states, sums):
        lengths = np.linalg.norm(total, axis=1, keepdims=True)
        # Length 1: a step turns a centre by an angle inverse to its squared length. With the length of the seed's rows,
        # 0.1 to 0.2, the first steps would turn the centres away from the means.
        means = total / np.maximum(lengths, 1e-12)
        shard.load(state._replace(centres=np.where(lengths > 0, means, state.centres)))
    empty = dataset.num_classes * k - len(np.unique(rows))
    return (f"class centres: the mean embeddings of {len(images)} images, at most {MOST_IMAGES * k} of a "
            "class" + (f"; {empty} centres without images start anew" if empty else ""))


def choose_images(labels: np.ndarray, sub_centres: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images of each class, up to MOST_IMAGES for each of its sub-centres in turn, and the rows of W that
    they belong to: int64 (n,) both."""
    images = np.argsort(labels, kind="stable")
    images = images[labels[images] != NO_LABEL]
    classes = labels[images]
    place = np.arange(len(images)) - np.searchsorted(classes, classes)  # of an image within its class
    kept = place < MOST_IMAGES * sub_centres
    return images[kept], (classes * sub_centres + place % sub_centres)[kept]


def _features(dataset: ImageSet, images: np.ndarray, embed: Callable[[np.ndarray], np.ndarray], own: int,
              communicator: Communicator, threads: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield unit embeddings of ``images``, float32 (n, D), in batches of all processes, each with the place of its
    first image. A bad image, in whose place the loader has another, gets zeros."""
    batch = own * communicator.size
    part = (communicator.rank * own, (communicator.rank + 1) * own)
    for number, (places, loaded) in enumerate(each_once(dataset, images, batch, part, threads=threads)):
        itself = dataset.is_image(places, loaded.records)[:, None]
        features = np.where(itself, embed(loaded.images), np.float32(0))
        features = communicator.all_gather(features)[: len(images) - number * batch]
        if not np.isfinite(features).all():
            raise UserError("--centres-from embeddings: the embeddings of --pretrained are not finite")
        yield number * batch, features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def _add(sums: Sequence[np.ndarray], starts: Sequence[int], rows: np.ndarray, features: np.ndarray) -> None:
    for total, start in zip(sums, starts):
        inside = (rows >= start) & (rows < start + len(total))
        np.add.at(total, rows[inside] - start, features[inside])
