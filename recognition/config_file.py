# SPDX-License-Identifier: Apache-2.0
"""Reads a config.py of the legacy form: EasyDicts ``config``, ``network``, ``dataset``, ``loss``, ``default``, and a
function ``generate_config`` that lays presets over ``config`` and ``default``. Such a file is code and is run."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recognition.config import OPTIONS
from recognition.errors import UserError
from recognition.kinds import nearest
from recognition.user_code import errors_in_one_line, run_file

ROOT = Path(__file__).resolve().parents[1]
PRESETS = ("loss", "network", "dataset")
NEEDED = (("loss", "loss_name"), ("network", "net_name"), ("dataset", "dataset_path"))
# The keys that a file may hold: all but those that say where the options come from.
KEYS = [key for key in OPTIONS if key not in ("entry", "config_file")]


class ConfigFile:
    """One config.py, run once. ``name`` stands for it in messages."""

    def __init__(self, path: Path, name: str):
        self.path = path
        self.name = name
        self.module = run_file(path, name)
        for key in ("config", "default", *PRESETS):
            if not isinstance(getattr(self.module, key, None), Mapping):
                raise UserError(f"{name}: found no EasyDict named {key}, expected config, network, dataset, loss, "
                                "default and generate_config, as in sample_config.py")
        if not callable(getattr(self.module, "generate_config", None)):
            raise UserError(f"{name}: found no function generate_config(network, dataset, loss)")

    def default(self, key: str) -> Any:
        """The value of ``key`` before any preset: the file's ``default``, else the program's."""
        return self.module.default.get(key, OPTIONS[key].default)

    def presets(self, kind: str) -> dict[str, Any]:
        """The presets of a kind: loss, network or dataset."""
        return {name: preset for name, preset in getattr(self.module, kind).items() if isinstance(preset, Mapping)}

    def lay_presets(self, chosen: Mapping[str, str], where: Mapping[str, str]) -> dict[str, Any]:
        """Lay the ``chosen`` preset of each kind over the file's options and return them all, not yet checked.

        An option that a flag can set is read from ``default``, any other from ``config``, as the legacy programs did;
        the other of the two where only that has it. ``where`` says who chose a preset, for messages.
        """
        for kind in PRESETS:
            known = self.presets(kind)
            if chosen[kind] not in known:
                raise UserError(f"{where[kind]}: found {chosen[kind]!r}, expected a {kind} preset of {self.name}: "
                                f"{', '.join(known)}{nearest(chosen[kind], known)}")
        with errors_in_one_line(self.path, self.name):
            self.module.generate_config(chosen["network"], chosen["dataset"], chosen["loss"])
        config, default = dict(self.module.config), dict(self.module.default)
        for key in (*config, *default):
            if key not in KEYS:
                raise UserError(f"{self.name}: found the unknown key {key!r}{nearest(key, KEYS)}; "
                                f"expected {', '.join(KEYS)}")
        values = {**default, **config, **{key: default[key] for key in default if OPTIONS[key].metadata["flag"]}}
        for kind, key in NEEDED:
            if key not in values:
                raise UserError(f"{self.name}: found no {key} in the {kind} preset {chosen[kind]!r}")
        return values


def open_config(named: str = "", root: Path = ROOT) -> ConfigFile:
    """The file ``named``, else config.py beside the entry points, else sample_config.py there."""
    if named:
        return ConfigFile(Path(named), named)
    name = "config.py" if (root / "config.py").is_file() else "sample_config.py"
    return ConfigFile(root / name, name)
