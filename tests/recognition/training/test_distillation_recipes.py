# SPDX-License-Identifier: Apache-2.0
"""The commands of docs/distillation.md, with the tiny set and network in the places of the large ones."""
from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from common.embed_set import main as embed_set
from recognition.config.cli import parse_args
from recognition.training.run import train
from tests.recognition.training.test_step_recipes import CONFIG, ROOT, SMALL

PAGE = (ROOT / "docs" / "distillation.md").read_text().replace("\\\n", "")
COMMANDS = [line.strip() for line in PAGE.splitlines() if line.startswith("    python ")]
FLAGS = [*SMALL, "--frequent", "1"]


def test_the_commands_of_the_page_train_one_after_the_other(
        engine: str, tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.py").write_text(CONFIG.format(sample=str(ROOT / "sample_config.py"), data=str(tiny_set)))

    def start(entry: str, *flags: str) -> Path:
        root = Path("models", str(len(list(Path("models").glob("*")))))
        config = parse_args(entry, [*flags, "--config", "config.py", "--models-root", str(root), "--engine", engine,
                                    *FLAGS], environ={})
        assert train(config) == 0
        return Path(config.output_dir)

    teacher = start("train_parall", "--seed", "5", "--state-every", "2")
    places = {"models/teacher/model,1": f"{teacher}/model,1", "datasets/faces_emore": str(tiny_set),
              "models/teacher/state/step-000160000": str(teacher / "state" / "step-000000002")}
    assert len(COMMANDS) == 4
    for command in COMMANDS:
        words = [places.get(word, word) for word in shlex.split(command)]
        if words[1] == "-m":
            assert words[2] == "common.embed_set"
            assert embed_set([*words[3:], "--engine", engine, "--devices", "cpu"]) == 0
            continue
        for entry in (words[1].removesuffix(".py"), "train"):
            folder = start(entry, *words[2:])
            records = map(json.loads, (folder / "history.jsonl").read_text().splitlines())
            trained = [record for record in records if record["kind"] == "train"]
            assert trained and ("teacher_distance" in trained[0]) == ("--teacher" in words)
