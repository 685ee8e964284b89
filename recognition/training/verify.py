# SPDX-License-Identifier: Apache-2.0
"""The verification inside the training loop: every ``<target>.bin`` of the training set's folder that is there."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Callable

import numpy as np

from common.roc import Roc
from common.verification import VerificationResult, check_pairs, pixel_similarity, verify
from recognition.data.verification_set import VerificationSet, load_bin
from recognition.training.files import replacing


def load_targets(folder: Path, targets: Sequence[str], image_size: tuple[int, int]) -> list[VerificationSet]:
    """The verification sets present in ``folder``, in the order of ``targets``; image_size: (height, width)."""
    paths = [folder / f"{target}.bin" for target in targets]
    sets = [load_bin(path, image_size) for path in paths if path.is_file()]
    for chosen in sets:  # before hours are spent, not after
        check_pairs(chosen.issame, name=chosen.name)
    return sets


class Verifier:
    """Callable that embeds every set, writes its ROC curve as ``roc-<target>.npz`` and returns the results.

    The file holds that of comparing pixels too, which shows what the network adds.
    """

    def __init__(self, embed: Callable[[np.ndarray], np.ndarray], sets: Sequence[VerificationSet], batch_size: int,
                 folder: Path) -> None:
        self._embed, self._sets, self._batch_size, self._folder = embed, sets, batch_size, folder
        self._pixels: dict[str, Roc] = {}

    def __call__(self) -> list[VerificationResult]:
        results = [verify(self._embed, chosen, self._batch_size) for chosen in self._sets]
        if not self._pixels:
            self._pixels = {chosen.name: pixel_similarity(chosen).roc for chosen in self._sets}
        for result in results:
            self._write_curve(result)
        return results

    def _write_curve(self, result: VerificationResult) -> None:
        with replacing(self._folder / f"roc-{result.name}.npz") as path, open(path, "wb") as file:
            pixels = self._pixels[result.name]
            np.savez(file, **result.roc._asdict(), pixel_fpr=pixels.fpr, pixel_tpr=pixels.tpr)
