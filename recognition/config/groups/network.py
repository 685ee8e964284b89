# SPDX-License-Identifier: Apache-2.0
"""Options of the network."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recognition.config import types
from recognition.config.groups.option import option

# Our networks. Any other net_name is a user's own network, which may give NETWORK_KEYS any values and meanings.
FAMILIES = ("fresnet", "fresnext", "fmobilefacenet", "fmobilenet", "fmnasnet", "fdensenet", "vargfacenet", "mbf", "vit")
NETWORK_KEYS = ("num_layers", "net_se", "net_act", "net_unit", "net_input", "net_output", "net_blocks",
                "net_multiplier", "densenet_dropout", "net_drop_path", "net_mask_ratio")


@dataclass(frozen=True)
class NetworkOptions:
    """The options of the network that is built."""

    net_name: str = option("fresnet", types.filled_text,
                           "family of the network, a Python file of your own beside config.py, a -symbol.json, or "
                           "timm:NAME, a model of timm")
    num_layers: int = option(0, types.integer(least=0), "depth, for the families that have one")
    emb_size: int = option(512, types.integer(least=1), "length of an embedding")
    net_se: int = option(0, types.choice(0, 1), "1: squeeze and excitation")
    net_act: str = option("prelu", types.choice("prelu", "relu"), "activation")
    net_unit: int = option(3, types.choice(1, 2, 3), "version of the residual unit")
    net_input: int = option(1, types.choice(0, 1, 2), "version of the first layers")
    net_output: str = option("E", types.choice("E", "F", "G", "H", "I", "J", "Z", "FC", "SFC", "GAP", "GNAP", "GDC"),
                             "version of the last layers")
    net_blocks: tuple[int, ...] = option((1, 4, 6, 2), types.four_counts, "blocks in each stage")
    net_multiplier: float = option(1.0, types.real(above=0), "factor of the number of channels")
    densenet_dropout: float = option(0.0, types.real(least=0, below=1), "dropout in dense blocks")
    net_drop_path: float = option(0.0, types.real(least=0, below=1), "share of images that miss the last block of a "
                                  "transformer in training, of earlier ones fewer")
    net_mask_ratio: float = option(0.0, types.real(least=0, below=1), "share of an image's patches that a transformer "
                                   "does not see in training")
    own_keys: tuple[tuple[str, Any], ...] = option((), types.pairs, "keys of config.py that are not ours, with their "
                                                   "values: for a network of your own")
    bn_mom: float = option(0.9, types.real(least=0, most=1), "momentum of batch norm's running statistics")
    workspace: int = option(256, types.integer(least=0), "workspace of a convolution, in MB")
    memonger: bool = option(False, types.boolean, "recompute activations to save memory")
    count_flops: bool = option(True, types.boolean, "print the network's FLOPs at the start")
    fp16: bool = option(False, types.boolean, "float16 backbone; bfloat16 on a CPU that has it")
