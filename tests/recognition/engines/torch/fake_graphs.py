# SPDX-License-Identifier: Apache-2.0
"""A stand-in for ``torch.cuda`` on CPUs, as far as recorded passes and copies beside them need it.

A recording notes each ATen operator of the forward and of the backward pass with its very tensors. Where it ends,
what it wrote in place is put back, and what it made is NaN, as CUDA has computed nothing. A replay computes the noted
operators again on the same tensors: whatever else Python did in the pass does not happen again.

Copies of images on another stream than the default one are done as late as events, waits and other operators of the
stream allow. With :attr:`Graph.late` so is a replay.
"""
from __future__ import annotations

import contextlib
import ctypes
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any, Callable

import numpy as np
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

    recording: Graph | None = None
    replays = 0
    late = False  # whether a replay does nothing until :meth:`run`, or until somebody waits for one of its events

    def __init__(self) -> None:
        self._generators: list[Any] = []
        self.todo: deque[Any] = deque()  # operators and events of the last replay
        self._number = 0  # of the last replay

    def register_generator_state(self, generator: Any) -> None:
        self._generators.append(generator)

    def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
        self._states = [generator.get_state() for generator in self._generators]
        self._notes = Notes([generator._cdata for generator in self._generators])
        self._notes.__enter__()
        Graph.recording = self

    def capture_end(self) -> None:
        Graph.recording = None
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

    def note(self, event: Event) -> None:
        self._notes.operators.append(event)

    def replay(self) -> None:
        Graph.replays += 1
        self._number += 1
        self.run()
        self.todo.extend(self._notes.operators)
        if not Graph.late:
            self.run()

    def until(self, event: Event) -> Callable[[], None]:
        """What brings the last replay until now to an event."""
        number = self._number
        return lambda: self.run(event) if number == self._number else None

    @torch.no_grad()
    def run(self, to: Event | None = None) -> None:
        """Do all that is left, or up to an event."""
        while self.todo and (to is None or to in self.todo):
            operator = self.todo.popleft()
            if not isinstance(operator, Event):
                func, args, kwargs, made = operator
                result = func(*args, **kwargs)
                for place, found in zip(made, tensors(result)):
                    place.data.copy_(found)


class Stream:
    """A :class:`torch.cuda.Stream`: what it is to do, in order, and how much of it is done. The default one is at once.
    """

    at_once = False

    def __init__(self, *_: Any) -> None:
        self.device, self._queue, self._done = torch.device("cpu"), list[Callable[[], object]](), 0

    def put(self, action: Callable[[], object]) -> int:
        self._queue.append(action)
        place = len(self._queue)
        if self.at_once:
            self.run()
        return place

    def run(self, to: int | None = None) -> None:
        while self._done < (len(self._queue) if to is None else to):
            self._done += 1
            self._queue[self._done - 1]()

    def wait_event(self, event: Event) -> None:
        self.put(event.recorded())


DEFAULT = Stream()
DEFAULT.at_once = True
_current = [DEFAULT]


class Event:
    """A :class:`torch.cuda.Event`."""

    def __init__(self, external: bool = False) -> None:
        if external and torch.version.hip:
            raise RuntimeError("External events are disallowed in rocm")
        self._stream, self._place, self._external = DEFAULT, 0, external
        self._graph: Graph | None = None

    def record(self, stream: Stream | None = None) -> None:
        if self._external and Graph.recording:
            self._graph = Graph.recording
            self._graph.note(self)
        else:
            self._stream = stream or _current[-1]
            self._place = self._stream.put(lambda: None)

    def recorded(self) -> Callable[[], None]:
        """What does all that stands before the last record until now."""
        return self._graph.until(self) if self._graph else partial(self._stream.run, self._place)

    def synchronize(self) -> None:
        self.recorded()()


class Late(TorchDispatchMode):
    """Puts copies of images off that a stream is to do."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default and args[0].dtype == torch.uint8 and not Graph.recording:
            there, here = memory(args[0]), memory(args[1])
            self._stream.put(lambda: np.copyto(there, here))
            return args[0]
        if func not in (torch.ops.aten.empty_like.default, torch.ops.aten.lift_fresh.default):  # which do nothing
            self._stream.run()
        return func(*args, **(kwargs or {}))


def memory(tensor: Any) -> np.ndarray:
    """The bytes of a tensor without gaps, which this does not keep: so it is seen if nobody else does."""
    assert tensor.is_contiguous()
    return np.ctypeslib.as_array((ctypes.c_uint8 * tensor.nbytes).from_address(tensor.data_ptr()))


@contextlib.contextmanager
def current(stream: Stream) -> Iterator[None]:
    """Context in which a stream is the current one."""
    _current.append(stream)
    try:
        with Late(stream):
            yield
    finally:
        _current.pop()


def install(patch: pytest.MonkeyPatch) -> type[Graph]:
    """Let replicas on CPUs record their passes; returns the class that counts replays."""
    fakes: dict[str, Any] = {
        "Stream": Stream, "Event": Event, "stream": current, "current_stream": lambda *_: _current[-1],
        **dict.fromkeys(("graph_pool_handle", "synchronize", "empty_cache"), lambda *_: None),
        "device": lambda _: contextlib.nullcontext(),
        **dict.fromkeys(("is_initialized", "is_current_stream_capturing"), lambda: Graph.recording is not None),
        "CUDAGraph": Graph}
    for name, fake in fakes.items():
        patch.setattr(torch.cuda, name, fake)
    patch.setattr("recognition.engines.torch.replica.can_record", lambda device: True)
    patch.setattr(torch.Tensor, "is_pinned", lambda tensor: True)
    patch.setattr(Graph, "replays", 0)
    return Graph
