# SPDX-License-Identifier: Apache-2.0
"""Sets of one-coloured images with a network that embeds their mean colour; a small network; photographs."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

import cv2
import numpy as np
import pytest

from recognition.data.images.image_files import read_image
from recognition.data.records.recordio import RecordWriter, pack_record
from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.symbols import to_symbol
from recognition.networks import sym
from recognition.networks.families import fmobilefacenet
from recognition.networks.graph import Graph
from recognition.networks.initialise import initialise
from recognition.training.checkpoints.checkpoint import save_checkpoint

IMAGE = (3, 112, 112)
CLASSES, K, LOST = 7, 3, 4  # identity 2 has no image, of LOST none is left


class Case(NamedTuple):
    labels: np.ndarray
    images: list[bytes]
    w: np.ndarray  # (CLASSES * K, 3) float32


def patch(colour: np.ndarray) -> bytes:
    """A JPEG of 112 x 112 pixels of one colour, RGB."""
    image = np.empty((112, 112, 3), np.uint8)
    image[:] = np.clip(np.rint(colour[::-1]), 0, 255)
    return cv2.imencode(".jpg", image)[1].tobytes()


def _towards(direction: Sequence[float]) -> bytes:
    direction = np.asarray(direction, np.float64)
    return patch(127.5 + 100 * direction / np.linalg.norm(direction))


@pytest.fixture
def towards() -> Callable[..., bytes]:
    """``towards(direction)``: a patch whose embedding by ``colour_model`` points that way."""
    return _towards


@pytest.fixture
def write_set(tmp_path: Path) -> Callable[..., Path]:
    """``write_set(labels, images, classes, form)``: a folder with these images, in this order."""

    def write(labels: Sequence[int], images: Sequence[bytes], classes: int, form: str = "identities") -> Path:
        folder = tmp_path / f"set-{form}"
        folder.mkdir()
        first = 1 if form == "identities" else 0
        with RecordWriter(folder / "train.rec", folder / "train.idx") as writer:
            if form == "identities":
                assert list(labels) == sorted(labels)
                writer.write(0, pack_record((len(labels) + 1, len(labels) + 1 + classes)))
            for key, (label, image) in enumerate(zip(labels, images), first):
                writer.write(key, pack_record(float(label), image, id=key))
            ends = np.cumsum(np.bincount(labels, minlength=classes)) + 1
            for i, end in enumerate(ends if first else []):
                writer.write(len(labels) + 1 + i, pack_record((ends[i - 1] if i else 1, end)))
        tail = f"{len(labels)}\nshuffled\n" if form == "shuffled" else ""
        (folder / "property").write_text(f"{classes},112,112\n{tail}")
        return folder

    return write


@pytest.fixture
def colour_model(tmp_path: Path) -> Callable[..., str]:
    """``colour_model(**arrays)``: the prefix of checkpoint 1 of the mean colour less grey, with more arrays in it.

    Beyond three numbers an embedding is zero.
    """
    def save(name: str = "model", dim: int = 3, **arrays: np.ndarray) -> str:
        centred = sym.Variable("data") - 127.5
        pooled = sym.Flatten(sym.Pooling(centred, global_pool=True, pool_type="avg", kernel=(1, 1)))
        symbol = sym.FullyConnected(pooled, num_hidden=dim, name="fc1").graph()
        weights = {"fc1_weight": np.eye(dim, 3, dtype=np.float32), "fc1_bias": np.zeros(dim, np.float32)}
        prefix = tmp_path / name / "model"
        save_checkpoint(prefix, 1, symbol, {**weights, **arrays}, {})
        return str(prefix)

    return save


@pytest.fixture
def case() -> Case:
    """Images around the sub-centres of their identities, some nearer to another than to their own."""
    random = np.random.RandomState(1)
    w = random.standard_normal((CLASSES * K, 3))
    labels = np.repeat([0, 1, 3, LOST, 5, 6], [9, 6, 8, 3, 1, 12])
    of = w[labels * K + random.choice(K, len(labels), p=[0.2, 0.6, 0.2])]
    directions = of / np.linalg.norm(of, axis=1, keepdims=True) + 0.5 * random.standard_normal((len(labels), 3))
    lost = w[LOST * K : LOST * K + K]
    lost /= np.linalg.norm(lost, axis=1, keepdims=True)
    directions[labels == LOST] = -lost.sum(axis=0)
    return Case(labels, [_towards(d) for d in directions], (w * random.uniform(0.1, 3, (len(w), 1))).astype(np.float32))


@pytest.fixture
def drop() -> Callable[..., int]:
    """``drop(data, prefix, output, *flags)``: the command's exit status."""
    from common.drop import main

    def run(data: Path, prefix: str, output: Path, *flags: Any) -> int:
        return main(["--data", str(data), "--model", f"{prefix},1", "--output", str(output), *map(str, flags)])

    return run


def smooth_noise(count: int, seed: int = 0) -> np.ndarray:
    """Smooth coloured images, uint8 (count, 112, 112, 3)."""
    random = np.random.RandomState(seed)
    return np.stack([cv2.resize(random.randint(0, 256, (7, 7, 3)).astype(np.uint8), (112, 112)) for _ in range(count)])


def lively(symbol: Graph, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Values of a network whose embeddings tell images apart, and whose batch norms are not what they start from.

    Their moving statistics are those of six images, if the symbol's ``bn_mom`` is 0.
    """
    arguments, auxiliary = initialise(symbol, IMAGE, seed)
    random = np.random.default_rng(seed)
    for name, value in arguments.items():
        if name.endswith("gamma"):
            value[...] = random.uniform(0.6, 1.4, value.shape) * (0.25 if "relu" in name else 1)
        elif name.endswith(("beta", "bias")):
            value[...] = random.normal(0, 0.2, value.shape)
    images = mx.nd.array(smooth_noise(6, seed + 1).transpose(0, 3, 1, 2))
    bound = to_symbol(symbol).simple_bind(mx.cpu(), grad_req="write", data=images.shape)
    bound.copy_params_from({"data": images, **{name: mx.nd.array(value) for name, value in arguments.items()}},
                           {name: mx.nd.array(value) for name, value in auxiliary.items()})
    bound.backward([mx.nd.zeros_like(bound.forward(is_train=True)[0])])  # MXNet moves them in the backward pass
    mx.nd.waitall()
    return arguments, {name: value.asnumpy() for name, value in bound.aux_dict.items()}


@pytest.fixture(scope="session")
def save_network() -> Callable[..., Path]:
    """``save_network(folder, symbol)``: a checkpoint of it, number 1, with lively values; returns its prefix."""

    def save(folder: Path, symbol: Graph, seed: int = 0) -> Path:
        save_checkpoint(folder / "model", 1, symbol, *lively(symbol, seed))
        return folder / "model"

    return save


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory, save_network: Callable[..., Path]) -> Path:
    """Prefix of the checkpoint, number 1, of a MobileFaceNet of 64 numbers with a quarter of the channels."""
    symbol = fmobilefacenet.get_symbol(emb_size=64, net_multiplier=0.25, net_blocks=[1, 1, 1, 1], net_output="GDC",
                                       bn_mom=0.0)
    return save_network(tmp_path_factory.mktemp("small"), symbol)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """PREFIX of checkpoint 1 of a network that embeds an image as the mean colours of its quarters, less grey."""
    pooled = sym.Pooling(sym.Variable("data") - 127.5, pool_type="avg", kernel=(56, 56), stride=(56, 56))
    symbol = sym.FullyConnected(sym.Flatten(pooled), num_hidden=12, name="fc1").graph()
    prefix = tmp_path_factory.mktemp("model") / "model"
    save_checkpoint(prefix, 1, symbol, {"fc1_weight": np.eye(12, dtype=np.float32),
                                        "fc1_bias": np.zeros(12, np.float32)}, {})
    return str(prefix)


@pytest.fixture(scope="session")
def faces(shared: Path) -> np.ndarray:
    """Ten aligned photographs, uint8 (10, 112, 112, 3) RGB."""
    return np.stack([read_image(path)[1] for path in sorted((shared / "data" / "wild").glob("*.jpg"))])


@pytest.fixture
def noise() -> np.ndarray:
    """Seven smooth coloured images, uint8 (7, 112, 112, 3)."""
    return smooth_noise(7)


MARK = 8  # pixels: what the detector below finds is a red square of this side, at a multiple of it


@pytest.fixture(scope="session")
def yunet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX network with YuNet's input and outputs that finds a face below each red square.

    The face is 112 x 112, its left upper corner below that of the square, with ARCFACE's landmarks in it. OpenCV does
    all the rest: reading, running, decoding boxes and landmarks, suppressing what overlaps.
    """
    from common.faces.alignment import ARCFACE

    red = np.zeros((1, 3, MARK, MARK), np.float32)
    red[0, :, :, :] = np.array([-1, -1, 1]).reshape(3, 1, 1) / (255 * MARK * MARK)  # of blue, green, red
    middle = (112 / 2 / MARK, (MARK + 112 / 2) / MARK, *np.log([112 / MARK] * 2))
    outputs = {"cls": (red, [0]), "obj": (red, [0]), "bbox": (np.zeros((4, *red.shape[1:])), middle),
               "kps": (np.zeros((10, *red.shape[1:])), ((ARCFACE + np.array([0, MARK])) / MARK).ravel())}
    nodes, arrays, names = [], [], []
    for stride in (8, 16, 32):
        for kind, (weight, bias) in outputs.items():
            name, channels = f"{kind}_{stride}", len(weight)
            grown = np.repeat(np.repeat(weight, stride // 8, axis=2), stride // 8, axis=3) if stride == 8 else np.zeros(
                (channels, 3, stride, stride))
            arrays += [_tensor(f"{name}.w", grown.astype("<f4")), _tensor(f"{name}.b", np.array(bias, "<f4")),
                       _tensor(f"{name}.shape", np.array([1, -1, channels], "<i8"))]
            nodes += [_node("Conv", ["input", f"{name}.w", f"{name}.b"], f"{name}.conv", kernel_shape=[stride] * 2,
                            strides=[stride] * 2),
                      _node("Transpose", [f"{name}.conv"], f"{name}.last", perm=[0, 2, 3, 1]),
                      _node("Reshape", [f"{name}.last", f"{name}.shape"], name)]
            names.append(name)
    graph = b"".join([*(_part(1, node) for node in nodes), _part(2, b"yunet"), *(_part(5, a) for a in arrays),
                      _part(11, _value("input", (1, 3, 640, 640))), *(_part(12, _value(n, (1, 1, 1))) for n in names)])
    path = tmp_path_factory.mktemp("yunet") / "yunet.onnx"
    path.write_bytes(_number(1, 7) + _part(7, graph) + _part(8, _part(1, b"") + _number(2, 11)))
    return path


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _part(field: int, content: bytes) -> bytes:
    """A field of protobuf that has a length: text, bytes, a message."""
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _tensor(name: str, values: np.ndarray) -> bytes:
    kind = {"<f4": 1, "<i8": 7}[values.dtype.str]
    return b"".join([*(_number(1, side) for side in values.shape), _number(2, kind), _part(8, name.encode()),
                     _part(9, values.tobytes())])


def _node(kind: str, inputs: list[str], output: str, **lists: list[int]) -> bytes:
    attributes = [_part(1, name.encode()) + b"".join(_number(8, v) for v in values) + _number(20, 7)
                  for name, values in lists.items()]
    return b"".join([*(_part(1, name.encode()) for name in inputs), _part(2, output.encode()),
                     _part(3, output.encode()), _part(4, kind.encode()), *(_part(5, a) for a in attributes)])


def _value(name: str, shape: tuple[int, ...]) -> bytes:
    sides = b"".join(_part(1, _number(1, side)) for side in shape)
    return _part(1, name.encode()) + _part(2, _part(1, _number(1, 1) + _part(2, sides)))


@pytest.fixture
def marked() -> Callable[..., np.ndarray]:
    """``marked(faces, places, shape)``: a grey picture, RGB, with faces (112, 112, 3) at places (x, y) that ``yunet``
    finds: each below a red square. Places are multiples of 8."""

    def draw(faces: Sequence[np.ndarray], places: Sequence[tuple[int, int]], shape: tuple[int, int]) -> np.ndarray:
        picture = np.full((*shape, 3), 90, np.uint8)
        for face, (x, y) in zip(faces, places):
            picture[y : y + 112, x : x + 112] = face
            picture[y - MARK : y, x : x + MARK] = 255, 0, 0
        return picture

    return draw
