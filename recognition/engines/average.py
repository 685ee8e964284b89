# SPDX-License-Identifier: Apache-2.0
"""The exponential moving average of a backbone's weights, in the engine's arrays."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

from recognition.engines.interface import Arrays, BackboneState

Group = Mapping[str, Any]


class Average:
    """Averages of the parameters and of each replica's moving statistics: ``a += (1 - d) (w - a)`` after each update,
    from their first values on.

    After ``t`` steps ``d`` is ``min(decay, (1 + t) / (10 + t))``, as in TensorFlow's ExponentialMovingAverage with
    ``num_updates``: the first values are soon forgotten. It needs no state but the arrays.
    """

    def __init__(self, decay: float, parameters: Group, auxiliary: Sequence[Group],
                 copied: Callable[[Group], dict[str, Any]], blend: Callable[[Group, Group, float], None]) -> None:
        """:param auxiliary: the statistics of each replica.
        :param copied: copies arrays of the engine; ``blend(a, w, share)`` moves arrays ``a`` by a share of the way to
            those of ``w``.
        """
        self._decay, self._blend = decay, blend
        self.parameters, self.auxiliary = copied(parameters), [copied(arrays) for arrays in auxiliary]

    def move(self, parameters: Group, auxiliary: Sequence[Group], steps: int) -> None:
        """Take in the values after ``steps`` steps."""
        share = 1 - min(self._decay, (1 + steps) / (10 + steps))
        for averages, arrays in zip([self.parameters, *self.auxiliary], [parameters, *auxiliary]):
            self._blend(averages, arrays, share)


def averages_of(state: BackboneState) -> tuple[Arrays, list[Arrays]]:
    """The averages of a state; of one without them its parameters and statistics, which an average then begins with."""
    if state.average is None or state.average_auxiliary is None:
        return state.parameters, state.auxiliary
    return state.average, state.average_auxiliary
