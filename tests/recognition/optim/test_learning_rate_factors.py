# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from recognition.config.options import Config
from recognition.errors import UserError
from recognition.networks import build_symbol
from recognition.optim.factors import LearningRateFactors
from recognition.optim.layer_decay import layer_factors

NAMES = ["conv0_weight", "fc1_gamma", "pre_fc1_bias", "pre_fc1_weight", "stage1_weight"]


def test_without_options_everything_moves() -> None:
    assert LearningRateFactors(NAMES)(0) == dict.fromkeys(NAMES, 1.0)


def test_freezing_ends_after_its_steps_and_factors_go_on() -> None:
    factors = [("*fc1*", 10.0), ("pre_fc1_bias", 2.0), ("stage1*", 0.5)]
    rates = LearningRateFactors(NAMES, ["conv0*", "stage?_*"], 3, factors)
    first = {"fc1_gamma": 10.0, "pre_fc1_bias": 2.0, "pre_fc1_weight": 10.0}
    assert rates(0) == rates(2) == first
    assert rates(3) == rates(10**9) == {"conv0_weight": 1.0, **first, "stage1_weight": 0.5}
    assert list(rates(3)) == NAMES


def test_no_number_of_steps_is_for_ever() -> None:
    assert LearningRateFactors(NAMES, ["*"])(10**9) == {}


def test_a_run_in_which_nothing_would_learn_is_refused() -> None:
    for freeze, steps, factors in [(["*"], 0, []), ([], 0, [("*", 0.0)]), (["*"], 5, [("*", 0.0)]),
                                   (["*_weight"], 0, [("*", 0.0), ("*_weight", 1.0)])]:
        LearningRateFactors(NAMES, freeze, steps, factors)  # the class centres learn
        with pytest.raises(UserError, match=r"^freeze, lr_factor: found that no parameter would ever move"):
            LearningRateFactors(NAMES, freeze, steps, factors, needed=True)
    assert LearningRateFactors(NAMES, ["*"], 5, needed=True)(5)
    assert LearningRateFactors(NAMES, ["*_weight"], needed=True)(0)


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"freeze: found 'stage9\*', which no parameter .* such as conv0_weight"):
        LearningRateFactors(NAMES, ["stage9*"])
    with pytest.raises(UserError, match=r"lr_factor: found 'fc7\*', but the class centres have .* fc7_lr_mult"):
        LearningRateFactors(NAMES, factors=[("fc7*", 0.1)])
    with pytest.raises(UserError, match=r"lr_factor: found 'pre_fc1_wieght'.* nearest is 'pre_fc1_weight'"):
        LearningRateFactors(NAMES, factors=[("pre_fc1_wieght", 1.0)])


@pytest.mark.parametrize(("options", "layers", "exponents"), [
    ({"num_layers": 18}, 10,
     {"conv0_weight": 9, "relu0_gamma": 9, "stage1_unit1_bn1_gamma": 8, "stage1_unit2_bn1_beta": 7,
      "stage4_unit2_conv2_weight": 1, "bn1_gamma": 0, "pre_fc1_weight": 0, "fc1_beta": 0}),
    ({"net_name": "fmobilefacenet", "net_output": "GDC", "net_blocks": [1, 2, 1, 1]}, 8,
     {"conv_1_conv2d_weight": 7, "res_3_block0_conv_sep_conv2d_weight": 6, "res_3_block1_conv_sep_conv2d_weight": 5,
      "pre_fc1_weight": 0}),
    ({"net_name": "vit", "num_layers": 3, "net_multiplier": 0.5}, 5,
     {"patch_embed_weight": 4, "pos_embed_weight": 4, "block0_norm1_gamma": 3, "block2_mlp_fc2_weight": 1,
      "feature_fc_weight": 0}),
], ids=["units", "blocks", "transformer"])
def test_layers_of_a_network_by_the_names_of_its_blocks(options: dict, layers: int, exponents: dict[str, int]) -> None:
    names = [name for name in build_symbol(Config(**options)).list_arguments() if name != "data"]
    found = layer_factors(names, 0.5)
    assert list(found) == names and len(set(found.values())) == layers
    assert {name: found[name] for name in exponents} == {name: 0.5 ** n for name, n in exponents.items()}
    assert set(layer_factors(names, 1.0).values()) == {1.0}


def test_layers_of_a_transformer_and_of_names_without_blocks() -> None:
    blocks = ["patch_embed_weight", "pos_embed_weight", "block0_attn_qkv_weight", "block0_mlp_fc1_bias",
              "block11_norm1_gamma", "norm_gamma", "pre_fc1_weight"]
    assert list(layer_factors(blocks, 0.5).values()) == [0.125, 0.125, 0.25, 0.25, 0.5, 1, 1]
    assert layer_factors(NAMES, 0.5) == {"conv0_weight": 0.25, "fc1_gamma": 0.25, "pre_fc1_bias": 0.25,
                                         "pre_fc1_weight": 0.5, "stage1_weight": 1}
    factors = [("pre*", 3.0)]
    assert LearningRateFactors(NAMES, ["conv*"], 0, factors, by_layer=layer_factors(NAMES, 0.5))(0) == {
        "fc1_gamma": 0.25, "pre_fc1_bias": 0.75, "pre_fc1_weight": 1.5, "stage1_weight": 1}
