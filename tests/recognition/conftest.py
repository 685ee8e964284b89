# SPDX-License-Identifier: Apache-2.0
"""The contract's options and network presets, stated once more so that these tests need no configuration file."""
from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Callable

import pytest

DEFAULTS: dict[str, Any] = {
    "net_name": "fresnet", "num_layers": 0, "emb_size": 512, "net_output": "E", "net_unit": 3, "net_input": 1,
    "net_act": "prelu", "net_se": 0, "net_blocks": [1, 4, 6, 2], "net_multiplier": 1.0, "bn_mom": 0.9, "workspace": 256,
    "image_shape": (112, 112, 3), "densenet_dropout": 0.0, "net_drop_path": 0.0,
    "net_mask_ratio": 0.0, "config_file": "",
    "own_keys": (),
}
MOBILE = {"net_name": "fmobilefacenet", "net_output": "GDC"}
PRESETS: dict[str, dict[str, Any]] = {
    "r18": {"num_layers": 18},
    "r34": {"num_layers": 34},
    "r50": {"num_layers": 50},
    "r50v1": {"num_layers": 50, "net_unit": 1},
    "r100": {"num_layers": 100},
    "r100fc": {"num_layers": 100, "net_output": "FC"},
    "y1": {**MOBILE, "emb_size": 128},
    "y2": {**MOBILE, "emb_size": 256, "net_blocks": [2, 8, 16, 4]},
    "m1": {"net_name": "fmobilenet", "emb_size": 256, "net_output": "GDC"},
    "m05": {"net_name": "fmobilenet", "emb_size": 256, "net_output": "GDC", "net_multiplier": 0.5},
    "mnas": {"net_name": "fmnasnet", "emb_size": 256, "net_output": "GDC"},
    "mnas05": {"net_name": "fmnasnet", "emb_size": 256, "net_output": "GDC", "net_multiplier": 0.5},
    "mnas025": {"net_name": "fmnasnet", "emb_size": 256, "net_output": "GDC", "net_multiplier": 0.25},
    "d169": {"net_name": "fdensenet", "num_layers": 169},
    "d201": {"net_name": "fdensenet", "num_layers": 201},
    "vargfacenet": {"net_name": "vargfacenet", "net_output": "J", "net_multiplier": 1.25},
}


@pytest.fixture(scope="session")
def configuration() -> Callable[..., SimpleNamespace]:
    """``configuration("y1", net_act="relu")``: a preset, or none, with some options changed."""
    return lambda preset=None, **options: SimpleNamespace(**{**DEFAULTS, **PRESETS.get(preset, {}), **options})
