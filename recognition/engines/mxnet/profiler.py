# SPDX-License-Identifier: Apache-2.0
"""MXNet's profiler, which sees each operator that its engine runs."""
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from recognition.engines.mxnet.imports import mx


class MxnetProfiler:
    """Implements :class:`recognition.engines.interface.Profiler`."""

    def __init__(self) -> None:
        self._domain = mx.profiler.Domain("step")

    def wait(self) -> None:
        mx.nd.waitall()

    def start(self, trace: Path) -> None:
        mx.profiler.set_config(profile_all=True, aggregate_stats=True, continuous_dump=False,
                               filename=os.fspath(trace))
        mx.profiler.set_state("run")

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        task = self._domain.new_task(name)
        task.start()
        try:
            yield
        finally:
            task.stop()

    def stop(self) -> str:
        mx.profiler.set_state("stop")
        mx.profiler.dump(finished=True)
        return str(mx.profiler.dumps())
