# SPDX-License-Identifier: Apache-2.0
"""What the tests of the class centres share."""
from __future__ import annotations

import numba
import pytest


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards share their work among threads, also where tests that run side by side are given one each."""
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", max(2, numba.config.NUMBA_NUM_THREADS))
