# SPDX-License-Identifier: Apache-2.0
"""A stand-in for ``torch.cuda`` on CPUs, as far as recording a pass needs it.

A recording notes each ATen operator of the forward and of the backward pass with its very tensors. Where it ends,
what it wrote in place is put back, and what it made is NaN, as CUDA has computed nothing. A replay computes the noted
operators again on the same tensors: whatever else Python did in the pass does not happen again.
"""
from __future__ import annotations

import contextlib
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402


def tensors(values: Any) -> list[Any]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


class Notes(TorchDispatchMode):
    """The operators of a recording."""

    def __init__(self, generators: list[int]) -> None:
        super().__init__()
        self.generators, self.operators = generators, []
        self.before: list[tuple[Any, Any]] = []  # tensors that are written in place, and copies
        self.made: list[Any] = []
        self.broken_off = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            self.broken_off = True
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Generator) and leaf._cdata not in self.generators:
                raise RuntimeError("Attempt to increase offset for a CUDA generator not in capture mode.")
        schema = func._schema
        writes = any(argument.alias_info and argument.alias_info.is_write for argument in schema.arguments)
        views = not writes and any(value.alias_info for value in schema.returns)
        if writes:
            self.before += [(tensor, tensor.clone()) for tensor in tensors(args[0])]
        result = func(*args, **kwargs)
        if not views:
            self.operators.append((func, args, kwargs, [] if writes else tensors(result)))
        if not views and not writes:
            self.made += tensors(result)
        return result


class Graph:
    """A :class:`torch.cuda.CUDAGraph`."""

    recording = False
    replays = 0

    def __init__(self) -> None:
        self._generators: list[Any] = []

    def register_generator_state(self, generator: Any) -> None:
        self._generators.append(generator)

    def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
        self._states = [generator.get_state() for generator in self._generators]
        self._notes = Notes([generator._cdata for generator in self._generators])
        self._notes.__enter__()
        Graph.recording = True

    def capture_end(self) -> None:
        Graph.recording = False
        self._notes.__exit__(None, None, None)
        for tensor, before in reversed(self._notes.before):
            tensor.data.copy_(before)
        for tensor in self._notes.made:
            if tensor.is_floating_point():
                tensor.data.fill_(float("nan"))
        for generator, state in zip(self._generators, self._states):
            generator.set_state(state)
        if self._notes.broken_off:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    @torch.no_grad()
    def replay(self) -> None:
        Graph.replays += 1
        for func, args, kwargs, made in self._notes.operators:
            result = func(*args, **kwargs)
            for place, found in zip(made, tensors(result)):
                place.data.copy_(found)


class Other:
    """Streams and events, which do nothing."""

    def __init__(self, *_: Any) -> None:
        self.device = torch.device("cpu")

    def synchronize(self) -> None: ...

    def record(self, stream: Any) -> None: ...


def install(patch: pytest.MonkeyPatch) -> type[Graph]:
    """Let replicas on CPUs record their passes; returns the class that counts replays."""
    fakes: dict[str, Any] = {
        **dict.fromkeys(("Stream", "Event", "current_stream"), Other),
        **dict.fromkeys(("graph_pool_handle", "synchronize", "empty_cache"), lambda *_: None),
        **dict.fromkeys(("stream", "device"), lambda _: contextlib.nullcontext()),
        **dict.fromkeys(("is_initialized", "is_current_stream_capturing"), lambda: Graph.recording),
        "CUDAGraph": Graph}
    for name, fake in fakes.items():
        patch.setattr(torch.cuda, name, fake)
    patch.setattr("recognition.engines.torch.replica.can_record", lambda device: True)
    patch.setattr(Graph, "replays", 0)
    return Graph
