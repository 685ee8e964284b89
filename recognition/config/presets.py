# SPDX-License-Identifier: Apache-2.0
"""Reader of a legacy config.py: EasyDicts ``config``, ``network``, ``dataset``, ``loss``, ``default``, and a function
``generate_config`` that lays presets over ``config`` and ``default``. Such a file is code and is run."""
from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from recognition.config import arcface_torch
from recognition.config.dataset_places import preset_of
from recognition.config.easy_dict import EasyDict
from recognition.config.groups.network import FAMILIES
from recognition.config.options import OPTIONS, Config, option_key
from recognition.config.other_trainers import SECRETS, instead
from recognition.config.types import nearest
from recognition.config.user_code import errors_in_one_line, find_network, is_symbol_file, run_file, words_of
from recognition.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
# Partial FC's default.py names a network whose depth its resnet.py does not have.
UNDEFINED = {"r122": "; Partial FC names it and says nowhere what its 122 layers are, but a checkpoint has its "
                     "network: --network PREFIX-symbol.json"}
PRESETS = ("loss", "network", "dataset")
NEEDED = (("loss", "loss_name"), ("network", "net_name"), ("dataset", "dataset_path"))
# The options that a file may set: all but those that describe the file itself.
KEYS = [key for key in OPTIONS if key not in ("entry", "config_file", "own_keys")]
TYPO = 0.8  # a key at least so similar to one of ours counts as mistyped: data_mirror for data_rand_mirror


class ConfigFile:
    """A config.py, or a config file of arcface_torch, run once. ``name`` is its name in messages."""

    def __init__(self, path: Path, name: str):
        self.path = path
        self.name = name
        module = run_file(path, name)
        theirs = arcface_torch.is_of_arcface_torch(module)
        self.module = arcface_torch.as_presets(module, path, name) if theirs else module
        for key in ("config", "default", *PRESETS):
            if not isinstance(getattr(self.module, key, None), Mapping):
                raise UserError(f"{name}: found no EasyDict named {key}, expected config, network, dataset, loss, "
                                "default and generate_config, as in sample_config.py")
        if not callable(getattr(self.module, "generate_config", None)):
            raise UserError(f"{name}: found no function generate_config(network, dataset, loss)")

    def default(self, key: str) -> Any:
        """The value of ``key`` before any preset: the file's ``default``, else the program's."""
        return self.module.default.get(key, OPTIONS[key].default)

    def presets(self, section: str) -> dict[str, Any]:
        """The presets by name in a section of the file: loss, network or dataset."""
        return {name: preset for name, preset in getattr(self.module, section).items() if isinstance(preset, Mapping)}

    def add_network(self, name: str, net_name: str) -> None:
        """Add a preset of the network ``net_name``."""
        self.module.network[name] = EasyDict(net_name=net_name)

    def lay_presets(self, chosen: Mapping[str, str], where: Mapping[str, str]) -> dict[str, Any]:
        """Lay the ``chosen`` preset of each section over the file's options and return them all, not yet checked.

        An option that has a flag is read from ``default``, any other from ``config``, as in the legacy programs; if
        only one of the two has an option, it is read from there. Keys that are not ours go to ``own_keys``.

        :param where: the flag or key that chose each preset, for messages.
        :raises UserError: if there is no such preset, the file's code fails, or a key is missing or mistyped.
        """
        for section in PRESETS:
            known = self.presets(section)
            if section == "dataset" and chosen[section] not in known:
                if made := preset_of(chosen[section], known, where[section]):
                    getattr(self.module, section)[chosen[section]] = made
                    continue
                known = {**known, "a folder": {}, "synthetic:N": {}}
            if chosen[section] not in known:
                hint = UNDEFINED.get(chosen[section]) or nearest(chosen[section], known)
                raise UserError(f"{where[section]}: found {chosen[section]!r}, expected a {section} preset of "
                                f"{self.name}: {', '.join(known)}{hint}")
        with errors_in_one_line(self.path, self.name):
            self.module.generate_config(chosen["network"], chosen["dataset"], chosen["loss"])
        config, default = ({option_key(key): value for key, value in part.items()}
                           for part in (self.module.config, self.module.default))
        values = {**default, **config,
                  **{key: default[key] for key in default if key in KEYS and OPTIONS[key].metadata["flag"]}}
        for section, key in NEEDED:
            if key not in values:
                raise UserError(f"{self.name}: found no {key} in the {section} preset {chosen[section]!r}")
        values["own_keys"] = {key: values.pop(key) for key in list(values) if key not in KEYS}
        values["own_keys"].update(dict.fromkeys(values["own_keys"].keys() & set(SECRETS), "not kept"))
        self._refuse_typos(values["own_keys"], str(values["net_name"]))
        return values

    def _refuse_typos(self, keys: Iterable[str], net_name: str) -> None:
        """Refuse keys that are similar to ours, unless the source of the user's own network contains them.

        :raises UserError: on the first one.
        """
        path = None if net_name in FAMILIES or is_symbol_file(net_name) else find_network(net_name, str(self.path))
        words = words_of(path) if path else set()
        for key in keys:
            if key not in words and difflib.get_close_matches(key, KEYS, n=1, cutoff=TYPO):
                raise UserError(f"{self.name}: found the unknown key {key!r}{nearest(key, KEYS)}; a key of your own "
                                "needs another name, or to be read by the network that net_name names")


def own_keys_line(config: Config) -> str:
    """A line about the keys of the file that are not ours; empty if there are none."""
    keys, name = ", ".join(key for key, _ in config.own_keys), os.path.basename(config.config_file)
    if config.net_name in FAMILIES or is_symbol_file(config.net_name):
        known = instead(key for key, _ in config.own_keys)
        return keys and f"{name}: keys that nothing here reads: {keys}" + (f"; {known}" if known else "")
    return keys and f"{name}: keys not ours, left to your own network: {keys}"


def open_config(named: str = "", root: Path = ROOT) -> ConfigFile:
    """The file ``named``, else config.py beside the entry points, else sample_config.py there."""
    if named:
        return ConfigFile(arcface_torch.find_file(named), named)
    name = "config.py" if (root / "config.py").is_file() else "sample_config.py"
    return ConfigFile(root / name, name)
