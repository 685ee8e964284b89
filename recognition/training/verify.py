# SPDX-License-Identifier: Apache-2.0
"""Verification during training, on each ``<target>.bin`` that the folder of the training set holds."""
from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Callable

import numpy as np

from recognition.data.verification_set import VerificationSet, load_bin
from recognition.evaluation.roc import Roc
from recognition.evaluation.verification import VerificationResult, check_pairs, pixel_similarity, verify
from recognition.io.files import write_whole
from recognition.processes.communicator import Communicator

OF_AVERAGE = "-ema"  # behind a target's name


def load_targets(folders: Sequence[Path], targets: Sequence[str],
                 image_size: tuple[int, int]) -> list[VerificationSet]:
    """Load the verification sets of the folders, in the order of ``targets``; those that are missing are left out. If
    several folders have one, that of the first counts, with a line.

    :param image_size: (height, width) in pixels.
    :raises UserError: if a file is no verification set, or cannot be scored.
    """
    sets = []
    for target in targets:
        paths = [path for path in (folder / f"{target}.bin" for folder in folders) if path.is_file()]
        sets += [load_bin(path, image_size) for path in paths[:1]]
        for other in paths[1:]:
            print(f"{other}: left out, {paths[0]} is verified on", flush=True)
    for chosen in sets:  # now, before hours of training are spent
        check_pairs(chosen.issame, name=chosen.name)
    return sets


def shared(embed: Callable[[np.ndarray], np.ndarray],
           communicator: Communicator) -> Callable[[np.ndarray], np.ndarray]:
    """A function like ``embed`` for images that all processes have: each embeds a part, and all get all embeddings."""

    def embed_together(images: np.ndarray) -> np.ndarray:
        part = -(-len(images) // communicator.size)
        mine = np.arange(communicator.rank * part, (communicator.rank + 1) * part) % len(images)
        return communicator.all_gather(embed(images[mine]))[: len(images)]

    return embed if communicator.size == 1 else embed_together


class Verifier:
    """A callable that embeds every set, writes its ROC curve to ``roc-<target>.npz`` and returns the results.

    The file also holds each pair's distance, and the curve of a comparison of pixels as a baseline. Results of the
    moving average of the weights, if there is one, follow as ``<target>-ema``.
    """

    def __init__(self, embed: Callable[[np.ndarray], np.ndarray], sets: Sequence[VerificationSet], batch_size: int,
                 folder: Path | None, averaged: Callable[[], AbstractContextManager[None]] | None = None) -> None:
        """:param folder: None for a process that does not write the curves.
        :param averaged: the context in which ``embed`` is that of the average.
        """
        self._averaged = averaged
        self._embed, self._sets, self._batch_size, self._folder = embed, sets, batch_size, folder
        self._pixels: dict[str, Roc] = {}

    def __call__(self) -> list[VerificationResult]:
        results = self._verified()
        if self._averaged and self._sets:
            with self._averaged():
                results += [replace(result, name=result.name + OF_AVERAGE) for result in self._verified()]
        if self._folder is not None:
            if not self._pixels:
                self._pixels = {chosen.name: pixel_similarity(chosen).roc for chosen in self._sets}
            for result in results:
                self._write_curve(result, self._folder)
        return results

    def _verified(self) -> list[VerificationResult]:
        return [verify(self._embed, chosen, self._batch_size) for chosen in self._sets]

    def _write_curve(self, result: VerificationResult, folder: Path) -> None:
        pixels = self._pixels[result.name.removesuffix(OF_AVERAGE)]
        content = io.BytesIO()  # on a full disk a ZipFile would fail when freed
        np.savez(content, **result.roc._asdict(), pixel_fpr=pixels.fpr, pixel_tpr=pixels.tpr,
                 distances=result.distances.astype(np.float32), issame=result.issame,
                 threshold=np.mean(result.best_thresholds))
        write_whole(folder / f"roc-{result.name}.npz", content.getvalue())
