# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from recognition.networks.families.fmobilefacenet import get_symbol
from recognition.networks.shapes import infer_shapes


def convolution_widths(symbol):
    return [node.values.num_filter for node in symbol.nodes if node.op == "Convolution"]


@pytest.mark.parametrize("multiplier", [0.5, 0.3, 0.01, 1.25])
def test_multiplier_scales_every_convolution_to_multiples_of_8(multiplier):
    full, scaled = get_symbol(), get_symbol(net_multiplier=multiplier)
    assert scaled.list_arguments() == full.list_arguments()
    for width, channels in zip(convolution_widths(scaled), convolution_widths(full)):
        assert width % 8 == 0
        assert width == 8 or abs(width - multiplier * channels) <= 4
    assert infer_shapes(scaled, (3, 112, 112)).output == (1, 128)


def test_multiplier_of_1_changes_nothing():
    assert convolution_widths(get_symbol(net_multiplier=1.0))[:4] == [64, 64, 128, 128]


def test_first_stage_of_several_blocks_is_residual():
    arguments = get_symbol(net_blocks=(2, 1, 1, 1)).list_arguments()
    assert "res_2_block1_conv_dw_conv2d_weight" in arguments
    assert "conv_2_dw_conv2d_weight" not in arguments
