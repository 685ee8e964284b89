# SPDX-License-Identifier: Apache-2.0
"""A teacher in training: where its embeddings of a batch come from, and the pull of the student's to them."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from recognition.config.cli import split_pretrained
from recognition.config.devices import Device
from recognition.data.loader import Batch
from recognition.data.sets.image_set import ImageSet
from recognition.engines.interface import Engine
from recognition.errors import UserError
from recognition.head.distil import pull
from recognition.head.sharded import on_host
from recognition.io.checksums import sum_of
from recognition.io.embeddings import StoredEmbeddings
from recognition.training.checkpoints.pretrained import checkpoint_path


class Teacher(Protocol):
    """A source of the embeddings (b, D) of a batch, of any length."""

    dim: int
    fingerprint: str  # tells teachers apart, also of one name

    def __call__(self, batch: Batch) -> np.ndarray: ...


class CheckpointTeacher:
    """A checkpoint's network, for inference: it sees the images as the student does, with the same augmentation."""

    def __init__(self, text: str, engine: Engine, devices: Sequence[Device], batch_size: int,
                 image_shape: tuple[int, int, int], bfloat16: bool) -> None:
        """:param text: PREFIX,EPOCH; ``image_shape``: (3, H, W), and what follows as an embedder takes it.
        :raises UserError: if it cannot be read, or takes no such images.
        """
        prefix, number = split_pretrained(text, 1)
        try:
            self._embed = engine.embedder((prefix, number), devices, batch_size, image_shape, bfloat16)
        except UserError as error:
            raise UserError(f"--teacher: {error}; the run's images are {'x'.join(map(str, image_shape[1:]))}") from None
        self.dim = self._embed.dim
        self.fingerprint = sum_of(checkpoint_path(prefix, number)).sha256[:16]

    def __call__(self, batch: Batch) -> np.ndarray:
        return self._embed(batch.images)


class StoredTeacher:
    """Embeddings that were stored before, of the images as they lie in the set: they cost next to nothing."""

    def __init__(self, folder: Path, dataset: ImageSet, whole: bool) -> None:
        """:param whole: whether ``dataset`` visits each of its images once, so that its digest is that of the set.
        :raises UserError: if they cannot be read, or are not those of the set's images.
        """
        self._stored = StoredEmbeddings(folder)
        self.dim, self.fingerprint = self._stored.dim, self._stored.fingerprint()
        if len(absent := self._stored.missing(dataset.keys)):
            raise UserError(f"--teacher: {folder} has {len(self._stored.keys)} embeddings, none for {len(absent)} of "
                            f"the {len(dataset)} images of {dataset.path}, the first of record {absent[0]}; expected "
                            "one for each")
        same_images = whole and len(self._stored.keys) == len(dataset)
        if same_images and self._stored.digest and self._stored.digest != dataset.digest():
            raise UserError(f"--teacher: {folder} has the embeddings of another set (digest {self._stored.digest}) "
                            f"than {dataset.path} ({dataset.digest()}); expected those that common.embed_set makes of "
                            "it")

    def __call__(self, batch: Batch) -> np.ndarray:
        return self._stored.of(batch.records)


class Distillation:
    """The pull of a student's embeddings to its teacher's, added to the gradient of the head. A process needs no other
    for it."""

    def __init__(self, teacher: Teacher, weight: float, processes: int) -> None:
        """:param weight: of the mean of ``|x^ - t^|^2`` over the global batch, beside the head's loss.
        :param processes: that share the global batch.
        """
        self._teacher, self._weight, self._processes = teacher, weight, processes
        self._sum, self._images = 0.0, 0  # of the squared distances since measured() was called

    def added(self, d_features: Any, features: Any, batch: Batch) -> Any:
        """The gradient of both losses by this process's ``features`` (b, D), from that of the head's, of its kind.

        :raises UserError: if an embedding of the teacher is zero or not finite.
        """
        wanted = self._teacher(batch)
        norms = np.abs(wanted).max(axis=1)
        bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
        if len(bad):
            raise UserError(f"--teacher: its embedding of record {batch.records[bad[0]]} is zero or not finite")
        found = pull(on_host(features), wanted)
        self._sum, self._images = self._sum + found.loss, self._images + len(wanted)
        own = found.d_features * np.float32(self._weight / (len(wanted) * self._processes))
        return d_features + (own if isinstance(d_features, np.ndarray) else d_features.new_tensor(own))

    def measured(self) -> dict[str, float]:
        """The mean squared distance of this process's images from the teacher since the last call, for the history."""
        found = {"teacher_distance": self._sum / self._images} if self._images else {}
        self._sum, self._images = 0.0, 0
        return found
