# SPDX-License-Identifier: Apache-2.0
"""The search for the network of a checkpoint, for the message that it does not fit the network of the run."""
from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from recognition.config.groups.network import NETWORK_KEYS
from recognition.config.options import OPTIONS, Config
from recognition.config.presets import open_config
from recognition.engines.configured import build_network
from recognition.errors import UserError
from recognition.networks.shapes import Shape, infer_shapes
from recognition.training.checkpoints.pretrained import FITS

# The keys of a network preset that change the graph.
_KEYS = ["net_name", *NETWORK_KEYS, "emb_size", "own_keys"]


def fitting_networks(shapes: Mapping[str, Shape], config: Config) -> list[str]:
    """The network presets in the configuration's file with exactly these parameters, auxiliary states and shapes."""
    height, width, channels = config.image_shape
    found = []
    for name in open_config(config.config_file).presets("network"):
        chosen = {"network": name, "dataset": config.dataset, "loss": config.loss}
        try:
            values = open_config(config.config_file).lay_presets(chosen, dict.fromkeys(chosen, "config"))
            options = {key: values.get(key, OPTIONS[key].default) for key in _KEYS}
            wanted = infer_shapes(build_network(dataclasses.replace(config, **options)), (channels, height, width))
        except UserError:  # this preset cannot be built for these images
            continue
        if {**wanted.arguments, **wanted.auxiliary} == shapes:
            found.append(name)
    return found


def advice(shapes: Mapping[str, Shape], config: Config) -> str:
    """A hint, in words, about the network of a checkpoint with these shapes."""
    try:
        fits = fitting_networks(shapes, config)
    except UserError:
        fits = []
    if fits:
        return FITS + " or ".join(fits)
    own = Path(f"{config.pretrained}-symbol.json").is_file()
    return "it fits no network preset of the configuration" + own * "; --network checkpoint takes its own network"
