# SPDX-License-Identifier: Apache-2.0
"""The destinations of a run's numbers beside its history: what TensorBoard, W&B and MLflow have in common."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

DEGREES = np.arange(0, 181, 2)  # edges of the bins of angles


class Scalars(Protocol):
    """A place for the numbers of a run. It has the run's options when it is made."""

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Take a record of the history."""

    def histogram(self, tag: str, step: int, degrees: np.ndarray) -> None:
        """Take angles (n,) in degrees from 0 to 180, for a histogram in bins of two degrees."""

    def close(self, status: int) -> None:
        """End with the run's exit status."""


def named(kind: str, values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record of the history as ``<kind>/<key>`` or, for a verification target, as
    ``<kind>/<target>/<key>``."""
    group = "/".join([kind, *(value for value in values.values() if isinstance(value, str))])
    return {f"{group}/{key}": float(value) for key, value in values.items() if not isinstance(value, str)}
