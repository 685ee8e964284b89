# SPDX-License-Identifier: Apache-2.0
"""The options of a run in a training state, and their differences from those of a resumed run."""
from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from recognition.config.options import Config

# Options that may change in a resumed run without a line about it.
_PASSING = {"resume", "config_file", "pretrained", "pretrained_epoch", "decode_threads"}


def as_json(config: Config) -> dict[str, Any]:
    """Every option in JSON's types. A value of another type, which only the user's own keys can have, becomes text."""
    return {key: _as_json(dict(value) if key == "own_keys" else value) for key, value in vars(config).items()}


def changed_options(before: Mapping[str, Any], config: Config) -> list[str]:
    """A text ``key old -> new`` for each option that differs from the options ``before``, those of a saved state.
    One that names no engine was saved by MXNet, when there was no other."""
    if before.get("engine") == "auto" != config.engine:
        before = {**before, "engine": "mxnet"}
    return [f"{key} {before[key]} -> {value}" for key, value in as_json(config).items()
            if key not in _PASSING and key in before and before[key] != value]


def _as_json(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        if isinstance(value, Mapping):
            return {str(key): _as_json(item) for key, item in value.items()}
        return re.sub(r" at 0x[0-9a-f]+", "", str(value))  # the address of a function differs in each run
