# SPDX-License-Identifier: Apache-2.0
"""Static quantisation of an ONNX network to INT8 by onnxruntime: convolutions and matrix products.

Weights have a scale a channel, activations one a tensor, each of 256 values that are symmetric about zero: TensorRT
takes no others, nor biases in int32, which stay float32 here. Where they stand is written into the graph as pairs of
QuantizeLinear and DequantizeLinear (QDQ), so that every runtime can run the file, and fuses what it has kernels for.
"""
from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common.embedding.foreign_models import QUANTISATION, OnnxNetwork
from common.sets.image_sources import find_images
from recognition.data.images.image import fit, write_planes
from recognition.data.images.image_files import read_image
from recognition.data.sets.dataset import open_dataset
from recognition.data.verification_set import load_bin
from recognition.errors import UserError, naming

PRODUCTS = ("Conv", "Gemm", "MatMul")
TAKEN = ("_scale", "_zero_point")  # behind the name of a tensor: what onnxruntime adds
AT_A_TIME = 8  # images in the calibration


def calibration_images(place: Path, count: int, side: int) -> np.ndarray:
    """Images spread evenly over a set, uint8 ``(n, 3, side, side)`` RGB, n at most ``count``.

    :param place: a verification set, a folder with train.rec, or a folder of images at any depth
    :raises UserError: if it has no images, or one of those that are taken cannot be used.
    """
    if place.suffix == ".bin":
        images = load_bin(place, (side, side)).images
        return images[_spread(len(images), count)]
    if (place / "train.rec").is_file():
        with contextlib.closing(open_dataset(place)) as dataset:
            pixels = [dataset.load(i)[1] for i in _spread(len(dataset), count).tolist()]
        return _planes(pixels, [str(place)] * len(pixels), side)
    paths = find_images(place)
    chosen = [paths[i] for i in _spread(len(paths), count).tolist()]
    return _planes([read_image(path)[1] for path in chosen], list(map(str, chosen)), side)


def _spread(total: int, count: int) -> np.ndarray:
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))


def _planes(pixels: list[np.ndarray], names: list[str], side: int) -> np.ndarray:
    planes = np.empty((len(pixels), 3, side, side), np.uint8)
    for image, target, name in zip(pixels, planes, names):
        with naming(name):
            write_planes(np.ascontiguousarray(fit(image, side, side)), target)
    return planes


def require_float(path: Path) -> None:
    """Refuse a network that cannot be quantised.

    :raises UserError: if it has no products, is one of INT8 already, has parameters in float16, or a constant with a
        name that quantisation gives.
    """
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    found = {node.op_type for node in graph.node}
    if found.intersection(QUANTISATION):
        raise UserError(f"{path}: found a network that is quantised already, expected one of float32")
    if not found.intersection(PRODUCTS):
        raise UserError(f"{path}: found no {', '.join(PRODUCTS)}, expected a network with layers to quantise")
    if any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer):
        raise UserError(f"{path}: found parameters in float16, expected float32: export it without --float16")
    outputs = {f"{name}{ending}" for node in graph.node for name in node.output for ending in TAKEN}
    if clash := outputs.intersection(tensor.name for tensor in graph.initializer):
        raise UserError(f"{path}: found a constant {min(clash)}, a name that quantisation gives: export the network "
                        "again, or rename it")


class _Reader:
    """onnxruntime's reader of calibration data, in steps so that the values of all layers of all images are never in
    memory together."""

    def __init__(self, batches: list[np.ndarray], name: str) -> None:
        self._batches, self._name = batches, name
        self.set_range(0, len(batches))

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._rest: Iterator[np.ndarray] = iter(self._batches[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._rest, None)
        return None if batch is None else {self._name: batch}


def quantise(source: Path, network: OnnxNetwork, images: np.ndarray, output: Path,
             reduce_range: bool = False) -> None:
    """Write ``source`` in INT8 to ``output``.

    :param network: ``source``, which says what its input is.
    :param images: for the calibration, uint8 (n, 3, H, W).
    :param reduce_range: weights of 7 bits.
    """
    from onnxruntime.quantization import QuantType, quantize_static

    batches = [batch for low in range(0, len(images), AT_A_TIME)
               for batch in network.batches(images[low : low + AT_A_TIME])]
    with _quiet():
        quantize_static(
            str(source), str(output), _Reader(batches, network.input), per_channel=True, reduce_range=reduce_range,
            op_types_to_quantize=list(PRODUCTS), activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": True, "QuantizeBias": False, "CalibStridedMinMax": 1})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without onnxruntime's lines about its own progress."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
