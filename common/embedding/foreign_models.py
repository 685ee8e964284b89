# SPDX-License-Identifier: Apache-2.0
"""Networks of others for the commands that run a checkpoint: ONNX files, and weights of arcface_torch.

A network maps uint8 (n, 3, H, W) RGB to float32 (n, dim), as an engine's
:class:`recognition.engines.interface.Embedder` does.
"""
from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recognition.config.devices import Device, on_gpus
from recognition.engines.interface import Embedder, Engine
from recognition.errors import UserError
from recognition.io.torch_file import read_tensors
from recognition.networks.torch_weights.of_torch import from_torch, of_the_network
from recognition.networks.torch_weights.vit_weights import VARIANT
from recognition.training.checkpoints.checkpoint import save_checkpoint

ENDINGS = (".onnx", ".pt", ".pth")
FIRST_NODES = 8  # in which arcface_torch looks for the scaling of pixels
SCALING = (("Sub", "_minus"), ("Mul", "_mul", "Div"))  # how the names and operators of its two nodes begin
QUANTISATION = ("QuantizeLinear", "DequantizeLinear")  # of 8-bit files, anywhere in their lists of nodes


def is_foreign(model: str) -> bool:
    """True for the name of such a file."""
    return model.endswith(ENDINGS)


def open_weights(path: Path, engine: Engine, devices: Sequence[Device], batch_size: int, shape: tuple[int, int, int],
                 bfloat16: bool, network: str = "") -> Embedder:
    """The network of a file of arcface_torch's weights, on the engine.

    :param network: the name that it should have, r18 or so; empty: any.
    :raises UserError: if it is none, or another than ``network``, or the devices cannot be used.
    """
    tensors, _ = of_the_network(read_tensors(path), str(path))
    name, graph, arguments, auxiliary = from_torch(tensors, str(path))
    if network and re.sub(VARIANT, "", network) != name:
        raise UserError(f"--network: found {network!r}, but {path} holds the weights of {name}")
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder, "model"), 1, graph, arguments, auxiliary)
        return engine.embedder((f"{folder}/model", 1), devices, batch_size, shape, bfloat16)


class OnnxNetwork:
    """The network of an ONNX file, run by onnxruntime. One that does not scale pixels itself gets (p - 127.5) / 127.5,
    as arcface_torch's do; whether it does shows in its first nodes."""

    def __init__(self, path: Path, devices: Sequence[Device], shape: tuple[int, int, int]) -> None:
        """:raises UserError: if the packages are missing, or the file has not one input of ``shape`` and one output.
        """
        try:
            import onnx
            import onnxruntime
        except ImportError:
            raise UserError(f"{path}: needs onnx and onnxruntime: pip install -e '.[onnx]'") from None
        provider = "CUDAExecutionProvider" if on_gpus(devices) else "CPUExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise UserError(f"{path}: this onnxruntime has no {provider}, expected onnxruntime-gpu for GPUs")
        try:
            nodes = onnx.load(str(path), load_external_data=False).graph.node
            self._session: Any = onnxruntime.InferenceSession(str(path), providers=[provider])
        except Exception as error:  # of either package
            raise UserError(f"{path}: not a network in ONNX: {' '.join(str(error).split())[:200]}") from None
        first, outputs = self._session.get_inputs()[0], self._session.get_outputs()
        if len(self._session.get_inputs()) != 1 or len(outputs) != 1 or list(first.shape[1:]) != list(shape):
            raise UserError(f"{path}: found inputs of {[item.shape for item in self._session.get_inputs()]} and "
                            f"{len(outputs)} outputs, expected one of (N, {', '.join(map(str, shape))}) and one")
        first_nodes = [node for node in nodes if node.op_type not in QUANTISATION][:FIRST_NODES]
        names = [name for node in first_nodes for name in (node.name, node.op_type)]
        self._scales = all(any(name.startswith(start) for name in names) for start in SCALING)
        self.input, self._batch = first.name, first.shape[0] if isinstance(first.shape[0], int) else 0
        self.dim = int(self(np.zeros((1, *shape), np.uint8)).shape[1])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        rows = [self._session.run(None, {self.input: batch})[0] for batch in self.batches(images)]
        found: np.ndarray = np.concatenate(rows)[: len(images)] if rows else np.empty((0, self.dim))
        return found.astype(np.float32, copy=False)

    def batches(self, images: np.ndarray) -> list[np.ndarray]:
        """The arrays that the file's input gets for uint8 images (n, 3, H, W): float32, all in one; for a file of a
        fixed batch in several of that size, the last filled up."""
        pixels = images.astype(np.float32)
        if not self._scales:
            pixels = (pixels - np.float32(127.5)) / np.float32(127.5)
        size = self._batch or max(len(pixels), 1)
        return [np.resize(pixels[low : low + size], (size, *pixels.shape[1:])) for low in range(0, len(pixels), size)]
