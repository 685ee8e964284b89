# SPDX-License-Identifier: Apache-2.0
"""The operators in PyTorch: for each name of the table in ``recognition/networks/operators`` a function of tensors.

The rooms are those of that table. A function takes the parsed attributes and the inputs and returns the output, or a
tuple of outputs. Functions of ``OF_THE_PASS`` take the :class:`Pass` before them.
"""
from __future__ import annotations

from typing import Any, Callable

from recognition.engines.torch.operators import arithmetic, layers, norms, pieces, pooling, reductions, reshaping

__all__ = ["FUNCTIONS", "OF_THE_PASS"]

FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: function for room in (layers, pooling, norms, arithmetic, reductions, reshaping, pieces)
    for name, function in room.FUNCTIONS.items()}
OF_THE_PASS: dict[str, Callable[..., Any]] = {**layers.OF_THE_PASS, **norms.OF_THE_PASS}
