# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every room's tests share."""
from __future__ import annotations

import importlib.util
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # of several that share the processors; before NumPy and MXNet are imported
    for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(_variable, "1")

if os.environ.get("REQUIRE_TORCH") and sys.version_info >= (3, 10) and importlib.util.find_spec("torch") is None:
    raise pytest.UsageError("PyTorch is not installed, and this run must not go without it")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden files and real photographs that lies beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"no golden files and photographs at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def horovod() -> None:
    """For tests that need Horovod: skips where it is not installed, unless the run must not go without it."""
    if importlib.util.find_spec("horovod") is None:
        if os.environ.get("REQUIRE_HOROVOD") or os.environ.get("CI"):
            pytest.fail("Horovod is not installed, and this run must not go without it")
        pytest.skip("Horovod is not installed: `make test` builds it")


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """``with full_disk(n)``: no file can grow beyond n bytes, an OSError as from a disk without space."""

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit
