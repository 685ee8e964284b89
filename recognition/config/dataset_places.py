# SPDX-License-Identifier: Apache-2.0
"""The values of ``--dataset`` beside the names of presets: folders, ``synthetic:N``, and several sets."""
from __future__ import annotations

import os
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from recognition.errors import UserError

_SYNTHETIC = re.compile(r"synthetic:0*([1-9][0-9]{0,7})")
_SIDES = re.compile(r"[0-9]+,([0-9]{1,4}),([0-9]{1,4})")
_LAST = ("lfw", "cfp_fp", "agedb_30")  # the recipes' targets: the last one says which verification is the best
_LONGEST_NAME = 80


def preset_of(text: str, presets: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, Any] | None:
    """The options of the set or sets that ``text`` names; None if it is no place.

    :param presets: those of the file, which a list may name, too.
    :param where: the flag or key, for messages.
    :raises UserError: if presets in a list say different things.
    """
    if found := _SYNTHETIC.fullmatch(text):
        return {"dataset_path": text, "num_classes": int(found[1]), "val_targets": []}
    if os.path.isdir(text):
        return {"dataset_path": text, "num_classes": 0, "val_targets": _targets(Path(text)), **_shape(Path(text))}
    parts = [part.strip() for part in text.split(",")]
    if len(parts) < 2 or "" in parts:
        return None
    chosen = [dict(presets[part]) if part in presets else preset_of(part, {}, where) for part in parts]
    if None in chosen:
        if any(chosen):
            raise UserError(f"{where}: found {parts[chosen.index(None)]!r} in {text!r}, expected a dataset preset, a "
                            "folder or synthetic:N in each place")
        return None
    return _joined(parts, [preset for preset in chosen if preset is not None], where)


def name_of_sets(dataset: str) -> str:
    """The part of the name of a run's folder that tells its sets: a preset's name as it is, of a folder the last part
    of its path."""
    parts = [os.path.basename(os.path.abspath(part)) if os.sep in part or part in (".", "..") else part
             for part in dataset.replace("synthetic:", "synthetic-").split(",")]
    name = "+".join(part.strip() for part in parts)
    if len(os.fsencode(name)) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME // 4]}-{sha256(os.fsencode(name)).hexdigest()[:16]}"


def _joined(names: list[str], presets: list[dict[str, Any]], where: str) -> dict[str, Any]:
    """The presets of several sets merged into one: all places, all verification sets, and what else each says.

    :raises UserError: if two say different things.
    """
    places = [place for preset in presets for place in (
        preset["dataset_path"] if isinstance(preset.get("dataset_path"), (list, tuple))
        else [preset.get("dataset_path", "")])]
    targets = list(dict.fromkeys(target for preset in presets for target in _listed(preset.get("val_targets", ()))))
    joined: dict[str, Any] = {}
    for name, preset in zip(names, presets):
        for key, value in preset.items():
            if key in ("dataset_path", "num_classes", "val_targets"):
                continue
            if key in joined and _plain(joined[key]) != _plain(value):
                raise UserError(f"{where}: {key} is {value!r} in {name!r} and {joined[key]!r} in one before it, "
                                "expected the same in all sets")
            joined[key] = value
    return {**joined, "dataset_path": places, "num_classes": 0, "val_targets": in_order(targets)}


def _listed(value: Any) -> list[str]:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else list(value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _targets(folder: Path) -> list[str]:
    """The names of all verification sets in a folder."""
    return in_order(sorted(path.stem for path in folder.glob("*.bin")))


def in_order(targets: list[str]) -> list[str]:
    """The targets with the recipes' behind the others."""
    return [name for name in targets if name not in _LAST] + [name for name in _LAST if name in targets]


def _shape(folder: Path) -> dict[str, Any]:
    """The image shape that a property file says; nothing without one, or if it says nothing that can be."""
    try:
        with open(folder / "property", encoding="utf-8", errors="replace") as file:
            found = _SIDES.match(file.readline(100).replace(" ", ""))
    except OSError:
        return {}
    return {"image_shape": (int(found[1]), int(found[2]), 3)} if found and found[1] == found[2] else {}
