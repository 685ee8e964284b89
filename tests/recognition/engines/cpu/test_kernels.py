# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recognition.engines.cpu import kernels

ROOT = Path(__file__).resolve().parents[4]
USE = ("import numpy as np, kernels\nout = np.zeros(2, np.float32)\n"
       "kernels.inverse_norms(np.array([[3, 4], [0, 2]], np.float32), out)\nprint((1 / out).round(3).tolist())")


@pytest.mark.parametrize("writable", [True, False])
def test_kernels_compile_where_no_cache_can_be_kept(tmp_path: Path, writable: bool) -> None:
    """Files stand where Numba would make its folders, for nothing else keeps root from writing."""
    shutil.copy(kernels.__file__, tmp_path / "kernels.py")
    if not writable:
        (tmp_path / "__pycache__").write_text("")
        (tmp_path / "home").write_text("")
    kept = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    done = subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, capture_output=True, text=True, timeout=120,
                          env={**kept, "HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)})
    assert (done.stdout.strip(), done.stderr) == ("[5.0, 2.0]", "")
    assert any((tmp_path / "__pycache__").glob("kernels.inverse_norms*.nbi")) == writable
