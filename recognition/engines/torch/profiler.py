# SPDX-License-Identifier: Apache-2.0
"""PyTorch's profiler, which sees each operator that a process runs, and the kernels of its GPUs."""
from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from recognition.engines.torch.imports import torch
from recognition.io.files import replacing

ROWS = 60  # of the table of operators


class TorchProfiler:
    """Implements :class:`recognition.engines.interface.Profiler`."""

    def wait(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def start(self, trace: Path) -> None:
        self._trace, self._profile = trace, torch.profiler.profile()
        self._profile.start()

    def phase(self, name: str) -> AbstractContextManager[Any]:
        return torch.profiler.record_function(name)

    def stop(self) -> str:
        self._profile.stop()
        with replacing(self._trace) as path:
            self._profile.export_chrome_trace(str(path))
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        return str(self._profile.key_averages().table(sort_by=by, row_limit=ROWS))
