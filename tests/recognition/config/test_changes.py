# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json

from recognition.config.differences import as_json, changed_options
from recognition.config.options import Config


def test_what_changed_is_said_by_its_key() -> None:
    before = json.loads(json.dumps(as_json(Config(lr_steps="10,20", lr_factor="*=0.5", seed=3))))
    config = Config(lr_steps="10,30", lr_factor="*=0.5", seed=3, resume="yes", pretrained="x", decode_threads=5)
    assert changed_options(before, config) == ["lr_steps [10, 20] -> [10, 30]"]


def test_keys_of_the_users_own_hold_what_json_lacks() -> None:
    own = {"act": len, "make": lambda: 1, "sizes": {(1, 2): 3}, "pairs": [{1, 2}], "depth": 4}
    config = Config(net_name="mine", own_keys=own)
    saved = json.loads(json.dumps(as_json(config)))
    assert saved["own_keys"]["depth"] == 4 and saved["own_keys"]["sizes"] == {"(1, 2)": 3}
    assert "0x" not in saved["own_keys"]["make"]
    assert changed_options(saved, Config(net_name="mine", own_keys={**own, "make": lambda: 2})) == []
    assert changed_options(saved, dataclasses.replace(config, own_keys=()))[0].startswith("own_keys {'act': ")
