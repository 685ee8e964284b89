# SPDX-License-Identifier: Apache-2.0
"""Every command leaves its inputs as they are, and what it did not make: also where links lie in its way.

The commands are those of the files that Python runs as such: one without a case here fails a test.
"""
from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from common.evaluation.megaface_files import encode_feature
from common.faces.alignment import ARCFACE
from common.faces.landmark_files import write_landmarks
from common.sets.training_set import write_training_set
from recognition.config.options import Config
from recognition.data.verification_set import save_bin
from recognition.io.torch_file import write_tensors
from recognition.networks import sym
from recognition.networks.families import fresnet
from recognition.networks.shapes import infer_shapes
from recognition.networks.torch_weights.iresnet import pairs
from recognition.training.checkpoints.checkpoint import save_checkpoint
from recognition.training.run import train

ROOT = Path(__file__).resolve().parents[2]
DOORS = {"recognition/plan/__main__.py": "recognition.plan.command"}  # files that run the main of another
# What follows the command; a folder "new" is one that must be new, all else may be replaced with --overwrite.
CASES = [(path, words) for path, lines in {
    "common/build_eval_pack.py": "--data-dir IN/faces --pairs IN/pairs.txt --output OUT/pack.bin "
                                 "--landmarks IN/landmarks.txt",
    "common/convert_centres.py": "IN/model/model-0001.params OUT/whole.params\n"
                                 "IN/model/model-0001.params OUT/new --shards 2 --sub-centres 3",
    "common/convert_torch.py": "IN/backbone.pth OUT/r18/model,2\nIN/r18/model,1 OUT/backbone.pth",
    "common/data_stats.py": "IN/a --output OUT/stats\nIN/linked --output OUT/stats",
    "common/doctor.py": "IN/a --output OUT/doctor\nIN/linked --output OUT/doctor",
    "common/drop.py": "--data IN/a --model IN/model/model,1 --output OUT/new --threshold 179",
    "common/export_onnx.py": "--model IN/small/model,1 --output OUT/model.onnx --json OUT/report.json "
                             "--check-images IN/faces",
    "common/face_align.py": "IN/faces OUT/new --landmarks IN/landmarks.txt",
    "common/flops_counter.py": "--model IN/model/model,1 --no-latency --json OUT/flops.json",
    "common/gen_megaface.py": "--model IN/model/model,1 --facescrub-root IN/faces --megaface-root IN/faces "
                              "--output OUT/new",
    "common/groups.py": "--model IN/model/model,1 --list IN/groups.txt --output OUT/groups",
    "common/ijb.py": "--model IN/model/model,1 --data IN/ijb --output OUT/ijb",
    "common/ijb_11.py": "--model-prefix IN/model/model --image-path IN/ijb --target IJBX --result-dir OUT/there",
    "common/ijb_onnx.py": "--model-file IN/small.onnx --image-path IN/ijb --target IJBX --result-dir OUT/there",
    "common/embed_set.py": "--data IN/a --model IN/model/model,1 --output OUT/new",
    "common/inference.py": "--model IN/model/model,1 --images IN/faces --output OUT/faces.npz --json OUT/faces.json\n"
                           "--model IN/model/model,1 --gallery IN/faces --probes IN/faces --json OUT/found.json",
    "common/megaface.py": "--probes IN/features --distractors IN/features --output OUT/megaface",
    "common/merge_sets.py": "IN/a IN/b IN/linked --output OUT/new\n"
                            "IN/a IN/b --output OUT/new --model IN/model/model,1 --exclude lfw "
                            "--image-limit 1.1 --identity-limit 1.1",
    "common/model_slim.py": "--model IN/model/model,1 --output OUT/slim/model,1",
    "common/pack_folder.py": "IN/faces OUT/new --held-out 3 --folds 2",
    "common/plot_run.py": "IN/run --output OUT/run.png\nIN/run --output OUT/run.svg",
    "common/quantize_onnx.py": "--model IN/small.onnx --calibrate IN/faces --images 4 --verify IN/a/lfw.bin "
                               "--output OUT/int8.onnx --json OUT/report.json",
    "common/rec2image.py": "--include IN/a --output OUT/new\n--include IN/a/lfw.bin --output OUT/new",
    "common/rec2shufrec.py": "IN/linked OUT/new",
    "common/rec_builder.py": "IN/a OUT/new --form sequential\nIN/faces OUT/new",
    "common/report.py": "IN/run --output OUT/report.html",
    "common/split_set.py": "IN/a --output OUT/new --held-out 3 --folds 2\nIN/linked --output OUT/new --parts 2",
    "common/unpack_parts.py": "IN/faces.tar --output OUT/new --sums IN/SUMS",
    "common/verification.py": "--model IN/model/model,1 --data IN/a --output OUT/verification",
    "datasets/demo.py": "--output OUT/new --identities 2 --held-out 2 --images 3 --folds 2 --pairs-per-fold 2",
    "recognition/plan/__main__.py": f"--config {ROOT}/sample_config.py --network demo --classes 9 --json OUT/plan.json",
}.items() for words in lines.split("\n")]
OTHERS = {
    "common/find_landmarks.py": "test_find_landmarks.py: it writes beside its input",
    "common/gather_states.py": "test_gather_states.py: its inputs are states of several hosts",
    "drop.py": "runs the main of common/drop.py",
    "train.py": "below", "train_parall.py": "below: both run recognition.training.run",
    "recognition/launch/__main__.py": "runs train_parall.py on hosts",
    "scripts/audit.py": "of this repository", "scripts/environment.py": "of this repository",
    "scripts/lock.py": "of this repository", "scripts/serve.py": "it writes no file",
}


def picture(random: np.random.Generator, suffix: str = ".jpg") -> bytes:
    image = cv2.resize(random.integers(0, 256, (5, 5, 3)).astype(np.uint8), (112, 112))
    return bytes(cv2.imencode(suffix, image)[1])


def make_sets(folder: Path, random: np.random.Generator) -> None:
    """``a`` and ``b``, with a .bin of one name and other content, and one of equal bytes; and ``linked``: links to the
    files of ``a``, as one makes a set that shares them."""
    shared = [picture(random) for _ in range(40)]
    for name in "ab":
        (folder / name).mkdir()
        write_training_set(folder / name, [4] * 6, [picture(random) for _ in range(24)])
        (folder / name / "identities.txt").write_text("".join(f"{name}{i}\n" for i in range(6)))
        save_bin(folder / name / "lfw.bin", [picture(random) for _ in range(40)], [i % 2 == 0 for i in range(20)])
        save_bin(folder / name / "same.bin", shared, [i % 2 == 0 for i in range(20)])
    (folder / "linked").mkdir()
    for path in (folder / "a").iterdir():
        (folder / "linked" / path.name).symlink_to(path)


def make_images(folder: Path, random: np.random.Generator) -> None:
    """A folder of people, with lists of pairs, groups and landmarks, packed as well; the same as a small IJB."""
    names = [f"p{person}/{i}.png" for person in range(6) for i in range(3)]
    for name in names:
        (folder / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "faces" / name).write_bytes(picture(random, ".png"))
    write_landmarks(folder / "landmarks.txt", names, [ARCFACE] * len(names))
    (folder / "pairs.txt").write_text("".join(f"{a} {b} {int(a[1] == b[1])}\n" for a, b in zip(names, names[1:])))
    (folder / "groups.txt").write_text("".join(f"faces/{name} {name[:2]} {'xy'[i % 6 > 2]}\n"
                                               for i, name in enumerate(names)))
    with tarfile.open(folder / "faces.tar", "w") as archive:
        archive.add(folder / "faces", "faces")
    digest = hashlib.sha256((folder / "faces.tar").read_bytes()).hexdigest()
    (folder / "SUMS").write_text(f"{digest}  faces.tar\n")
    shutil.copytree(folder / "faces", folder / "ijb" / "loose_crop")
    (folder / "ijb" / "meta").mkdir()
    points = " ".join(map(str, ARCFACE.ravel()))
    for ending, lines in (("name_5pts_score", [f"{name} {points} 0.9" for name in names]),
                          ("face_tid_mid", [f"{name} {i} {i}" for i, name in enumerate(names)]),
                          ("template_pair_label", ["0 1 1", "0 3 0", "3 4 1", "1 5 0"])):
        (folder / "ijb" / "meta" / f"ijbx_{ending}.txt").write_text("".join(f"{line}\n" for line in lines))
    for name in names:
        (folder / "features" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "features" / f"{name}.bin").write_bytes(encode_feature(random.standard_normal(8)))


def make_checkpoints(folder: Path, random: np.random.Generator) -> None:
    """A network of mean colours with three sub-centres a class; an iresnet18 and the checkpoint that it becomes."""
    pooled = sym.Pooling(sym.Variable("data") - 127.5, global_pool=True, pool_type="avg", kernel=(1, 1))
    symbol = sym.FullyConnected(sym.Flatten(pooled), num_hidden=3, name="fc1").graph()
    weights = {"fc1_weight": np.eye(3, dtype=np.float32), "fc1_bias": np.zeros(3, np.float32)}
    save_checkpoint(folder / "model" / "model", 1, symbol, {
        **weights, "fc7_weight": random.standard_normal((18, 3)).astype(np.float32)}, {})
    shapes = infer_shapes(fresnet.get_symbol(num_layers=18, emb_size=4), (3, 112, 112))
    sizes = {**shapes.arguments, **shapes.auxiliary}
    write_tensors(folder / "backbone.pth", {
        theirs: np.ones(sizes[ours], np.float32) for theirs, ours in pairs((2, 2, 2, 2))})
    assert importlib.import_module("common.convert_torch").main(
        [str(folder / "backbone.pth"), f"{folder}/r18/model,1"]) == 0


def make_run(folder: Path) -> None:
    """What a run leaves for its pictures."""
    (folder / "run").mkdir()
    lines = [{"kind": "train", "step": step, "loss": 20 / step, "lr": 0.1} for step in range(20, 99, 20)]
    lines += [{"kind": "verification", "step": 90, "target": "demo", "accuracy": 0.8, "std": 0.01, "auc": 0.9}]
    (folder / "run" / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rates = np.linspace(0, 1, 50)
    np.savez(folder / "run" / "roc-demo.npz", fpr=rates, tpr=rates ** 0.1)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Iterator[Path]:
    """A folder of all that the commands read, none of which may be written. ``apart`` is the input of none."""
    folder = tmp_path_factory.mktemp("inputs")
    random = np.random.default_rng(0)
    make_sets(folder, random)
    make_images(folder, random)
    make_checkpoints(folder, random)
    make_run(folder)
    shutil.copytree(small_model.parent, folder / "small")
    if importlib.util.find_spec("onnx"):
        importlib.import_module("common.export_onnx").main(
            ["--model", f"{small_model},1", "--output", str(folder / "small.onnx")])
    (folder / "apart").mkdir()
    (folder / "apart" / "file").write_text("of somebody else\n")
    paths = [path for path in (folder, *folder.rglob("*")) if not path.is_symlink()]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield folder
    for path in paths:
        path.chmod(0o755)


def state(folder: Path) -> dict[str, Any]:
    """All that is below a folder: bytes as their sum, file, times, rights; root may write whatever they say."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        sums = (os.readlink(path) if path.is_symlink() else
                hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "")
        found[str(path.relative_to(folder))] = (sums, about.st_ino, about.st_mtime_ns, about.st_mode)
    return found


def run(path: str, words: str, inputs: Path, out: Path, *flags: str) -> int:
    module = importlib.import_module(DOORS.get(path, path.removesuffix(".py").replace("/", ".")))
    filled = [word.replace("IN/", f"{inputs}/").replace("OUT/", f"{out}/") for word in words.split()]
    return module.main([*filled, *flags])


def plant(path: Path, apart: Path, hard: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if hard:
        os.link(apart, path)
    else:
        path.symlink_to(apart)


def test_every_command_has_a_case() -> None:
    files = [path for place in ("common", "datasets", "recognition", "scripts")
             for path in (ROOT / place).rglob("*.py")] + list(ROOT.glob("*.py"))
    commands = {str(path.relative_to(ROOT)) for path in files
                if path.name == "__main__.py" or "if __name__ ==" in path.read_text(encoding="utf-8")}
    assert commands == {path for path, _ in CASES} | OTHERS.keys()


@pytest.mark.parametrize("path, words", CASES, ids=[f"{path[:-3]} {words[:40]}" for path, words in CASES])
def test_what_a_command_reads_and_what_lies_in_its_way_stays(
        path: str, words: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    """First all is new. Then links to a file of somebody else have the names of all outputs: the command refuses. Then
    they have those of the temporary files, too, and it may overwrite: the links go, what they lead to stays."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # the demo set is drawn in this process
    before, apart = state(inputs), inputs / "apart" / "file"
    status = run(path, words, inputs, tmp_path / "first")
    assert status in (0, 1), capsys.readouterr().err
    assert state(inputs) == before
    made = [file.relative_to(tmp_path / "first") for file in sorted((tmp_path / "first").rglob("*")) if file.is_file()]
    assert made and not [name for name in made if name.name.startswith(".")]
    beside = [name for name in made if name.parts[0] != "new"]

    second = tmp_path / "second"
    for number, name in enumerate(beside):
        plant(second / name, apart, number % 2 == 1)
    if beside != made:
        second.mkdir(exist_ok=True)
        (second / "new").symlink_to(apart.parent)
    planted = state(second)
    capsys.readouterr()
    assert run(path, words, inputs, second) == 2
    said = capsys.readouterr().err.splitlines()
    assert "exists already, expected a new" in said[-1] and said[-1].startswith("error: ")
    assert state(second) == planted and state(inputs) == before

    if beside != made:
        (second / "new").unlink()
    if beside:
        for name in beside:
            for kind in (".{}.writing", "{}.tmp"):
                plant(second / name.with_name(kind.format(name.name)), apart, False)
        assert run(path, words, inputs, second, "--overwrite") == status, capsys.readouterr().err
        for name in beside:
            assert not (second / name).is_symlink() and not (second / name).samefile(apart)
    else:
        (second / ".new.writing").symlink_to(apart.parent)
        assert run(path, words, inputs, second) == 2 and not (second / "new").exists()
    assert state(inputs) == before


@pytest.mark.parametrize("words, output", [
    ("common/face_align.py IN/faces DIR/aligned --landmarks DIR/aligned.txt", "aligned.txt"),
    ("common/inference.py --model IN/model/model,1 --gallery DIR/g.npz --probes IN/faces --json DIR/g.npz", "g.npz"),
    ("common/inference.py --model IN/model/model,1 --images DIR/p0 --json DIR/p0/0.png --output DIR/g", "p0/0.png"),
    ("common/export_onnx.py --model DIR/model/model,1 --output DIR/model/model-symbol.json", "model/model-symbol.json"),
    ("common/convert_centres.py DIR/model/model-0001.params DIR/hard.params", "hard.params"),
    ("common/build_eval_pack.py --data-dir DIR --pairs DIR/pack.json --output DIR/pack.bin", "pack.json"),
    ("common/groups.py --model IN/model/model,1 --list DIR/results.json --output DIR", "results.json"),
    ("recognition/plan/__main__.py --config DIR/config.py --json DIR/config.py", "config.py"),
])
def test_an_output_that_is_an_input(words: str, output: str, inputs: Path, tmp_path: Path,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused by any name that it has, --overwrite or not, before anything is written."""
    place = tmp_path / "place"
    for name in ("model", "p0"):
        shutil.copytree(inputs / ("model" if name == "model" else "faces/p0"), place / name)
    shutil.copy(inputs / "landmarks.txt", place / "aligned.txt")
    shutil.copy(inputs / "pairs.txt", place / "pack.json")
    shutil.copy(inputs / "groups.txt", place / "results.json")
    shutil.copy(ROOT / "sample_config.py", place / "config.py")
    np.savez(place / "g.npz", embeddings=np.eye(3, dtype=np.float32), paths=np.array(list("abc")), flip=True,
             model=str(inputs / "model" / "model-0001.params"))
    os.link(place / "model" / "model-0001.params", place / "hard.params")
    before = state(place)
    path, _, rest = words.replace("--output DIR/g", "").replace("DIR", str(place)).partition(" ")
    for flags in ([], ["--overwrite"]):
        assert run(path, rest, inputs, tmp_path, *flags) == 2
        said = capsys.readouterr().err
        assert str(place / output) in said and ("input" in said or not flags)
        assert state(place) == before


@pytest.mark.parametrize("folder, words", [
    ("stats", "common/data_stats.py IN/a --output OUT/stats"),
    ("doctor", "common/doctor.py IN/a --output OUT/doctor"),
    ("groups", "common/groups.py --model IN/model/model,1 --list IN/groups.txt --output OUT/groups"),
    ("ijb", "common/ijb.py --model IN/model/model,1 --data IN/ijb --output OUT/ijb"),
    ("megaface", "common/megaface.py --probes IN/features --distractors IN/features --output OUT/megaface"),
    ("verification", "common/verification.py --model IN/model/model,1 --data IN/a --output OUT/verification"),
])
def test_results_of_the_same_command_are_replaced(folder: str, words: str, inputs: Path, tmp_path: Path,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    """Results of another are not: the command knows its own by what it says in JSON."""
    path, _, rest = words.partition(" ")
    for _ in range(2):
        assert run(path, rest, inputs, tmp_path) in (0, 1)
    (report,) = (tmp_path / folder).glob("*.json")
    report.write_text('{"of": "another"}\n')
    capsys.readouterr()
    assert run(path, rest, inputs, tmp_path) == 2
    assert f"{report}: exists already, expected a new name; --overwrite replaces it" in capsys.readouterr().err
    assert report.read_text() == '{"of": "another"}\n'


def test_the_picture_and_the_report_of_a_run_are_replaced_where_they_are_its_own(
        inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(inputs / "run", tmp_path / "run")
    (tmp_path / "run").chmod(0o755)
    for path, name in (("common/report.py", "report.html"), ("common/plot_run.py", "run.png")):
        for _ in range(2):
            assert run(path, f"{tmp_path}/run", inputs, tmp_path) == 0
        result = tmp_path / "run" / name
        result.write_bytes(b"<!DOCTYPE html>\nmine")
        assert run(path, f"{tmp_path}/run", inputs, tmp_path) == 2
        assert f"{result}: exists already" in capsys.readouterr().err and result.read_bytes().endswith(b"mine")
        assert run(path, f"{tmp_path}/run", inputs, tmp_path, "--overwrite") == 0
        assert not result.read_bytes().endswith(b"mine")


def test_a_run_that_goes_on_in_a_copy_of_links_changes_the_copy_alone(inputs: Path, tmp_path: Path) -> None:
    """``cp -al`` gives all files of a run's folder a second name: appending or cutting in place would reach both."""
    pytest.importorskip("tensorboardX")
    (tmp_path / "plain.py").write_text(
        "import mxnet as mx\n\n\ndef get_symbol(emb_size):\n"
        "    x = mx.sym.Pooling(mx.sym.Variable('data') / 255, kernel=(28, 28), stride=(28, 28), pool_type='avg')\n"
        "    return mx.sym.FullyConnected(x, num_hidden=emb_size, name='fc1')\n")
    before = state(inputs)
    settings: dict[str, Any] = {
        "dataset_path": str(inputs / "a"), "net_name": "plain", "config_file": str(tmp_path / "config.py"),
        "emb_size": 8, "per_batch_size": 12, "val_targets": "lfw", "verbose": 2, "state_every": 2, "lr": 0.01,
        "network": "plain", "dataset": "a", "models_root": str(tmp_path / "models"), "tensorboard": True, "frequent": 1}
    assert train(Config(**settings, max_steps=5)) == 0
    first = state(tmp_path / "models")
    subprocess.run(["cp", "-al", tmp_path / "models", tmp_path / "copy"], check=True)
    shutil.rmtree(sorted((tmp_path / "copy").rglob("step-*"))[-1])  # what was written after the state before is cut
    assert train(Config(**{**settings, "models_root": str(tmp_path / "copy"), "resume": "yes"}, max_steps=8)) == 0
    assert state(tmp_path / "models") == first and state(inputs) == before
    assert len(list((tmp_path / "copy").rglob("history.jsonl"))) == 1
