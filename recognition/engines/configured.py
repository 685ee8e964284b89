# SPDX-License-Identifier: Apache-2.0
"""The network of a configuration, and how it wants its backbone computed."""
from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from recognition.config.options import Config
from recognition.engines.choose import choose_engine, decide_for
from recognition.engines.interface import Computing
from recognition.networks import build_symbol, own_size
from recognition.networks.graph import Graph


def with_own_size(config: Config) -> Config:
    """The configuration with its network's own ``emb_size``, where that is a ``-symbol.json``.

    :raises UserError: as :func:`build_network`.
    """
    return dataclasses.replace(config, emb_size=own_size(config))


def build_network(config: Config) -> Graph:
    """The network of a configuration. A file of the user's own is code, for the engine of the run.

    :raises UserError: as :func:`recognition.networks.build_symbol`.
    """
    def own_network(options: Any, path: Path | None) -> Graph:
        return choose_engine(decide_for(config).name).own_network(options, path)

    return build_symbol(config, own_network)


def computing_of(config: Config) -> Computing:
    """The devices, batch and numbers with which a configuration wants the backbone computed."""
    return Computing(config.devices, config.per_batch_size, config.in_16_bits, config.fp16_scale, config.memonger,
                     keep_features=_keeps_features(config))


def _keeps_features(config: Config) -> bool:
    """True if the head takes features where the backbone leaves them: it is one shard on the same device."""
    with_backbone = config.centers_on == "device" or config.sample_ratio < 1  # else the host computes, see shard_kind
    return (len(config.devices) == 1 and with_backbone and config.gradient_acc == 1
            and not (config.triplets or config.label_smoothing or config.loss_margin == "magface"))
