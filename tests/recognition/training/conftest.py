# SPDX-License-Identifier: Apache-2.0
"""A small training set of real JPEG records, and the command line that trains on it.

Tests that ask for ``engine``, too, run once with each.
"""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np
import pytest

from recognition.config.options import Config
from recognition.data.records.recordio import RecordWriter, pack_record
from recognition.data.verification_set import save_bin
from recognition.training import run
from tests.recognition.training.in_process import run_here

ROOT = Path(__file__).resolve().parents[3]
IDENTITIES, IMAGES = 11, 6  # 11 classes: no number of shards up to 10 divides them

CONFIG = """
exec(compile(open({sample!r}).read(), {sample!r}, "exec"))
network.tiny = edict(net_name="fmobilefacenet", emb_size=32, net_output="E", net_multiplier=0.25)
network.tiny.net_blocks = [1, 1, 1, 1]
dataset.tiny = edict(dataset_path={data!r}, num_classes=11, image_shape=(112, 112, 3), val_targets=["tiny"])
default.network, default.dataset = "tiny", "tiny"
"""


def noisy(base: np.ndarray, random: np.random.RandomState) -> bytes:
    image = np.clip(base + random.normal(0, 40, base.shape), 0, 255).astype(np.uint8)
    return bytes(cv2.imencode(".jpg", image)[1])


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def short_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set like ``tiny_set``, with two images of each identity: 22 an epoch."""
    return write_set(tmp_path_factory.mktemp("short"), 2)


def write_set(folder: Path, images: int = IMAGES) -> Path:
    """Write train.rec, train.idx, property and tiny.bin into a folder: coloured patches with noise, so many of each
    identity."""
    random = np.random.RandomState(0)
    bases = [cv2.resize(random.randint(0, 256, (5, 5, 3)).astype(np.uint8), (112, 112)) for _ in range(IDENTITIES)]
    count = IDENTITIES * images
    with RecordWriter(folder / "train.rec", folder / "train.idx") as records:
        records.write(0, pack_record((count + 1, count + 1 + IDENTITIES)))
        for i in range(count):
            records.write(i + 1, pack_record(float(i // images), noisy(bases[i // images], random), id=i + 1))
        for i in range(IDENTITIES):
            records.write(count + 1 + i, pack_record((1 + i * images, 1 + (i + 1) * images)))
    (folder / "property").write_text(f"{IDENTITIES},112,112\n")
    firsts = random.randint(0, IDENTITIES, 40)
    issame = [i % 2 == 0 for i in range(40)]
    seconds = [a if same else (a + 1) % IDENTITIES for a, same in zip(firsts, issame)]
    save_bin(folder / "tiny.bin", [noisy(bases[i], random) for pair in zip(firsts, seconds) for i in pair], issame)
    return folder


def engine_of(request: pytest.FixtureRequest) -> str:
    """The engine that the test asks for, MXNet if for none."""
    return str(request.getfixturevalue("engine")) if "engine" in request.fixturenames else "mxnet"


@pytest.fixture
def flags(tiny_set: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., list[str]]:
    """``flags(name, *more)``: those of a run on the small set with checkpoints below ``tmp_path / name``."""
    engine = engine_of(request)
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(sample=str(ROOT / "sample_config.py"), data=str(tiny_set)))
    return lambda name, *more, loss="arcface": [
        "--config", str(config), "--loss", loss, "--models-root", str(tmp_path / name), "--lr", "0.01", "--frequent",
        "2", "--engine", engine, *more]


@pytest.fixture
def start(flags: Callable[..., list[str]]) -> Callable[..., subprocess.Popen]:
    """Starts ``train_parall.py`` (or ``entry``) with ``flags``, as a user does."""

    def run(*args: str, entry: str = "train_parall", environ: Mapping[str, str] | None = None,
            **options: str) -> subprocess.Popen:
        command = [sys.executable, str(ROOT / f"{entry}.py"), *flags(*args, **options)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env={**os.environ, **(environ or {})})

    return run


@pytest.fixture
def train_apart(start: Callable[..., subprocess.Popen]) -> Callable[..., tuple[int, str, str]]:
    """Like ``start``, but waits: exit status, standard output, standard error."""

    def run(*args: str, **options: Any) -> tuple[int, str, str]:
        process = start(*args, **options)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    return run


@pytest.fixture
def train(flags: Callable[..., list[str]]) -> Callable[..., tuple[int, str, str]]:
    """Like ``train_apart``, but in this interpreter."""
    return lambda *args, entry="train_parall", **options: run_here(entry, *flags(*args, **options))


PLAIN = """
import mxnet as mx

def get_symbol(emb_size):
    x = mx.sym.Convolution(mx.sym.Variable("data") / 255, num_filter=4, kernel=(7, 7), stride=(7, 7), name="conv0")
    return mx.sym.FullyConnected(x, num_hidden=emb_size, name="fc1")
"""


@pytest.fixture
def make(tiny_set: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Config]:
    """``make(key=value)``: the Config of a small run in this process, with some options changed.

    Nothing is augmented, verified or saved as a state unless asked for.
    """
    (tmp_path / "plain.py").write_text(PLAIN)
    small = {"dataset_path": str(tiny_set), "net_name": "plain", "config_file": str(tmp_path / "config.py"),
             "emb_size": 8, "per_batch_size": 12, "max_steps": 3, "val_targets": "none", "state_every": 0, "lr": 0.01,
             "data_rand_mirror": False, "engine": engine_of(request), "network": "plain", "dataset": "tiny",
             "models_root": str(tmp_path / "models")}
    return lambda **options: Config(**{**small, **options})


@pytest.fixture
def gone_on(make: Callable[..., Config], tmp_path: Path) -> Callable[..., tuple[Config, Config]]:
    """``gone_on(key=value)`` trains two steps and goes on to four, and four in one run; returns the Config of both."""

    def both(**options: Any) -> tuple[Config, Config]:
        parts = {**options, "models_root": str(tmp_path / "parts")}
        begun, second = make(**parts, max_steps=2), make(**parts, max_steps=4, resume="yes")
        whole = make(**options, max_steps=4, models_root=str(tmp_path / "whole"))
        assert [run.train(config) for config in (whole, begun, second)] == [0, 0, 0]
        return second, whole

    return both
