# SPDX-License-Identifier: Apache-2.0
"""Tables of a module, arrays that do not learn: masks, rotary positions, places that index. They are variables, too.

Such a variable has its numbers as its first values and ``__lr_mult__`` 0: updates leave it as it is.
"""
from __future__ import annotations

import json
from typing import Any

import numpy as np

from recognition.engines.torch.imports import torch
from recognition.networks import sym
from recognition.networks.sym import Symbol

NEGATIVE = -1e30  # for minus infinity: in front of a softmax the same, and JSON and products take it


class Tables:
    """The tables of one graph, one for each array."""

    def __init__(self, images: Symbol, names: dict[int, str]) -> None:
        """:param names: of the module's buffers, by the ``id`` of the tensors."""
        self.arrays: dict[str, np.ndarray] = {}
        self._images, self._names = images, names
        self._made: dict[tuple[Any, ...], Symbol] = {}

    def __call__(self, tensor: torch.Tensor) -> Symbol:
        """A symbol that has the numbers of ``tensor``, which may be of any type, and no gradient."""
        values = np.maximum(tensor.detach().to(torch.float32).numpy(), np.float32(NEGATIVE))
        values = values if values.ndim else values.reshape(1)
        key = (values.shape, values.tobytes())
        if key not in self._made:
            name = self._names.get(id(tensor), f"table{len(self.arrays)}")
            self.arrays[name] = values
            self._made[key] = sym.BlockGrad(named(self._images, name, values.shape, [
                "Constant", {"value": _shortest(values)}], lr_mult=0.0, wd_mult=0.0))
        return self._made[key]


def named(images: Symbol, name: str, shape: Any, start: list[Any], **attrs: Any) -> Symbol:
    """A variable with its first values; nodes behind it are numbered with those behind the images."""
    made = sym.Variable(name, shape=tuple(shape), init=json.dumps(start, separators=(",", ":")), **attrs)
    made._draft.counts = images._draft.counts
    return made


def _shortest(values: np.ndarray) -> Any:
    """The numbers as nested lists, each with no more digits than float32 has."""
    if values.ndim > 1:
        return [_shortest(row) for row in values]
    return [int(value) if value == int(value) else float(str(value)) for value in values]
