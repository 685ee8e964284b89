# SPDX-License-Identifier: Apache-2.0
"""Legacy checkpoints: ``PREFIX-symbol.json`` and ``PREFIX-%04d.params``, readable by plain MXNet."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from recognition.io.checksums import forget_sum, write_bytes
from recognition.io.files import writing
from recognition.io.names import params_file
from recognition.io.params import write_arrays
from recognition.networks.graph import Graph


def save_checkpoint(prefix: Path, number: int, graph: Graph, parameters: Mapping[str, np.ndarray],
                    auxiliary: Mapping[str, np.ndarray]) -> Path:
    """Write a network and its arrays for ``mx.model.load_checkpoint``; returns the path of the arrays.

    MXNet's own ``save`` reports no error when the end of a file no longer fits on the disk.
    """
    arrays = {f"arg:{name}": [value] for name, value in parameters.items()}
    arrays.update({f"aux:{name}": [value] for name, value in auxiliary.items()})
    write_bytes(prefix.with_name(f"{prefix.name}-symbol.json"), graph.to_json().encode())
    target = prefix.with_name(params_file(prefix.name, number))
    write_arrays(target, arrays)
    return target


def drop_checkpoints(prefix: Path, number: int, last: int, best: int) -> None:
    """Remove the arrays numbered 1 to ``number``, except the ``last`` ones and those numbered ``best``."""
    found = {int(path.stem.rpartition("-")[2]): path for path in prefix.parent.glob(f"{prefix.name}-*.params")
             if path.stem.rpartition("-")[2].isdecimal()}
    for old in [n for n in sorted(found) if 0 < n <= number][:-last]:
        if old != best:
            forget_sum(found[old])
            with writing(found[old]):
                found[old].unlink()
