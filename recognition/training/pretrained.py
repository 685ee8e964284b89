# SPDX-License-Identifier: Apache-2.0
"""Starting from a checkpoint: which of its arrays the network takes, and an account of all of them."""
from __future__ import annotations

import numpy as np

from recognition.errors import UserError
from recognition.mxnet_compat import mx

Arrays = dict[str, np.ndarray]


def read_params(path: str) -> tuple[Arrays, Arrays]:
    """Parameters and auxiliary states of a ``.params`` file.

    :raises UserError: if MXNet can't read it as a dictionary of arrays.
    """
    try:
        arrays = mx.nd.load(path)
        groups: dict[str, Arrays] = {"arg": {}, "aux": {}}
        for key, value in arrays.items():
            group, name = key.split(":", 1)
            groups[group][name] = value.asnumpy()
    except (mx.MXNetError, OSError, AttributeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: not a checkpoint, which holds arrays named arg:... and aux:... ({reason})") from None
    return groups["arg"], groups["aux"]


def take_over(path: str, found: tuple[Arrays, Arrays], wanted: tuple[Arrays, Arrays]) -> str:
    """Copy what fits from ``found`` into ``wanted`` (both: parameters, auxiliary states); returns a line that sums up.

    Arrays of the class centres (``fc7_...``) are none of the backbone's and are not counted as left over.

    :raises UserError: if nothing fits or a shape differs: the network is another than the checkpoint's.
    """
    have = {name: value for group in found for name, value in group.items() if not name.startswith("fc7_")}
    need = {name: value for group in wanted for name, value in group.items()}
    differ = [name for name in need if name in have and have[name].shape != need[name].shape]
    if differ:
        name = differ[0]
        raise UserError(f"{path}: {len(differ)} arrays do not fit the network, the first is {name}: found "
                        f"{have[name].shape}, expected {need[name].shape}; choose the checkpoint's own --network")
    loaded = [name for name in need if name in have]
    if not loaded:
        raise UserError(f"{path}: none of its {len(have)} arrays ({_few(list(have))}) is one of the network's "
                        f"({_few(list(need))}); choose the checkpoint's own --network")
    for name in loaded:
        need[name][...] = have[name]
    missing, left = [n for n in need if n not in have], [n for n in have if n not in need]
    return (f"{path}: {len(loaded)} arrays loaded, {len(missing)} missing{_listed(missing)}, "
            f"{len(left)} left over{_listed(left)}")


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _listed(names: list[str]) -> str:
    return f" ({_few(names)})" if names else ""
