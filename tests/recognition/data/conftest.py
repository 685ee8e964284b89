# SPDX-License-Identifier: Apache-2.0
"""Small training sets made of real JPEG records."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from recognition.data.records.recordio import RecordWriter, pack_record
from recognition.errors import UserError


@pytest.fixture(scope="session")
def mx() -> ModuleType:
    """MXNet, as the reference to compare with."""
    try:
        from recognition.engines.mxnet.imports import mx
    except UserError as error:
        pytest.skip(str(error))
    return mx


def jpeg(seed: int, size: tuple[int, int] = (112, 112), quality: int = 95) -> bytes:
    """A smooth random colour image of (height, width) as JPEG."""
    noise = np.random.RandomState(seed).randint(0, 256, (8, 8, 3)).astype(np.uint8)
    image = cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


@pytest.fixture(scope="session")
def make_jpeg() -> Callable[..., bytes]:
    return jpeg


@pytest.fixture
def make_set(tmp_path: Path) -> Callable[..., Path]:
    """``make_set(form, counts)``: a folder with ``counts[c]`` images of class c, image n of all being ``jpeg(n)``."""

    def make(form: str = "identities", counts: tuple[int, ...] = (3, 1, 4), bodies: dict[int, bytes] | None = None,
             labels: dict[int, float] | None = None) -> Path:
        total, classes = sum(counts), np.repeat(np.arange(len(counts)), counts)
        first = 1 if form == "identities" else 0
        with RecordWriter(tmp_path / "train.rec", tmp_path / "train.idx") as writer:
            if form == "identities":
                writer.write(0, pack_record((total + 1, total + 1 + len(counts))))
            for n in range(total):
                label = (labels or {}).get(n, int(classes[n]))
                writer.write(n + first, pack_record(label, (bodies or {}).get(n, jpeg(n)), n))
            if form == "identities":
                stops = np.cumsum(counts) + 1
                for c, stop in enumerate(stops):
                    writer.write(total + 1 + c, pack_record((stop - counts[c], stop)))
        shuffled = f"{total}\nshuffled\n" if form == "shuffled" else ""
        (tmp_path / "property").write_text(f"{len(counts)},112,112\n{shuffled}")
        if form == "shuffled":
            (tmp_path / "train.idx").unlink()
        return tmp_path

    return make
