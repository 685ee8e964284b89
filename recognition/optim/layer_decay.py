# SPDX-License-Identifier: Apache-2.0
"""Layer-wise decay of the learning rate, for fine-tuning: the farther a layer is from the embedding, the slower it
learns (Clark et al., arXiv 2003.10555, section A.2; for images Bao et al., arXiv 2106.08254)."""
from __future__ import annotations

import re
from collections.abc import Sequence

_BLOCK = re.compile(r".*?(?:unit|block)\d+(?=_)")  # of stage1_unit2_conv1_weight, res_3_block0_..., block11_mlp_...


def layer_factors(names: Sequence[str], decay: float) -> dict[str, float]:
    """The factor ``decay^n`` of each parameter, n layers below the last one, which ends with the embedding.

    A layer is a block of the network, by the names of its parameters, and what lies before, between or after blocks.
    Where names tell of no blocks, each ``*_weight`` begins a layer.

    :param names: of all parameters, in the order of the network.
    """
    layers, number, current = dict[str, int](), -1, ""
    blocks = any(map(_BLOCK.match, names))
    for name in names:
        block = _BLOCK.match(name)
        key = (block[0] if block else "") if blocks else name if name.endswith("_weight") else current
        if key != current or number < 0:
            number, current = number + 1, key
        layers[name] = number
    return {name: decay ** (number - layer) for name, layer in layers.items()}
