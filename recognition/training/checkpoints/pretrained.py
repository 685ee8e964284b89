# SPDX-License-Identifier: Apache-2.0
"""The start from a checkpoint: loading its arrays into the network, with a line that accounts for all of them."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Callable

import numpy as np

from recognition.errors import UserError
from recognition.io.centres import is_of_centres
from recognition.io.params import read_arrays

FITS = "it fits --network "  # the beginning of a hint that names the checkpoint's own network
Arrays = dict[str, np.ndarray]


def checkpoint_path(prefix: str, number: int) -> Path:
    """The file of a checkpoint, ``PREFIX-%04d.params``."""
    return Path(f"{prefix}-{number:04d}.params")


def read_params(path: Path) -> tuple[Arrays, Arrays]:
    """Parameters and auxiliary states of a ``.params`` file, as float32, without those of the class centres.

    :raises UserError: if it is no file of named arrays.
    """
    file = read_arrays(path)
    groups: dict[str, Arrays] = {"arg": {}, "aux": {}}
    for key, value in zip(file.names, file.arrays):
        group, _, name = key.partition(":")
        if group not in groups:
            raise UserError(f"{path}: not a checkpoint: found an array named {key!r}, expected arg:... and aux:...")
        if not is_of_centres(key):
            groups[group][name] = np.asarray(value, np.float32)
    if not file.names:
        raise UserError(f"{path}: not a checkpoint: found arrays without names, expected arg:... and aux:...")
    return groups["arg"], groups["aux"]


def take_over(path: Path, found: tuple[Arrays, Arrays], wanted: tuple[Arrays, Arrays],
              advice: Callable[[dict[str, tuple[int, ...]]], str],
              renamed: Callable[[], Mapping[str, str]] = dict) -> str:
    """Copy arrays that fit from ``found`` into ``wanted`` (each: parameters, auxiliary states); returns a summary line.

    :param advice: gives a hint about the network with arrays of these shapes, if it is not exactly this one.
    :param renamed: gives, by names of ``wanted`` that are not found, the names under which they are.
    :raises UserError: if the network is not the checkpoint's: nothing fits, a shape differs, or arrays are missing and
        another network has exactly these.
    """
    have = {name: value for group in found for name, value in group.items()}
    need = {name: value for group in wanted for name, value in group.items()}
    by_place = {} if have.keys() >= need.keys() else _renamed(have, need, renamed())
    have = {**{name: value for name, value in have.items() if name not in by_place.values()},
            **{name: have[other] for name, other in by_place.items()}}
    shapes = {name: value.shape for name, value in have.items()}
    differ = [name for name in need if name in have and shapes[name] != need[name].shape]
    loaded = [name for name in need if name in have and name not in differ]
    missing, left = [n for n in need if n not in have], [n for n in have if n not in need]
    if differ:
        name = differ[0]
        raise UserError(f"{path}: the network is another: {len(differ)} of its arrays have a wrong shape (the first, "
                        f"{name}: found {shapes[name]}, expected {need[name].shape}), {len(loaded)} would fit, "
                        f"{len(missing)} are missing{_listed(missing)}, {len(left)} left over{_listed(left)}; "
                        f"{advice(shapes)}")
    if not loaded:
        raise UserError(f"{path}: none of its {len(have)} arrays ({_few(list(have))}) is one of the network's "
                        f"({_few(list(need))}); {advice(shapes)}")
    other = f"; {advice(shapes)}" if missing or left else ""
    also = [f"{other} as {name}" for name, other in by_place.items()]
    places = f", {len(also)} of them by their place in the network{_listed(also)}" if also else ""
    account = (f"{len(loaded)} arrays loaded{places}, {len(missing)} missing{_listed(missing)}, "
               f"{len(left)} left over{_listed(left)}{other}")
    if missing and FITS in other:  # a deeper network of the same family has all arrays of the checkpoint
        raise UserError(f"{path}: the network is another, it would be {account}")
    for name in loaded:
        need[name][...] = have[name]
    return f"{path}: {account}"


def _renamed(have: Arrays, need: Arrays, names: Mapping[str, str]) -> dict[str, str]:
    """The pairs of ``names`` to use: the checkpoint has the array under the other name alone, in the shape needed."""
    return {name: other for name, other in names.items()
            if name in need and name not in have and other in have and other not in need
            and have[other].shape == need[name].shape}


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _listed(names: list[str]) -> str:
    return f" ({_few(names)})" if names else ""
