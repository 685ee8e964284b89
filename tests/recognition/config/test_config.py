# SPDX-License-Identifier: Apache-2.0
"""The checked Config, the refusals, and sample_config.py against it and against the contract."""
from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import pytest

from recognition.config.options import OPTIONS, REFUSALS, Config, refuse_unsupported
from recognition.config.presets import ROOT, open_config
from recognition.errors import UserError

# The contract's presets, written down a second time on purpose.
NETWORKS = {
    "r100": {"net_name": "fresnet", "num_layers": 100},
    "r100fc": {"net_name": "fresnet", "num_layers": 100, "net_output": "FC"},
    "r50": {"net_name": "fresnet", "num_layers": 50},
    "r50v1": {"net_name": "fresnet", "num_layers": 50, "net_unit": 1},
    "d169": {"net_name": "fdensenet", "num_layers": 169, "per_batch_size": 64, "densenet_dropout": 0.0},
    "d201": {"net_name": "fdensenet", "num_layers": 201, "per_batch_size": 64, "densenet_dropout": 0.0},
    "y1": {"net_name": "fmobilefacenet", "emb_size": 128, "net_output": "GDC"},
    "y2": {"net_name": "fmobilefacenet", "emb_size": 256, "net_output": "GDC", "net_blocks": [2, 8, 16, 4]},
    "m1": {"net_name": "fmobilenet", "emb_size": 256, "net_output": "GDC", "net_multiplier": 1.0},
    "m05": {"net_name": "fmobilenet", "emb_size": 256, "net_output": "GDC", "net_multiplier": 0.5},
    "mnas": {"net_name": "fmnasnet", "emb_size": 256, "net_output": "GDC", "net_multiplier": 1.0},
    "mnas05": {"net_name": "fmnasnet", "emb_size": 256, "net_output": "GDC", "net_multiplier": 0.5},
    "mnas025": {"net_name": "fmnasnet", "emb_size": 256, "net_output": "GDC", "net_multiplier": 0.25},
    "vargfacenet": {"net_name": "vargfacenet", "emb_size": 512, "net_output": "J", "net_multiplier": 1.25},
}
CLASSES = {"emore": 85742, "retina": 93431, "glint360k": 360232, "webface": 10575, "webface42m": 2059906}
MARGINS = {"nsoftmax": (64, 1, 0, 0), "arcface": (64, 1, 0.5, 0), "cosface": (64, 1, 0, 0.35),
           "combined": (64, 1, 0.3, 0.2)}
TRIPLETS = {"triplet": 0.3, "atriplet": 0.35}


@pytest.fixture
def sample():
    return open_config(str(ROOT / "sample_config.py"))


@pytest.mark.parametrize("name", NETWORKS)
def test_network_presets(sample, name):
    assert sample.presets("network")[name] == NETWORKS[name]


@pytest.mark.parametrize("name", CLASSES)
def test_dataset_presets(sample, name):
    preset = sample.presets("dataset")[name]
    assert preset.num_classes == CLASSES[name]
    assert preset.image_shape == (112, 112, 3)
    assert preset.dataset_path.startswith("./datasets/")


def test_loss_presets(sample):
    losses = sample.presets("loss")
    assert losses["softmax"] == {"loss_name": "softmax"}
    for name, (s, m1, m2, m3) in MARGINS.items():
        assert losses[name] == \
               {"loss_name": "margin_softmax", "loss_s": s, "loss_m1": m1, "loss_m2": m2, "loss_m3": m3}
    for name, alpha in TRIPLETS.items():
        assert losses[name] == {"loss_name": name, "images_per_identity": 5, "triplet_alpha": alpha, "lr": 0.05,
                                "triplet_bag_size": 7200, "triplet_max_ap": 0, "per_batch_size": 60}


def test_demo_presets(sample):
    assert sample.presets("dataset")["demo"].num_classes == 0  # as the property file says
    assert sample.presets("network")["demo"].net_name == "fmobilefacenet"


def test_defaults_stand_in_sample_config_as_they_do_in_config(sample):
    written = {**sample.module.config, **sample.module.default}
    assert {key: OPTIONS[key].metadata["type"].check(value, key) for key, value in written.items()} == \
           {key: OPTIONS[key].default for key in written}


def test_defaults_of_the_contract():
    config = Config()
    assert (config.bn_mom, config.workspace, config.emb_size, config.net_blocks) == (0.9, 256, 512, (1, 4, 6, 2))
    assert (config.lr, config.wd, config.mom, config.lr_steps) == (0.1, 0.0005, 0.9, (100000, 160000, 220000))
    assert (config.ckpt, config.verbose, config.frequent, config.per_batch_size) == (3, 2000, 20, 128)
    assert (config.pretrained_epoch, config.end_epoch, config.kvstore) == (1, 10000, "device")
    assert config.models_root == "./models"


def test_every_combination_of_presets_is_valid(sample):
    for dataset, loss, network in itertools.product(*map(sample.presets, ("dataset", "loss", "network"))):
        chosen = {"dataset": dataset, "loss": loss, "network": network}
        values = {**sample.lay_presets(chosen, chosen), **chosen}
        if (loss, network) in itertools.product(TRIPLETS, ("d169", "d201")):  # the network's batch of 64 wins
            with pytest.raises(UserError, match="per_batch_size: found 64, expected a multiple of 3 such as 63: "):
                Config(**values)
            values["per_batch_size"] = 63
        Config(**values)


def test_a_config_is_checked_whenever_it_is_made():
    with pytest.raises(UserError, match=r"^lr: found 0, expected a number above 0$"):
        Config(lr=0)
    with pytest.raises(UserError, match=r"^ckpt: found 4"):
        dataclasses.replace(Config(), ckpt=4)
    with pytest.raises(UserError, match="loss_s, loss_m1: found -1, 1"):
        Config(loss_s=-1)
    assert Config(loss_name="softmax", loss_s=-1, loss_m1=0).loss_s == -1  # so the earliest presets had it
    with pytest.raises(UserError, match="per_batch_size: found 128, expected a multiple of 3"):
        Config(loss_name="atriplet")
    with pytest.raises(UserError, match=r"triplet_bag_size: found 9, .* 10$"):
        Config(loss_name="triplet", per_batch_size=60, triplet_bag_size=9)
    with pytest.raises(UserError, match=r"worker_id: found 2, .* \(DMLC_NUM_WORKER\), 2"):
        Config(worker_id=2, num_workers=2)


def test_a_network_of_the_users_own_may_give_its_options_any_value():
    odd = {"net_act": "gelu", "net_unit": "b", "net_output": "X", "net_blocks": [3, 4, 6, 3, 2], "num_layers": "50s",
           "net_multiplier": (1, 2), "net_se": None, "net_input": 7}
    config = Config(net_name="my_net", **odd)
    assert {key: getattr(config, key) for key in odd} == odd
    for key, value in odd.items():
        with pytest.raises(UserError, match=f"^{key}: found"):
            Config(**{key: value})
    with pytest.raises(UserError, match=r"^emb_size: found 0"):
        Config(net_name="my_net", emb_size=0)


@pytest.mark.parametrize("name", ["nsoftmax", "arcface", "cosface", "combined"])
def test_the_first_recipes_name_margins_after_their_presets(name):
    assert Config(loss_name=name).loss_name == "margin_softmax"


def test_through_json():
    for spans in ({"lr_steps": "10,20"}, {"lr_steps": "1e,2.5e", "warmup": "0.5e"}):
        config = Config(devices="cpu:2", image_shape=(224, 224, 3), **spans)
        assert Config(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_where_checkpoints_go():
    config = Config(network="y1", loss="softmax", dataset="emore", models_root="out/m")
    assert (config.output_dir, config.prefix) == ("out/m/y1-softmax-emore", "out/m/y1-softmax-emore/model")
    assert dataclasses.replace(config, extra_model_name="b").prefix == "out/m/y1-softmax-emore-b/model"


def test_what_the_trainer_does_not_honour_is_refused_and_the_rest_is_not():
    refuse_unsupported(Config(devices="cpu:2"))
    refuse_unsupported(Config(memonger=True, fp16_scale=128))
    for key, value in (("loss_K", 3), ("sample_ratio", 0.5)):
        refuse_unsupported(Config(**{key: value}))
        with pytest.raises(UserError, match=rf"^{key}: found {value}, but a triplet loss has no class centres"):
            refuse_unsupported(Config(loss_name="triplet", per_batch_size=60, **{key: value}))
    for key, value in (("target_gradient", "straight_through"), ("interclass_filtering_threshold", 0.4)):
        refuse_unsupported(Config(**{key: value}))
        with pytest.raises(UserError, match=rf"^{key}: found '?{value}'?, but only a margin loss has"):
            refuse_unsupported(Config(loss_name="softmax", **{key: value}))
    with pytest.raises(UserError, match=r"^flip_noise_prob: found 0.1, but labels are not made wrong on purpose$"):
        refuse_unsupported(Config(flip_noise_prob=0.1))
    triplets = {"loss_name": "triplet", "per_batch_size": 60}
    for name in ("polynomial", "cosine"):
        for end in ({"max_steps": 9}, {"end_epoch": 3}, {**triplets, "max_steps": 9}):
            refuse_unsupported(Config(lr_schedule=name, **end))
        for endless in ({}, {**triplets, "end_epoch": 3}):
            with pytest.raises(UserError, match=rf"^lr_schedule: found '{name}', but it needs an end to fall to: --"):
                refuse_unsupported(Config(lr_schedule=name, **endless))
    for key in ("lr_steps", "warmup"):
        refuse_unsupported(Config(**triplets, **{key: "12"}))
        with pytest.raises(UserError, match=rf"^{key}: found .*2e.*, but an epoch of triplets has no fixed number of"):
            refuse_unsupported(Config(**triplets, **{key: "2e"}))
    refuse_unsupported(Config(freeze="conv*", freeze_steps=5))
    with pytest.raises(UserError, match=r"^freeze_steps: found 5, but --freeze names no parameter to hold for them$"):
        refuse_unsupported(Config(freeze_steps=5))
    refuse_unsupported(Config(kvstore="dist_sync", num_workers=2))
    with pytest.raises(UserError, match=r"^num_workers: found 2, but several workers need --kvstore dist_sync"):
        refuse_unsupported(Config(num_workers=2))
    assert all(key in OPTIONS for key, _, _ in REFUSALS)


def test_centres_from_embeddings_needs_a_network_that_gives_some() -> None:
    assert Config(centres_from="embeddings", pretrained="model").centres_from == "embeddings"
    for options in ({}, {"pretrained": "model", "loss_name": "triplet", "per_batch_size": 3}):
        with pytest.raises(UserError, match="centres_from: found 'embeddings', expected it with --pretrained"):
            Config(centres_from="embeddings", **options)


@pytest.mark.parametrize("options, said", [
    ({"lr": 2e37}, r"lr: found 2e\+37, expected at most 1e\+37, as it is computed with in float32$"),
    ({"wd": "1e39"}, r"wd: found 1e\+39, expected at most 1e\+37, "),
    ({"fp16_scale": 1e38}, r"fp16_scale: found 1e\+38, expected at most "),
    ({"loss_s": 1e39}, r"loss_s: found 1e\+39, expected at most "),
    ({"lr": 0.01, "lr_factor": "fc*=2,*=1e45"}, r"lr, lr_factor: found 0.01 times 1e\+45, expected at most "),
    ({"lr": 1e20, "fc7_lr_mult": 1e20}, r"lr, fc7_lr_mult: found 1e\+20 times 1e\+20, expected at most "),
    ({"wd": 1e20, "fc7_wd_mult": 1e20}, r"wd, fc7_wd_mult: found 1e\+20 times 1e\+20, "),
    ({"lr": 1e20, "wd": 1e20}, r"lr, wd: found 1e\+20 times 1e\+20, "),
])
def test_what_float32_has_no_numbers_for_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}"):
        Config(**options)
    Config(lr=1e37, wd=0, lr_factor="*=1")
