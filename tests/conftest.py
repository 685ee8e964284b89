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
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # of several that share the processors; before NumPy and MXNet are imported
    for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(_variable, "1")

os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported: tests need no GPU

for _name, _library in (("torch", "PyTorch"), ("triton", "Triton")):
    if os.environ.get("REQUIRE_TORCH") and sys.version_info >= (3, 10) and importlib.util.find_spec(_name) is None:
        raise pytest.UsageError(f"{_library} is not installed, and this run must not go without it")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden files and real photographs that lies beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"no golden files and photographs at {SHARED}")
    return SHARED


@pytest.fixture(autouse=True)
def _threads_of_torch() -> Iterator[None]:
    """Gives PyTorch, where a test has it loaded, its number of threads back: a run on several devices sets another."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    yield
    if torch and torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(params=["mxnet", "torch"])
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine in turn; skips where its library is not installed."""
    name: str = request.param
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


@pytest.fixture
def replicated(engine: str) -> Callable[..., Any]:
    """``replicated(graph, parameters, auxiliary, devices, ...)``: the engine's backbone on so many devices of the CPU;
    what follows is as in both classes, or fields of :class:`Updating`."""
    from recognition.engines.interface import Updating

    def sorted_out(options: dict[str, Any]) -> dict[str, Any]:
        ours = {key: options.pop(key) for key in [*options] if key in Updating.__dataclass_fields__}
        return {"updating": Updating(**ours), **options}

    if engine == "torch":
        from recognition.engines.torch import backbone as of_torch
        from recognition.engines.torch.imports import torch

        return lambda graph, parameters, auxiliary, devices, *rest, **options: of_torch.ReplicatedBackbone(
            graph, parameters, auxiliary, [torch.device("cpu")] * devices, *rest, **sorted_out(options))
    from recognition.engines.mxnet import backbone as of_mxnet
    from recognition.engines.mxnet.imports import mx

    return lambda graph, parameters, auxiliary, devices, *rest, **options: of_mxnet.ReplicatedBackbone(
        graph, parameters, auxiliary, [mx.cpu(place) for place in range(devices)], *rest, **sorted_out(options))


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
