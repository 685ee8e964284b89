# SPDX-License-Identifier: Apache-2.0
"""The verification inside the training loop: every ``<target>.bin`` of the training set's folder that is there."""
from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

import numpy as np

from recognition.data.verification_set import VerificationSet, load_bin
from recognition.evaluation.roc import Roc
from recognition.evaluation.verification import VerificationResult, check_pairs, pixel_similarity, verify
from recognition.io.files import replacing
from recognition.processes.communicator import Communicator


def load_targets(folder: Path, targets: Sequence[str], image_size: tuple[int, int]) -> list[VerificationSet]:
    """The verification sets present in ``folder``, in the order of ``targets``; image_size: (height, width)."""
    paths = [folder / f"{target}.bin" for target in targets]
    sets = [load_bin(path, image_size) for path in paths if path.is_file()]
    for chosen in sets:  # before hours are spent, not after
        check_pairs(chosen.issame, name=chosen.name)
    return sets


def shared(embed: Callable[[np.ndarray], np.ndarray],
           communicator: Communicator) -> Callable[[np.ndarray], np.ndarray]:
    """``embed`` for images that all processes have: each embeds its part of them, and all get the whole."""

    def embed_together(images: np.ndarray) -> np.ndarray:
        part = -(-len(images) // communicator.size)
        mine = np.arange(communicator.rank * part, (communicator.rank + 1) * part) % len(images)
        return communicator.all_gather(embed(images[mine]))[: len(images)]

    return embed if communicator.size == 1 else embed_together


class Verifier:
    """Callable that embeds every set, writes its ROC curve as ``roc-<target>.npz`` and returns the results.

    The file holds that of comparing pixels too, which shows what the network adds, and each pair's distance.
    """

    def __init__(self, embed: Callable[[np.ndarray], np.ndarray], sets: Sequence[VerificationSet], batch_size: int,
                 folder: Path | None) -> None:
        """:param folder: None for a process that leaves the curves to another."""
        self._embed, self._sets, self._batch_size, self._folder = embed, sets, batch_size, folder
        self._pixels: dict[str, Roc] = {}

    def __call__(self) -> list[VerificationResult]:
        results = [verify(self._embed, chosen, self._batch_size) for chosen in self._sets]
        if self._folder is not None:
            if not self._pixels:
                self._pixels = {chosen.name: pixel_similarity(chosen).roc for chosen in self._sets}
            for result in results:
                self._write_curve(result, self._folder)
        return results

    def _write_curve(self, result: VerificationResult, folder: Path) -> None:
        pixels, content = self._pixels[result.name], io.BytesIO()  # a zip file cut by a full disk complains when freed
        np.savez(content, **result.roc._asdict(), pixel_fpr=pixels.fpr, pixel_tpr=pixels.tpr,
                 distances=result.distances.astype(np.float32), issame=result.issame,
                 threshold=np.mean(result.best_thresholds))
        with replacing(folder / f"roc-{result.name}.npz") as path:
            path.write_bytes(content.getbuffer())
