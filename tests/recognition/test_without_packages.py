# SPDX-License-Identifier: Apache-2.0
"""What a run with PyTorch needs: PyTorch, NumPy, OpenCV, Numba and SciPy; nothing else of what is installed."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recognition.config.easy_dict import EasyDict

ROOT = Path(__file__).resolve().parents[2]
OTHERS = ("mxnet", "horovod", "easydict", "tqdm", "sklearn", "joblib", "requests", "graphviz", "matplotlib",
          "tensorboardX", "wandb", "mlflow", "onnx", "psutil", "yaml", "cloudpickle")
WITHOUT = """
import importlib, sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))  # None: the import fails
import train, train_parall
for name in sys.argv[2:]:
    importlib.import_module(name)
from recognition.config.cli import parse_args
assert parse_args("train_parall", ["--network", "y1", "--loss", "arcface"], environ={}).emb_size == 128
"""


def test_a_run_of_torch_imports_no_other_package() -> None:
    modules = ["recognition.training.run", "recognition.engines.cpu.shard", "recognition.evaluation.trained_backbone",
               "common.verification", "common.report", "common.inference"]
    done = subprocess.run([sys.executable, "-c", WITHOUT, ",".join(OTHERS), *modules], cwd=ROOT, capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code, found", [
    ("raise OSError('libcudart.so.13: cannot open shared object file: No such file or directory')",
     "that can be imported (libcudart.so.13: cannot open shared object file: No such file or directory)"),
    ("raise ImportError('a\\nb')", "that can be imported (a b)"),
])
def test_a_torch_that_cannot_be_imported_is_one_line(tmp_path, code: str, found: str) -> None:
    """A library of NVIDIA's that is missing is an OSError to PyTorch."""
    (tmp_path / "torch.py").write_text(code)
    done = subprocess.run([sys.executable, "-c", "from recognition.engines.torch.imports import torch"], text=True,
                          cwd=ROOT, capture_output=True, timeout=120, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.stderr.splitlines()[-1] == (f"recognition.errors.UserError: engine: found no PyTorch {found}, expected "
                                            "2.9 or newer; `ENGINE=torch make demo` installs it")


def test_the_stand_in_for_easydict_is_like_easydict() -> None:
    theirs = pytest.importorskip("easydict").EasyDict
    for make in (theirs, EasyDict):
        made = make({"a": {"b": 1}}, c=[{"d": 2}])
        made.e, made["f"] = {"g": 3}, 4
        made.update(h={"i": 5})
        assert (made.a.b, made.c[0].d, made.e.g, made.f, made.h.i) == (1, 2, 3, 4, 5)
        assert dict(made) == {"a": {"b": 1}, "c": [{"d": 2}], "e": {"g": 3}, "f": 4, "h": {"i": 5}}
        assert made.get("x") is None and not hasattr(made, "x")
