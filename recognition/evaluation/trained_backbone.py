# SPDX-License-Identifier: Apache-2.0
"""A trained backbone as an object that embeds arrays of images: ``from recognition import load_backbone``."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Union

import numpy as np

from recognition.config.cli import find_pretrained
from recognition.config.devices import Device, parse_devices, require_bfloat16
from recognition.data.images.image import write_planes
from recognition.engines.choose import choose_engine
from recognition.engines.interface import Embedder
from recognition.errors import UserError
from recognition.evaluation.embed_images import with_mirrors

Images = Union[np.ndarray, Sequence[np.ndarray]]


class TrainedBackbone:
    """A trained network that embeds images. :func:`load_backbone` makes one. It is not safe for several threads."""

    def __init__(self, prefix: str, number: int, devices: Sequence[Device], batch_size: int,
                 image_size: tuple[int, int], bfloat16: bool, engine: str = "auto") -> None:
        self.image_size, self.batch_size = image_size, batch_size
        self.model = f"{prefix},{number}"
        self._source, self._devices, self._bfloat16 = (prefix, number), tuple(devices), bfloat16
        self._engine = choose_engine(engine, devices)
        self._embedders: dict[int, Embedder] = {}  # by batch size of a device; made when first needed
        self.dim = self._embedder(1).dim

    def __repr__(self) -> str:
        height, width = self.image_size
        return f"Backbone({self.model!r}: {height}x{width} RGB images to {self.dim} numbers)"

    def embed(self, images: Images, flip: bool = True, unit: bool = True) -> np.ndarray:
        """The embeddings of aligned faces, float32 ``(N, dim)``.

        :param images: uint8 ``(N, H, W, 3)`` RGB, or a sequence of N such ``(H, W, 3)``, of :attr:`image_size`; N may
            be 0. The network scales pixels itself.
        :param flip: add the embedding of each image's mirror, as the verification protocol does; twice the work.
        :param unit: divide each embedding by its Euclidean norm, so that dot products are cosines.
        :raises ValueError: with the number of the image, if it has another type or shape, or if, with ``unit``, its
            embedding is zero or not finite.
        """
        found = np.empty((len(images), self.dim), np.float32)
        step = self.batch_size * len(self._devices)
        for low in range(0, len(images), step):
            planes = self._planes(images, low, min(low + step, len(images)))
            found[low : low + step] = with_mirrors(self._rows)(planes) if flip else self._rows(planes)
        return unit_rows(found) if unit else found

    def _planes(self, images: Images, low: int, high: int) -> np.ndarray:
        height, width = self.image_size
        planes = np.empty((high - low, 3, height, width), np.uint8)
        for place in range(low, high):
            image = np.asarray(images[place])
            if image.shape != (height, width, 3) or image.dtype != np.uint8:
                raise ValueError(f"image {place}: found {image.dtype} of shape {image.shape}, expected uint8 of shape "
                                 f"{(height, width, 3)}, RGB")
            write_planes(np.ascontiguousarray(image), planes[place - low])
        return planes

    def _rows(self, planes: np.ndarray) -> np.ndarray:
        """Embed whole batches at once, and a small rest image by image: a padded batch takes as long as a full one."""
        size = self.batch_size * len(self._devices)
        whole = 0 if 0 < len(planes) <= size // 4 else len(planes)
        parts = [self._embedder(self.batch_size)(planes[:whole])] if whole else []
        return np.concatenate([*parts, self._embedder(1)(planes[whole:])] if whole < len(planes) else parts)

    def _embedder(self, size: int) -> Embedder:
        if size not in self._embedders:
            self._embedders[size] = self._engine.embedder(self._source, self._devices, size, (3, *self.image_size),
                                                          self._bfloat16)
        return self._embedders[size]


def load_backbone(model: str, devices: str = "cpu", batch_size: int = 32,
                  image_size: tuple[int, int] = (112, 112), bfloat16: bool = False,
                  engine: str = "auto") -> TrainedBackbone:
    """The backbone of a checkpoint, for embedding images.

    :param model: ``PREFIX,EPOCH``, ``PREFIX``, or the folder that holds ``model-*.params``; epoch 1 if not given
    :param devices: ``cpu``, ``gpu``, ``gpu:0,1``, ...
    :param batch_size: images a device at a time
    :param image_size: (height, width) that the network was trained on
    :param bfloat16: compute in bfloat16 on CPUs that have it: about twice as fast, cosines change by up to 1e-3
    :param engine: ``mxnet``, ``torch``, or ``auto``: what is installed and can use the devices, of both the faster
    :raises recognition.errors.UserError: if a file is missing, cannot be read, or is no face recognition checkpoint;
        if a GPU cannot be used; if the processor has no bfloat16.
    """
    try:
        parsed = parse_devices(devices)
    except (TypeError, ValueError):
        raise UserError(f"devices: found {devices!r}, expected cpu, cpu:N, gpu or gpu:I,J") from None
    if batch_size < 1:
        raise UserError(f"batch_size: found {batch_size}, expected at least 1")
    if bfloat16:
        require_bfloat16("bfloat16")
    prefix, number = find_pretrained(model, 1, "model")
    return TrainedBackbone(prefix, number, parsed, batch_size, image_size, bfloat16, engine)


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Divide each row by its Euclidean norm: float32 (n, D).

    :raises ValueError: with its number, if a row is zero or not finite.
    """
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if bad.size:
        raise ValueError(f"image {bad[0]}: its embedding has the norm {norms[bad[0]]}, so no direction")
    return (rows / norms[:, np.newaxis]).astype(np.float32)
