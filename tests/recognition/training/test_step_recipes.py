# SPDX-License-Identifier: Apache-2.0
"""The commands of docs/steps.md and docs/margins.md, with the tiny set and network in the places of the large ones."""
from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from recognition.config.cli import parse_args
from recognition.training.run import train

ROOT = Path(__file__).resolve().parents[3]
CONFIG = """
exec(compile(open({sample!r}).read(), {sample!r}, "exec"))
network.tiny = edict(net_name="fmobilefacenet", emb_size=8, net_output="E", net_multiplier=0.25)
network.tiny.net_blocks = [1, 1, 1, 1]
dataset.tiny = edict(dataset_path={data!r}, num_classes=11, image_shape=(112, 112, 3), val_targets=["tiny"])
"""
COMMANDS = [line.strip().partition("  #")[0] for name in ("steps.md", "margins.md")
            for line in (ROOT / "docs" / name).read_text().splitlines() if line.startswith("    python ")]
SMALL = ["--network", "tiny", "--dataset", "tiny", "--per-batch-size", "4", "--max-steps", "2", "--lr", "0.01"]


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 1


@pytest.mark.parametrize("engine", ["mxnet", pytest.param("torch", marks=pytest.mark.slow)], indirect=True)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_trains(engine: str, command: str, tiny_set: Path, tmp_path: Path,
                          request: pytest.FixtureRequest) -> None:
    """One of several processes as it stands, the others in this process."""
    if "recognition.launch" in command and engine == "mxnet":
        request.getfixturevalue("horovod")
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(sample=str(ROOT / "sample_config.py"), data=str(tiny_set)))
    words = shlex.split(command)
    place = next(place for place, word in enumerate(words) if word.startswith("train"))
    flags = [*words[place + 1 :], "--config", str(config), "--models-root", str(tmp_path / "models"),
             "--engine", engine, *SMALL]
    if place > 1:
        launcher = [sys.executable if word == "python" else word for word in words[:place]]
        subprocess.run([*launcher, str(ROOT / words[place]), *flags], check=True, timeout=120, cwd=ROOT,
                       env={**os.environ, "OMP_NUM_THREADS": "1"})
    else:
        assert train(parse_args(words[place].removesuffix(".py"), flags, environ={})) == 0
    (folder,) = (tmp_path / "models").iterdir()
    history = map(json.loads, (folder / "history.jsonl").read_text().splitlines())
    assert any(record["kind"] == "verification" and record["step"] == 2 for record in history)
