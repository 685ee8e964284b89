# SPDX-License-Identifier: Apache-2.0
"""Names of files that several rooms read."""
from __future__ import annotations

MANIFEST = "manifest.json"  # of a training state


def params_file(prefix: object, number: int) -> str:
    """The file of a checkpoint's arrays, ``PREFIX-%04d.params``."""
    return f"{prefix}-{number:04d}.params"
