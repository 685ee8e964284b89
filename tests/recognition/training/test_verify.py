# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from recognition.data.verification_set import VerificationSet
from recognition.errors import UserError
from recognition.training.verify import Verifier


def embed(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32)


def test_a_full_disk_leaves_the_curve_before(tmp_path: Path, full_disk: Callable) -> None:
    images = np.random.RandomState(0).randint(0, 256, (40, 3, 4, 4)).astype(np.uint8)
    verifier = Verifier(embed, [VerificationSet("tiny", images, np.arange(20) % 2 == 0)], 8, tmp_path)
    verifier()
    before = (tmp_path / "roc-tiny.npz").read_bytes()
    with full_disk(100), pytest.raises(UserError, match=r"roc-tiny\.npz: cannot be written: File too large"):
        verifier()
    assert [path.name for path in tmp_path.iterdir()] == ["roc-tiny.npz"]
    assert (tmp_path / "roc-tiny.npz").read_bytes() == before
    gc.collect()  # which crashed CPython 3.12.1, see write_whole
