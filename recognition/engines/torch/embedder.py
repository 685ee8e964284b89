# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's network, for embedding images and nothing else."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np

from recognition.config.devices import Device
from recognition.engines.torch.imports import torch
from recognition.engines.torch.placed import Placed, embed, torch_device
from recognition.errors import UserError
from recognition.networks.fold import fold_batch_norms
from recognition.networks.saved import read_saved


class Embedder:
    """Implements :class:`recognition.engines.interface.Embedder`."""

    def __init__(self, prefix: str, number: int, devices: Sequence[Device], batch_size: int,
                 image_shape: tuple[int, int, int], bfloat16: bool = False) -> None:
        """Batch norms are folded; for the rest see :meth:`recognition.engines.interface.Engine.embedder`."""
        saved = read_saved(prefix, number, batch_size, image_shape)
        self._path, self.dim = saved.path, saved.dim
        form = fold_batch_norms(saved.graph, saved.arguments, saved.auxiliary)
        with _naming(self._path):
            self._placed = [Placed(*form, torch_device(device), torch.bfloat16 if bfloat16 else None)
                            for device in devices]
        self._batch_size = batch_size

    def __call__(self, images: np.ndarray) -> np.ndarray:
        with _naming(self._path):
            found = embed(self._placed, self._batch_size, images)
        return np.concatenate([np.empty((0, self.dim), np.float32), *found])


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Context in which an error of PyTorch becomes a UserError that names the file ``path``."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: PyTorch cannot run this network: {reason}") from error
