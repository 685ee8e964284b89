# SPDX-License-Identifier: Apache-2.0
"""A trainer for face recognition on MXNet or PyTorch, parallel on x and W.

    from recognition import load_backbone

gives a trained network that embeds images (docs/api.md). An engine is imported when it is first called.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recognition.evaluation.trained_backbone import load_backbone

__version__ = "0.1.0"
__all__ = ["load_backbone"]


def __getattr__(name: str) -> Any:  # PEP 562
    if name != "load_backbone":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from recognition.evaluation.trained_backbone import load_backbone

    return load_backbone
