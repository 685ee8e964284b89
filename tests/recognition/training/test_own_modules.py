# SPDX-License-Identifier: Apache-2.0
"""A PyTorch module of the user's own, from config.py to a checkpoint that goes back into the module."""
from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest

torch = pytest.importorskip("torch")

from recognition.config.user_code import run_file  # noqa: E402
from recognition.data.verification_set import load_bin  # noqa: E402
from recognition.evaluation.verification import verify  # noqa: E402
from recognition.training.checkpoints.pretrained import read_params  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
MODULE = """
import torch

def get_module(emb_size, filters):
    class Patches(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Sequential(
                torch.nn.Conv2d(3, filters, 7, 7), torch.nn.BatchNorm2d(filters), torch.nn.PReLU(filters),
                torch.nn.Flatten(), torch.nn.Dropout(0.2), torch.nn.Linear(filters * 256, emb_size))

        def forward(self, images):
            return self.body((images - 127.5) / 128)

    return Patches()
"""
WINDOWS = """
import torch

def get_module(emb_size, filters):
    class Windows(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.norm = torch.nn.Conv2d(3, filters, 14, 14), torch.nn.LayerNorm(filters)
            self.bias, self.last = torch.nn.Parameter(torch.randn(7, 1) * 0.02), torch.nn.Linear(64 * filters, emb_size)
            places = torch.arange(4)
            self.register_buffer("distance", places[:, None] - places + 3)
            self.register_buffer("mask", torch.where((places[:, None] - places).abs() > 2, -100.0, 0.25))

        def forward(self, images):
            tokens = self.norm(self.patches((images - 127.5) / 128).permute(0, 2, 3, 1)).roll((-2, -2), (1, 2))
            windows = tokens.reshape(-1, 4, tokens.shape[-1])
            products = windows @ windows.transpose(-2, -1) + self.bias[self.distance.view(-1)].view(4, 4) + self.mask
            return self.last((products.softmax(-1) @ windows).reshape(images.shape[0], -1))

    return Windows()
"""
RUN = ["--engine", "torch", "--network", "mine", "--per-batch-size", "4", "--verbose", "4", "--ckpt", "2"]


@pytest.mark.parametrize("text", [MODULE, WINDOWS], ids=["patches", "windows"])
def test_own_module_trains_resumes_verifies_and_is_exported(text: str, train: Callable[..., tuple[int, str, str]],
                                                            tiny_set: Path, tmp_path: Path) -> None:
    """Two steps and two more end with the bits of four. The module with the checkpoint's arrays has the mean norm and
    the accuracy that the run printed (six digits); the ONNX file is written. Tables are among the arrays and have not
    moved."""
    (tmp_path / "my_net.py").write_text(text)
    with open(tmp_path / "config.py", "a") as config:
        config.write("network.mine = edict(net_name='my_net', emb_size=16, filters=8)\n")
    status, out, err = train("own", *RUN, "--max-steps", "4", "--state-every", "0")
    assert status == 0, err
    for steps in ("2", "4"):
        status, _, err = train("resumed", *RUN, "--max-steps", steps, "--state-every", "2", "--resume", "auto")
        assert status == 0, err
    prefix, again = (tmp_path / name / "mine-arcface-tiny" / "model" for name in ("own", "resumed"))
    saved = Path(f"{prefix}-0001.params")
    assert saved.read_bytes() == Path(f"{again}-0002.params").read_bytes()  # 0001: at the end of two steps

    printed = re.search(r"\[tiny\]\[4\]XNorm: ([\d.]+)\n\[tiny\]\[4\]Accuracy-Flip: ([\d.]+)\+", out)
    assert printed is not None, out
    arguments, states = read_params(saved)
    module = run_file(tmp_path / "my_net.py", "my_net").get_module(16, 8).eval()
    module.load_state_dict({name: torch.from_numpy(array) for name, array in {**arguments, **states}.items()}, False)
    for name, table in module.named_buffers():
        if name == "mask":
            assert arguments[name].tobytes() == table.numpy().tobytes()
    pairs = load_bin(tiny_set / "tiny.bin")
    with torch.inference_mode():
        result = verify(lambda images: module(torch.from_numpy(images).float()).numpy(), pairs, 10)
    assert result.xnorm == pytest.approx(float(printed[1]), abs=1e-4)
    assert result.mean == pytest.approx(float(printed[2]), abs=1e-5)

    exported = subprocess.run([sys.executable, "-m", "common.export_onnx", "--model", f"{prefix},1", "--output",
                               str(tmp_path / "own.onnx")], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert exported.returncode == 0 and (tmp_path / "own.onnx").is_file(), exported.stderr
