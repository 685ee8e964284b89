# SPDX-License-Identifier: Apache-2.0
"""The run of the harnesses of faults: a training set, networks and a config.py so small that a step takes milliseconds.
"""
from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from common.sets.training_set import write_training_set
from recognition.data.verification_set import save_bin

ROOT = Path(__file__).resolve().parents[1]
IDENTITIES, IMAGES = 12, 8
NETWORK = '''
import mxnet as mx

def get_symbol(emb_size):
    """{doc}"""
    data = mx.sym.Variable("data")
    x = mx.sym.Convolution(data / 255, num_filter=4, kernel=(7, 7), stride=(7, 7), name="conv0")
    x = mx.sym.flatten(mx.sym.BatchNorm(x, fix_gamma=False, name="bn0"))
    {middle}
    return mx.sym.FullyConnected(x, num_hidden=emb_size, name="fc1")
'''
MEAN = "mean = mx.sym.mean(data, axis=(1, 2, 3)).reshape((-1, 1))"
NETWORKS = {
    "small": ("A convolution, a batch norm, a layer.", "pass"),
    "forward": ("Infinite features for a black image.", f"{MEAN}\n    x = mx.sym.broadcast_div(x, mean)"),
    "backward": ("A gradient of 0 / 0 for a black image.",
                 f"{MEAN}\n    gate = mx.sym.FullyConnected(mean, num_hidden=1, no_bias=True, name='gate')\n"
                 "    x = mx.sym.broadcast_add(x, mx.sym.sqrt(mx.sym.abs(gate)))"),
}
CONFIG = """
exec(compile(open({sample!r}).read(), {sample!r}, "exec"))
for name in {networks!r}:
    network[name] = edict(net_name=name, emb_size=16)
dataset.small = edict(dataset_path={data!r}, num_classes={classes}, image_shape=(112, 112, 3), val_targets=["small"])
default.network, default.dataset = "small", "small"
config.data_rand_mirror, config.count_flops = False, False
"""


def make(folder: Path, black: int | None = None) -> Path:
    """Write set, networks and configuration to a new folder; ``black``: the number of an image without light."""
    random = np.random.RandomState(0)

    def image(number: int) -> bytes:
        pixels = random.randint(0, 256, (14, 14, 3)).astype(np.uint8) * (number != black)
        return bytes(cv2.imencode(".jpg", cv2.resize(pixels, (112, 112)))[1])

    folder.mkdir(parents=True)
    write_training_set(folder, [IMAGES] * IDENTITIES, (image(i) for i in range(IDENTITIES * IMAGES)))
    save_bin(folder / "small.bin", [image(-1) for _ in range(40)], [i % 2 == 0 for i in range(20)])
    for name, (doc, middle) in NETWORKS.items():
        (folder / f"{name}.py").write_text(NETWORK.format(doc=doc, middle=middle))
    (folder / "config.py").write_text(CONFIG.format(sample=str(ROOT / "sample_config.py"), networks=list(NETWORKS),
                                                    data=str(folder), classes=IDENTITIES))
    return folder


def command(folder: Path, models: Path, *flags: str, launcher: Sequence[str] = ()) -> list[str]:
    """The command of a run; ``launcher``: flags of ``recognition.launch``; without them it is one process."""
    before = [sys.executable, "-m", "recognition.launch", *launcher, "--"] if launcher else []
    return [*before, sys.executable, str(ROOT / "train_parall.py"), "--config", str(folder / "config.py"),
            "--models-root", str(models), "--lr", "0.01", "--per-batch-size", "4", "--devices", "cpu", *flags]


def environment(**more: str) -> dict[str, str]:
    """The environment of such runs: one thread each, as they are small."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **more}


def marked(mark: str) -> Iterator[int]:
    """The living processes with ``MARK=mark`` in their environment: all that a run has started."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            words = path.read_bytes().split(b"\0")
            state = (path.parent / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if f"MARK={mark}".encode() in words and state != "Z":
            yield int(path.parent.name)
