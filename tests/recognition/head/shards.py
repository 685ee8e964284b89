# SPDX-License-Identifier: Apache-2.0
"""Makers of shards on the CPU, one for each kind: ``make(start, stop, dim, **options)``."""
from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from recognition.engines.cpu.shard import CpuShard
from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.shard import MxnetShard


def on_cpu(*place: int, **options: Any) -> CpuShard:
    return CpuShard(*place, **options)


def on_context(*place: int, **options: Any) -> MxnetShard:
    return MxnetShard(mx.cpu(), *place, **options)


def on_torch(*place: int, **options: Any) -> Any:
    torch = pytest.importorskip("torch")
    from recognition.engines.torch.shard import TorchShard

    return TorchShard(torch.device("cpu"), *place, **options)


def on_triton(*place: int, with_bias: bool = False, **options: Any) -> Any:
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    from recognition.engines.torch.triton.shard import TritonShard

    return TritonShard(torch.device("cpu"), *place, products=torch.float32, **options)


KINDS = pytest.mark.parametrize("kind", [
    on_cpu, on_context, partial(on_context, on_host=True), on_torch, partial(on_torch, on_host=True),
], ids=["numba", "mxnet", "mxnet, W on the host", "torch", "torch, W on the host"])
