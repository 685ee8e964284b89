# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/coming_from.md: each command runs with a tiny set, each flag and key is taken by the parser."""
from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from recognition.config.cli import parse_args
from recognition.config.options import OPTIONS, check
from recognition.training.run import train
from tests.common.test_inputs_kept import make_checkpoints, make_images, make_sets

ROOT = Path(__file__).resolve().parents[2]
LAUNCHERS = ("torchrun", "horovodrun", "bash")
TRAINERS = ("train.py", "train_parall.py")
# All presets are tiny, and their data sets that of the test.
CONFIG = """
exec(compile(open({sample!r}).read(), {sample!r}, "exec"))
for name in network:
    network[name] = edict(net_name="fmobilefacenet", emb_size=8, net_output="E", net_multiplier=0.25,
                          net_blocks=[1, 1, 1, 1])
for name in dataset:
    dataset[name] = edict(dataset_path={data!r}, num_classes=6, image_shape=(112, 112, 3), val_targets=["lfw"])
loss.triplet.update(per_batch_size=6, triplet_bag_size=24, images_per_identity=4)
"""
OF_ARCFACE_TORCH = """
from easydict import EasyDict as edict
config = edict()
config.margin_list, config.network, config.resume, config.output = (1.0, 0.5, 0.0), "mbf", False, None
config.embedding_size, config.sample_rate, config.fp16, config.batch_size = 512, 1.0, False, 4
config.rec, config.num_classes, config.num_image, config.num_epoch, config.warmup_epoch = {data!r}, 6, 24, 20, 0
config.val_targets = ["lfw"]
"""
SMALL = ["--max-steps", "2", "--per-batch-size", "6"]


def spans() -> Iterator[str]:
    """What stands between backticks in the second cell of each row."""
    for line in (ROOT / "docs" / "coming_from.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| ") and not line.startswith(("| there", "| ---")):
            _, _, here, _, _ = re.split(r"(?<!\\)\|", line)
            found = re.findall(r"`([^`]+)`", here)
            assert re.sub(r"`[^`]+`", "", here).strip() == "", here
            yield from found


def is_command(span: str) -> bool:
    return span.split()[0] in ("python", *LAUNCHERS)


SPANS = list(dict.fromkeys(spans()))
COMMANDS = [span for span in SPANS if is_command(span)]
TRAININGS = [span for span in COMMANDS if re.match(rf"python (-u )?({'|'.join(TRAINERS)}) ", span)]
LAUNCHED = [span for span in COMMANDS if "recognition.launch" in span or span.split()[0] in LAUNCHERS]
TOOLS = [span for span in COMMANDS if span not in (*TRAININGS, *LAUNCHED)]
FLAGS = [span for span in SPANS if span.startswith("--")]
KEYS = [span for span in SPANS if span not in (*COMMANDS, *FLAGS)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, small_model: Path, yunet: Path) -> Path:
    """A folder with all that the commands read, under the names that they have in the page."""
    folder = tmp_path_factory.mktemp("coming")
    random = np.random.default_rng(0)
    for make in (make_sets, make_images, make_checkpoints):
        make(folder, random)
    for old, new in (("a", "datasets/faces_emore"), ("b", "datasets/other"), ("ijb", "IJBC"), ("features", "plain"),
                     ("model", "models/r50-arcface-emore")):
        (folder / new).parent.mkdir(exist_ok=True)
        (folder / old).rename(folder / new)
    for path in sorted((folder / "IJBC" / "meta").iterdir()):
        path.rename(path.with_name(path.name.replace("ijbx", "ijbc")))
    shutil.copytree(folder / "faces", folder / "photographs")
    shutil.copytree(small_model.parent, folder / "models" / "small")
    for name in ("facescrub", "megaface"):
        shutil.copytree(folder / "faces", folder / "data" / f"{name}_images")
        for path in (folder / "plain").rglob("*.bin"):
            place = folder / "features" / name / path.parent.name / f"{path.stem}_r100.bin"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    shutil.copy(yunet, folder / "yunet.onnx")
    (folder / "faces" / "pairs_label.txt").write_text("marked.png marked.png 1\np0/0.png p0/1.png 1\n")
    marked = np.full((160, 120, 3), 90, np.uint8)
    marked[0:8, 0:8] = 0, 0, 255  # BGR: what the fixture's detector finds a face below
    cv2.imwrite(str(folder / "faces" / "marked.png"), marked)
    cv2.imwrite(str(folder / "face.jpg"), np.full((112, 112, 3), 120, np.uint8))
    data = str(folder / "datasets" / "faces_emore")
    (folder / "config.py").write_text(CONFIG.format(sample=str(ROOT / "sample_config.py"), data=data))
    (folder / "configs").mkdir()
    (folder / "configs" / "ms1mv3_r50.py").write_text(OF_ARCFACE_TORCH.format(data=data))
    trained(folder, "train", "--network", "y1", "--loss", "softmax", "--dataset", "emore", "--config", "config.py")
    trained(folder, "train_parall", "--config", "configs/ms1mv3_r50.py")
    (run,) = (folder / "work_dirs" / "ms1mv3_r50").iterdir()
    shutil.move(run, folder / "models" / "r50-theirs")
    shutil.rmtree(folder / "work_dirs")
    convert = importlib.import_module("common.convert_torch").main
    assert convert([f"{folder}/models/r50-theirs/model,1", f"{folder}/backbone.pth", "--overwrite"]) == 0
    return folder


def trained(folder: Path, entry: str, *flags: str) -> None:
    """Run a small training in ``folder``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train(parse_args(entry, [*flags, *SMALL, "--lr", "0.01", "--engine", "mxnet"], environ={})) == 0


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, of links, in which the test is."""
    place = tmp_path / "here"
    shutil.copytree(made, place, copy_function=os.link)
    monkeypatch.chdir(place)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return place


def small(command: str, place: Path) -> list[str]:
    """The flags that make a training small; the paths are whole, as scripts go to another folder."""
    config = [] if "--config" in command else ["--config", str(place / "config.py")]
    root = [] if "--models-root" in command else ["--models-root", str(place / "models")]
    return [*config, *root, *SMALL, *([] if "--lr " in command else ["--lr", "0.01"])]


def fewer(command: str) -> str:
    """The command with two processes in the place of eight, and small batches."""
    command = command.replace("--batch-size 128", "--batch-size 6")
    return re.sub(r"(nproc_per_node=|localhost:|-np |--ranks )8", r"\g<1>2", command)


def test_the_page_has_rows_of_each_kind() -> None:
    assert min(map(len, (TRAININGS, LAUNCHED, TOOLS, FLAGS, KEYS))) > 4


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_is_taken(flag: str, here: Path) -> None:
    parse_args("train_parall", [*shlex.split(flag), "--config", "config.py"], environ={})


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_taken(key: str) -> None:
    name, _, value = key.partition(" = ")
    assert name in OPTIONS
    check(name, ast.literal_eval(value), name)


@pytest.mark.parametrize("command", [TRAININGS[0], *(pytest.param(c, marks=pytest.mark.slow) for c in TRAININGS[1:])])
def test_a_training_runs(command: str, engine: str, here: Path) -> None:
    words = [word for word in shlex.split(command)[1:] if word != "-u"]
    flags = [*words[1:], *small(command, here), "--engine", engine]
    before = set(here.rglob("training.log"))
    assert train(parse_args(words[0].removesuffix(".py"), flags, environ={})) == 0
    assert len(set(here.rglob("training.log")) - before) == 1


@pytest.mark.parametrize("command", TOOLS)
def test_a_command_runs(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if ".onnx" in command:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnx")
        assert importlib.import_module("common.export_onnx").main(
            ["--model", "models/small/model,1", "--output", "small.onnx"]) == 0
    words = [word for word in shlex.split(fewer(command))[1:] if word != "-m"]
    module = "common.drop" if words[0] == "drop.py" else words[0].removesuffix(".py").replace("/", ".")
    assert importlib.import_module(module).main(words[1:]) == 0, capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("command", LAUNCHED)
def test_processes_run(command: str, here: Path, request: pytest.FixtureRequest) -> None:
    """What is added is one word, as horovodrun would take flags for its own."""
    if "torchrun" in command:
        pytest.importorskip("torch")
    elif "run_eval" not in command:
        request.getfixturevalue("horovod")
    words = shlex.split(fewer(command))
    places = {"python": sys.executable, "train_parall.py": str(ROOT / "train_parall.py"),
              **{name: str(Path(sys.executable).with_name(name)) for name in ("torchrun", "horovodrun")}}
    words = [places.get(word, str(ROOT / word) if word.startswith("scripts/") else word) for word in words]
    if "run_eval" not in command:
        engine = [] if "--engine" in command else ["--engine", "mxnet"]
        words.append(shlex.join([*small(command, here), *engine]))
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
