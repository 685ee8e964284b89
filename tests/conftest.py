# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every room's tests share."""
from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden files and real photographs that lies beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"no golden files and photographs at {SHARED}")
    return SHARED
