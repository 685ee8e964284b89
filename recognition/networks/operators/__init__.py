# SPDX-License-Identifier: Apache-2.0
"""The one table of operators: all that networks of images are made of, by MXNet's names and by their other names."""
from __future__ import annotations

from recognition.networks.operators import arithmetic, layers, norms, pieces, reductions, reshaping
from recognition.networks.operators.operator import Operator

__all__ = ["OPERATORS", "Operator"]

OPERATORS: dict[str, Operator] = {name: operator
                                  for room in (layers, norms, arithmetic, reductions, reshaping, pieces)
                                  for operator in room.OPERATORS
                                  for name in (operator.name, *operator.aliases)}
