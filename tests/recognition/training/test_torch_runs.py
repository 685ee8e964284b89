# SPDX-License-Identifier: Apache-2.0
"""Runs of the loop with PyTorch: without MXNet, resumed, taken over from MXNet and given back to it."""
from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import wait
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from recognition.config.options import Config
from recognition.data.loader import BatchLoader
from recognition.training.run import train
from recognition.training.states.folder import saved_states
from recognition.training.states.state import SavedState

pytest.importorskip("torch")
from recognition.engines.torch.graphs.uploads import Uploads
from tests.recognition.engines.torch import fake_graphs

ROOT = Path(__file__).resolve().parents[3]
with_mxnet = pytest.mark.skipif(importlib.util.find_spec("mxnet") is None, reason="mxnet is not installed")
Make = Callable[..., Config]
ALONE = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", *sorted({"mxnet", "horovod", "torch"} & sys.modules.keys()))
"""


@pytest.fixture
def small(make: Make) -> Make:
    """``small(key=value)``: a run of a tiny network with batch norm and PReLU, by PyTorch unless asked otherwise; with
    ``net_output="E"`` it has dropout, whose masks each engine draws by itself."""
    return lambda **options: make(**{
        "net_name": "fmobilefacenet", "network": "tiny", "net_output": "GDC", "net_multiplier": 0.25, "emb_size": 8,
        "net_blocks": [1, 1, 1, 1], "engine": "torch", "loss_m2": 0.1, **options})


def losses(config: Config) -> list[float]:
    lines = (Path(config.output_dir) / "history.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if record["kind"] == "train"]


def arrays(config: Config) -> dict[str, np.ndarray]:
    """All arrays of the last state."""
    saved = SavedState(saved_states(Path(config.output_dir) / "state")[-1])
    backbone = saved.backbone()
    groups: dict[str, Any] = {"w": backbone.parameters, "m": backbone.momentum, "s": backbone.auxiliary[0],
                              "W": saved.rows(0, 11, 1)._asdict()}
    return {f"{kind} {name}": array for kind, group in groups.items() for name, array in group.items()}


def test_a_run_loads_no_mxnet_and_verifies_and_saves(tiny_set: Path, tmp_path: Path) -> None:
    """A fresh interpreter; verification in the loop, a checkpoint, a state."""
    config = tmp_path / "config.py"
    config.write_text(f"""
exec(compile(open({str(ROOT / "sample_config.py")!r}).read(), "sample_config.py", "exec"))
network.tiny = edict(net_name="fmobilefacenet", emb_size=8, net_output="E", net_multiplier=0.25)
network.tiny.net_blocks = [1, 1, 1, 1]
dataset.tiny = edict(dataset_path={str(tiny_set)!r}, num_classes=11, image_shape=(112, 112, 3), val_targets=["tiny"])
""")
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(ROOT / "train_parall.py"), "--config", str(config), "--network", "tiny",
         "--dataset", "tiny", "--engine", "torch", "--max-steps", "2", "--per-batch-size", "12", "--lr", "0.01",
         "--models-root", str(tmp_path)], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded: torch"
    assert "[2]Accuracy-Highest: " in done.stdout
    (folder,) = tmp_path.glob("tiny-*-tiny")
    assert (folder / "model-0000.params").exists() and saved_states(folder / "state")


@pytest.mark.parametrize("more", [{"memonger": True}, {"devices": "cpu:2", "per_batch_size": 6, "optimizer": "adamw",
                                                          "net_output": "E"}],
                         ids=["memonger", "adamw on two devices"])
def test_a_run_goes_on_to_the_same_bits(small: Make, more: dict[str, Any]) -> None:
    config = small(state_every=2, max_steps=4, **more)
    assert train(config) == 0
    whole = arrays(config)
    shutil.rmtree(saved_states(Path(config.output_dir) / "state")[-1])
    assert train(small(state_every=2, max_steps=4, resume="yes", **more)) == 0
    again = arrays(config)
    assert [name for name in whole if whole[name].tobytes() != again[name].tobytes()] == []


def test_a_run_whose_images_are_copied_beside_its_steps_has_the_bits_of_any(small: Make,
                                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for CUDA, and a loader whose next batch is always decoded when it is asked."""
    plain, ahead = (small(state_every=3, extra_model_name=name) for name in ("plain", "ahead"))
    assert train(plain) == 0
    fake_graphs.install(monkeypatch)
    begin, coming, begun = Uploads.begin, BatchLoader.coming, list[np.ndarray]()
    monkeypatch.setattr(Uploads, "begin", lambda uploads, images: begun.append(images) or begin(uploads, images))
    monkeypatch.setattr(BatchLoader, "coming", lambda loader: wait(loader._pending[0][1]) and coming(loader))
    assert train(ahead) == 0
    assert len(begun) == 1 + 3
    found, wanted = arrays(ahead), arrays(plain)
    assert [name for name in wanted if wanted[name].tobytes() != found[name].tobytes()] == []


@with_mxnet
@pytest.mark.parametrize("engines", [("mxnet", "torch"), ("torch", "mxnet")], ids=" to ".join)
def test_a_run_of_one_engine_goes_on_in_the_other(small: Make, engines: tuple[str, str],
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    """Two steps, and two in the other engine, against four in the first. Tolerance 5e-3 of the loss and 1e-1 of an
    array's norm: sums of float32 in another order, and PReLUs, whose slopes jump where rounding carries an input over
    zero. With one thread and with two the distances were 1e-6 to 4e-4, and up to 3e-2. A moment or a statistic that
    stays behind is off by its own norm. And 1e-4 a number for what rounding alone moves, in front of a batch norm."""
    first, other = engines
    options = {"state_every": 2, "max_steps": 4, "ckpt": 2, "frequent": 1}
    whole = small(engine=first, extra_model_name="whole", **options)
    assert train(whole) == 0
    assert train(small(engine=first, **{**options, "max_steps": 2})) == 0
    begun = small(engine=other, resume="yes", **options)
    assert train(begun) == 0
    assert f"engine {first} -> {other}" in capsys.readouterr().out
    assert len(losses(begun)) == len(losses(whole)) >= 3
    assert losses(begun) == pytest.approx(losses(whole), rel=5e-3)
    found, wanted = arrays(begun), arrays(whole)
    assert {name: (a.dtype, a.shape) for name, a in found.items()} == {
        name: (a.dtype, a.shape) for name, a in wanted.items()}
    for name, array in wanted.items():
        apart = np.linalg.norm(found[name] - array)
        assert apart <= 1e-1 * np.linalg.norm(array) + 1e-4 * array.size ** 0.5, name
    symbols = [Path(f"{config.prefix}-symbol.json").read_bytes() for config in (begun, whole)]
    assert symbols[0] == symbols[1]


@with_mxnet
@pytest.mark.slow
def test_a_run_begun_in_mxnet_is_killed_goes_on_in_torch_is_killed_and_ends_in_mxnet(tiny_set: Path, tmp_path: Path
                                                                                     ) -> None:
    """The commands, with SIGKILL at any moment behind a state, against a run of MXNet that nothing disturbs. Losses of
    batches lie between 3 and 11. PReLU's kinks and the scale amplify float32's differences: to 0.1 in eight steps at a
    rate of 1e-3, so the rate is 1e-4; tolerance 2e-2."""
    config = tmp_path / "config.py"
    config.write_text(f"""
exec(compile(open({str(ROOT / "sample_config.py")!r}).read(), "sample_config.py", "exec"))
network.tiny = edict(net_name="fmobilefacenet", emb_size=8, net_output="GDC", net_multiplier=0.25)
network.tiny.net_blocks = [1, 1, 1, 1]
loss.tiny = edict(loss_name="margin_softmax", loss_s=16.0, loss_m1=1.0, loss_m2=0.1, loss_m3=0.0)
dataset.tiny = edict(dataset_path={str(tiny_set)!r}, num_classes=11, image_shape=(112, 112, 3), val_targets=[])
""")

    def start(name: str, engine: str, steps: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "train_parall.py"), "--config", str(config), "--network", "tiny", "--loss",
             "tiny", "--dataset", "tiny", "--engine", engine, "--max-steps", str(steps), "--per-batch-size", "12",
             "--lr", "0.0001", "--state-every", "1", "--frequent", "1", "--verbose", "1000", "--resume", "auto",
             "--models-root", str(tmp_path / name)],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True)

    def killed_behind(step: int, engine: str) -> str:
        process = start("killed", engine, 1000)
        while process.poll() is None and not any(
                path.name[5:].isdecimal() and int(path.name[5:]) >= step
                for path in tmp_path.glob("killed/*/state/step-*")):
            time.sleep(0.01)
        process.kill()
        return process.communicate(timeout=300)[0]

    said = [killed_behind(2, "mxnet"), killed_behind(5, "torch")]
    (below,) = (tmp_path / "killed").iterdir()
    assert saved_states(below / "state"), said
    last = int(saved_states(below / "state")[-1].name[5:]) + 3
    for name in ("killed", "whole"):
        process = start(name, "mxnet", last)
        said.append(process.communicate(timeout=300)[0])
        assert process.returncode == 0, said[-1]
    assert "engine mxnet -> torch" in said[1] and "engine torch -> mxnet" in said[2], said
    found, wanted = (history(tmp_path / name) for name in ("killed", "whole"))
    assert found.keys() == wanted.keys() and len(wanted) >= 5  # a line but for the first step of an epoch
    assert [found[step] for step in sorted(found)] == pytest.approx([wanted[step] for step in sorted(found)], rel=2e-2)


def history(models: Path) -> dict[int, float]:
    """The losses of a run by step."""
    (file,) = models.glob("*/history.jsonl")
    return {record["step"]: record["loss"] for record in map(json.loads, file.read_text().splitlines())
            if record["kind"] == "train"}


@with_mxnet
def test_fine_tuning_from_a_checkpoint_of_mxnet(small: Make) -> None:
    """Some layers frozen, one with a rate of its own. Tolerance 2e-4: the loss after a step in float32."""
    source = small(engine="mxnet", ckpt=2, max_steps=2)
    assert train(source) == 0
    found = []
    for engine in ("mxnet", "torch"):
        tuned = small(engine=engine, pretrained=source.prefix, pretrained_epoch=0, max_steps=2, frequent=1, ckpt=0,
                      extra_model_name=engine, freeze=["conv_1*"], lr_factor=[("pre_fc1*", 10)], loss_s=8.0)
        assert train(tuned) == 0
        found.append(losses(tuned))
    assert found[0] and found[1] == pytest.approx(found[0], rel=2e-4)
