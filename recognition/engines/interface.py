# SPDX-License-Identifier: Apache-2.0
"""The interface through which the loop and the commands use an engine, whichever library computes. NumPy alone.

An engine also makes what other rooms describe: shards of class centres (:class:`recognition.head.shard.Shard`) and
communicators (:class:`recognition.processes.communicator.Communicator`).
"""
from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, NamedTuple, Protocol

import numpy as np

from recognition.config.devices import Device
from recognition.head.shard import Shard
from recognition.io.params import Arrays as Arrays
from recognition.networks.graph import Graph
from recognition.optim.adamw import AdamW
from recognition.optim.factors import LearningRateFactors
from recognition.optim.loss_scale import LossScale
from recognition.processes.communicator import Communicator

LARGEST_NORM = float(np.sqrt(np.finfo(np.float32).max))  # 1.8e19: the square of more is no float32 number


@dataclass(frozen=True)
class Computing:
    """Devices, batch and numbers with which the backbone is computed."""

    devices: tuple[Device, ...]  # of this process, all of one kind
    batch_size: int  # images a device at a time
    in_16_bits: bool = False
    loss_scale: float = 0.0  # that float16 begins with; 0: the engine's own
    memonger: bool = False  # activations are recomputed to save memory
    keep_features: bool = False  # on the only GPU, where the engine can, rather than in NumPy's arrays


@dataclass(frozen=True)
class Updating:
    """Optimiser, learning rate factors and seed with which the backbone's parameters are updated."""

    mu: float = 0.9  # momentum of SGD
    wd: float = 0.0005
    adamw: AdamW | None = None  # in place of SGD
    factors: Callable[[Sequence[str]], LearningRateFactors] = LearningRateFactors  # made for parameters' names
    seed: int = 0  # of dropout
    leaves_out: bool = False  # whether a step may be left out although there is no loss scale
    micro_batches: int = 1  # of a step, one after the other on a device, whose gradients add up to those of the step
    ema: float = 0.0  # decay of the moving average of the weights, 0: there is none
    gradient_numbers: str = "float32"  # dtype of gradients on their way between processes
    clip_norm: float = 0.0  # the largest norm of a step's gradient, 0: any


class BackboneState(NamedTuple):
    """The backbone's part of a training state. Moving statistics belong to a replica: one mapping for each of all
    processes."""

    parameters: Arrays
    momentum: Arrays  # with AdamW the first moments
    auxiliary: list[Arrays]
    loss_scale: np.ndarray | None = None  # that of float16
    second_moment: Arrays | None = None  # of AdamW
    updates: Arrays | None = None  # of AdamW: how many of each parameter, int64 ()
    average: Arrays | None = None  # the moving average of the parameters, if there is one
    average_auxiliary: list[Arrays] | None = None  # and of the statistics of each replica


class Backbone(Protocol):
    """A backbone in training. Images are uint8 (n, 3, H, W) RGB, features float32 (n, D).

    All processes call ``embed``, ``parameters`` and ``state`` together.
    """

    startup_line: str  # what it computes with, for the log; empty if there is nothing to say

    @property
    def loss_scale(self) -> LossScale | None:
        """The loss scale of float16; None for other numbers."""

    def buffer(self, shape: tuple[int, ...]) -> np.ndarray:
        """Memory for the images of a batch, uint8, from which :meth:`forward` takes them fastest. They stay as they are
        until the step that they belong to is over."""

    def coming(self, images: np.ndarray) -> None:
        """Tell which images the next :meth:`forward` may get. They may be copied to the devices beside this step, and
        stay as they are."""

    def forward(self, images: np.ndarray) -> Any:
        """Features of this process's part of a training batch: of each device in turn ``micro_batches`` times
        ``batch_size`` images. They are NumPy's, or the engine's on its device."""

    def backward(self, d_features: Any) -> None:
        """Gradients of the parameters from those of the last features, of the same shape and kind."""

    def finite(self) -> bool:
        """True if all that the last :meth:`backward` computes is finite; waits for it."""

    def gradient_norm(self) -> float:
        """Euclidean norm of the gradient of the mean loss by the parameters that :meth:`step` is about to update."""

    def step(self, lr: float) -> None:
        """Update the parameters by the gradients of the last :meth:`backward`, summed over all replicas."""

    def leave_out(self) -> None:
        """Count a step without :meth:`step`: no parameter moves, and moving statistics return to their last values."""

    def sound(self) -> bool:
        """True if all may be saved: the norms of parameters are below 1.8e19, moments and statistics are finite."""

    def norms(self) -> tuple[dict[str, float], dict[str, float]]:
        """Euclidean norms of the parameters and of the gradients of the last :meth:`backward`, by name."""

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Features for verification: no dropout, moving statistics; any number of images."""

    def averaged(self) -> AbstractContextManager[None]:
        """Context in which parameters and moving statistics are their moving averages: to embed, or to save them."""

    def parameters(self) -> tuple[Arrays, Arrays]:
        """Parameters and auxiliary states by name, as a checkpoint holds them."""

    def state(self) -> BackboneState:
        """The arrays that a training state holds."""

    def difference(self, state: BackboneState) -> str:
        """The first name or shape by which a state differs from this network; '' if none does."""

    def load(self, state: BackboneState, steps: int) -> None:
        """Go on from a state after ``steps`` updates; any number of replicas may have saved it."""


class Embedder(Protocol):
    """A checkpoint's network for inference: uint8 (n, 3, H, W) RGB to float32 (n, ``dim``), not normalised; any n."""

    dim: int

    def __call__(self, images: np.ndarray) -> np.ndarray: ...


class Profiler(Protocol):
    """Times the engine's operators, and the loop's phases beside them, in a trace of Chrome's format."""

    def wait(self) -> None:
        """Return once all that is queued is computed."""

    def start(self, trace: Path) -> None:
        """Begin a trace that :meth:`stop` writes to the file ``trace``."""

    def phase(self, name: str) -> AbstractContextManager[Any]:
        """Show in the trace what runs inside as ``name``."""

    def stop(self) -> str:
        """Write the trace; returns a table of operators and their times, as text."""


class Engine(Protocol):
    """A library that computes: what it makes for a run and for the commands."""

    name: str

    def check_devices(self, devices: Sequence[Device]) -> None:
        """Check the devices.

        :raises UserError: if the engine cannot compute on one of them.
        """

    def free_memory(self, device: Device) -> int:
        """Bytes of a GPU that no program has taken.

        :param device: one that :meth:`check_devices` accepts.
        """

    def has_bfloat16(self, devices: Sequence[Device]) -> bool:
        """True if networks can be embedded in bfloat16 on such devices, where the processors or cards have it."""

    def deterministic(self, devices: Sequence[Device]) -> AbstractContextManager[None]:
        """Context of a run that gives the same bits each time on these devices; on CPUs every run does.

        :raises UserError: if the engine cannot, when it is entered or when an operator is met that cannot.
        """

    def communicator(self, kvstore: str) -> Communicator:
        """The communicator of this process's run, as its environment says.

        :raises UserError: if the environment contradicts ``kvstore``, or what it asks for is not installed.
        """

    def own_network(self, config: Any, path: Path | None) -> Graph:
        """The graph of a Python file of the user's own, or of the model of timm that ``net_name`` names if there is no
        file: ``data`` to ``fc1_output``.

        :param config: all options, which the file's ``get_symbol`` may ask for by name.
        :raises UserError: if the file's code raises an exception, or does not return a network of one embedding.
        """

    def backbone(self, graph: Graph, start: tuple[Arrays, Arrays], image_shape: tuple[int, int, int],
                 computing: Computing, updating: Updating, communicator: Communicator) -> Backbone:
        """The network on all devices, in training.

        :param start: first values of parameters and auxiliary states; ``image_shape``: (3, H, W).
        :raises UserError: if a device has no numbers of 16 bits.
        """

    def shard(self, device: Device, classes: tuple[int, int], dim: int, on_host: bool, low_products: bool = False,
              **options: Any) -> Shard:
        """Class centres ``start .. stop - 1`` on a device of the engine's.

        :param on_host: W stays in the host's memory, and the rows of a step travel.
        :param low_products: products may have operands of 16 bits, where the engine is faster so.
        :param options: those of a shard: ``normalised``, ``scale``, ``sub_centres``, ``with_bias``, ``seed``,
            ``ceiling``, ``folder`` (of mapped files, with ``on_host``); and ``in_16_bits``, of PyTorch's alone.
        """

    def embedder(self, checkpoint: tuple[str, int], devices: Sequence[Device], batch_size: int,
                 image_shape: tuple[int, int, int], bfloat16: bool = False) -> Embedder:
        """The network of ``<prefix>-symbol.json`` with the arrays of ``<prefix>-<number>.params`` on each device.

        :param checkpoint: prefix and number.
        :param batch_size: images a device at a time; ``image_shape``: (3, H, W).
        :param bfloat16: compute in bfloat16, on CPUs that have it: cosines change by up to 1e-3.
        :raises UserError: if a file cannot be read, the network has no ``fc1_output`` of one row an image, arrays are
            missing or of other shapes, or a device cannot be used.
        """

    def profiler(self) -> Profiler:
        """The profiler of this process."""
