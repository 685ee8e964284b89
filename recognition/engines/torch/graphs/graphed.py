# SPDX-License-Identifier: Apache-2.0
"""The training pass of a network on a GPU as two CUDA graphs, one forward and one backward.

Python launches some 1,500 small kernels a step for r50, which can take the host longer than the GPU needs to compute
them. A graph is recorded once and launched as a whole.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Callable

import numpy as np

from recognition.engines.torch.imports import torch

MOMENT_BYTES = 4 << 20  # of gradients between two events in a recorded pass


def can_record(device: torch.device) -> bool:
    """Whether passes on ``device`` can be recorded at all."""
    return bool(device.type == "cuda")


class Staged:
    """A tensor on a GPU into which arrays are copied through pinned memory, so that the host need not wait."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.there = torch.empty(shape, dtype=dtype, device=device)
        self._here = torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")
        self._read = torch.cuda.Event()

    def fill(self, array: np.ndarray) -> None:
        """Queue the copy of an array of the same shape and type, which may change at once."""
        self._read.synchronize()  # the copy before this one, which a step has long waited for
        self._here.copy_(torch.from_numpy(np.require(array, requirements=["C", "W"])))
        self.there.copy_(self._here, non_blocking=True)
        self._read.record(torch.cuda.current_stream(self.there.device))


class Moments:
    """Events in a recording behind every so many bytes of gradients, for which streams outside of the graph can wait.

    They are external events, which PyTorch has from 2.8 on, but not on ROCm.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream, self._bytes = stream, 0
        self._events: list[torch.cuda.Event] = []  # all of them: the graph needs them as long as it lives
        self._open: dict[str, int] = {}  # where each gradient lies that is behind the last event
        self._found: dict[str, tuple[int, torch.cuda.Event]] = {}

    def see(self, name: str, argument: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """A gradient whose work has just been recorded, laid out as its argument. Autograd calls it, in a thread of its
        own."""
        with torch.cuda.stream(self._stream):
            if gradient.stride() != argument.stride():
                gradient = _copied(gradient, argument)
            self._open[name], self._bytes = gradient.data_ptr(), self._bytes + gradient.nbytes
            if self._bytes >= MOMENT_BYTES:
                self._record()
        return gradient

    def _record(self) -> torch.cuda.Event:
        event, self._bytes = torch.cuda.Event(external=True), 0
        event.record()
        self._events.append(event)
        self._found.update({name: (place, event) for name, place in self._open.items()})
        self._open = {}
        return event

    def of(self, gradients: Mapping[str, torch.Tensor]) -> dict[str, torch.cuda.Event]:
        """The event behind each gradient; behind all of the recording for those that were copied since, or not seen."""
        end = self._record()
        return {name: self._found[name][1] if self._found.get(name, (0,))[0] == gradient.data_ptr() else end
                for name, gradient in gradients.items()}


class GraphedPass:
    """Features and gradients for batches of one shape, bit for bit those of the operators one by one.

    Recording computes nothing and changes no number. The operators must have run with this shape before: then the
    libraries' and Triton's kernels are chosen and compiled. What is recorded reads and writes the same memory each
    time: parameters, moving statistics, images, gradients, and all maps between, which stay taken.
    """

    def __init__(self, compute: Callable[[torch.Tensor], torch.Tensor], arguments: Mapping[str, torch.Tensor],
                 shape: tuple[int, ...], generator: torch.Generator,
                 streams: Sequence[torch.cuda.Stream], with_moments: bool = False) -> None:
        """:param compute: features (n, D), float32, of images on the device.
        :param arguments: the parameters; ``shape``: of images, uint8.
        :param generator: what ``compute`` draws from, on the device. A replay draws from where the generator then is.
        :param streams: one to record on, and one beside the pass. PyTorch has 32 of a device, and gives them again.
        :param with_moments: whether gradients are to be announced while the backward pass goes on.
        :raises Exception: if something that ``compute`` does cannot be recorded. The generator is then of no more use.
        """
        device, wanted = generator.device, list(arguments.values())
        stream, self._beside = streams
        self.images = torch.empty(shape, dtype=torch.uint8, device=device)
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()  # the maps of the graphs take the place of those of the steps before
        with torch.cuda.device(device):
            self._forward.register_generator_state(generator)
            pool = torch.cuda.graph_pool_handle()
            with _recorded(self._forward, stream, pool):
                features = compute(self.images)
            self._d_features = Staged(tuple(features.shape), features.dtype, device)
            with _recorded(self._backward, stream, pool):
                # Not backward(): it would add to tensors' ``grad`` on the stream of the steps before.
                self._moments = Moments(stream) if with_moments else None
                with _seen(self._moments, arguments):
                    found = torch.autograd.grad(features, wanted, self._d_features.there, allow_unused=True)
                found = _apart(found, wanted, (features, self._d_features.there))
                there = {name: gradient for name, gradient in zip(arguments, found) if gradient is not None}
                self._behind = self._moments.of(there) if self._moments else {}
        torch.cuda.synchronize(device)  # the recordings have set the generator's memory on their own stream
        self._features = features.detach()
        self.gradients = {name: torch.zeros_like(argument, requires_grad=False) if gradient is None else gradient
                          for (name, argument), gradient in zip(arguments.items(), found)}

    def forward(self) -> torch.Tensor:
        """Features (n, D) of :attr:`images`, which the caller has filled. The gradients of the last pass are lost."""
        self._forward.replay()
        return self._features.clone()

    def backward(self, d_features: np.ndarray | torch.Tensor) -> None:
        """Fill :attr:`gradients` from those of the last features, float32 (n, D)."""
        if isinstance(d_features, np.ndarray):
            self._d_features.fill(d_features)
        else:
            self._d_features.there.copy_(d_features)
        self._backward.replay()

    def announce(self, ready: Callable[[torch.Tensor], None], order: Sequence[str]) -> None:
        """Call ``ready`` with the gradients of the arguments that ``order`` names, while the backward pass goes on. The
        current stream is then one beside it, which waits for the event behind each gradient after the call."""
        waited: torch.cuda.Event | None = None
        with torch.cuda.stream(self._beside) if self._behind else contextlib.nullcontext():
            for name in order:
                ready(self.gradients[name])
                if self._behind and self._behind[name] is not waited:
                    waited = self._behind[name]
                    self._beside.wait_event(waited)


@contextlib.contextmanager
def _seen(moments: Moments | None, arguments: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Context in which autograd shows each argument's gradient as soon as it is whole."""
    handles = [argument.register_hook(partial(moments.see, name, argument))
               for name, argument in arguments.items()] if moments else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _apart(gradients: Sequence[torch.Tensor | None], arguments: Sequence[torch.Tensor],
           others: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    """The gradients, each laid out as its argument and in memory of its own: copies of those that are not.

    PyTorch may give one tensor for two arguments, and ``backward()`` copies likewise.
    """
    taken = [_bytes(tensor) for tensor in others]
    found: list[torch.Tensor | None] = []
    for gradient, argument in zip(gradients, arguments):
        if gradient is not None:
            here = _bytes(gradient)
            if gradient.stride() != argument.stride() or any(here[0] < end and start < here[1] for start, end in taken):
                gradient = _copied(gradient, argument)
            taken.append(_bytes(gradient))
        found.append(gradient)
    return found


def _copied(gradient: torch.Tensor, argument: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(argument, requires_grad=False).copy_(gradient)


def _bytes(tensor: torch.Tensor) -> tuple[int, int]:
    """Where a tensor without gaps begins and ends in memory."""
    return tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()


@contextlib.contextmanager
def _recorded(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, pool: Any) -> Iterator[None]:
    """Context in which work of the current stream is recorded rather than done. ``torch.cuda.graph`` would leave the
    current stream changed after a recording that CUDA has broken off."""
    with torch.cuda.stream(stream):
        # Other threads, which draw classes or watch NCCL, may go on and wait for the GPU, as this one must not.
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            yield
        except BaseException:
            with contextlib.suppress(RuntimeError):  # that CUDA has broken it off; the first error says why
                _end(graph, stream, pool)
            raise
        _end(graph, stream, pool)


def _end(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, pool: Any) -> None:
    try:
        graph.capture_end()
    except RuntimeError:  # then it has left out to tell the allocator, which would keep the memory
        with contextlib.suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(stream.device.index, pool)
            torch._C._cuda_releasePool(stream.device.index, pool)
        raise
