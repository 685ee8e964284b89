# SPDX-License-Identifier: Apache-2.0
"""Config files of arcface_torch, as they stand: what each key becomes here, and what is said of the others."""
from __future__ import annotations

from pathlib import Path

import pytest

from recognition.config.arcface_torch import BASE, NETWORKS
from recognition.config.cli import parse_args
from recognition.config.options import Config
from recognition.config.presets import own_keys_line
from recognition.engines.configured import build_network
from recognition.errors import UserError
from recognition.networks.shapes import infer_shapes

# The form of its files: the keys that all of them have.
RECIPE = """
from easydict import EasyDict as edict

config = edict()
config.margin_list = (1.0, 0.5, 0.0)
config.network = "r50"
config.resume = False
config.output = None
config.embedding_size = 512
config.sample_rate = 1.0
config.fp16 = True
config.momentum = 0.9
config.weight_decay = 5e-4
config.batch_size = 128
config.lr = 0.1
config.verbose = 2000
config.dali = False

config.rec = "/train_tmp/ms1m-retinaface-t1"
config.num_classes = 93431
config.num_image = 5179510
config.num_epoch = 20
config.warmup_epoch = 0
config.val_targets = ['lfw', 'cfp_fp', "agedb_30"]
"""


@pytest.fixture
def parse(tmp_path):
    """``parse(more, *flags)``: the Config of configs/ms1mv3_r50.py with lines added; ``base``: of a base.py beside it.
    """
    folder = tmp_path / "configs"
    folder.mkdir()

    def parsed(more: str = "", *flags: str, base: str = "", entry: str = "train_parall") -> Config:
        (folder / "ms1mv3_r50.py").write_text(RECIPE + more)
        if base:
            (folder / "base.py").write_text(f"from easydict import EasyDict as edict\nconfig = edict()\n{base}\n")
        return parse_args(entry, ["--config", str(folder / "ms1mv3_r50.py"), *flags], environ={})

    return parsed


@pytest.fixture
def refusal(parse):
    def refused(more: str, **options: str) -> str:
        with pytest.raises(UserError) as error:
            parse(more, **options)
        assert len(str(error.value).splitlines()) == 1
        return str(error.value).partition("configs/")[2]

    return refused


@pytest.mark.parametrize("entry", ["train_parall", "train"])
def test_a_recipe_as_it_stands(parse, entry):
    config = parse(entry=entry)
    expected = {
        "network": "r50", "net_name": "fresnet", "num_layers": 50, "net_output": "FC", "net_unit": 3, "net_input": 1,
        "emb_size": 512, "loss": "arcface", "loss_name": "margin_softmax", "loss_s": 64.0, "loss_m1": 1.0,
        "loss_m2": 0.5, "loss_m3": 0.0, "target_gradient": "straight_through", "sample_ratio": 1.0, "fp16": True,
        "mom": 0.9, "wd": 5e-4, "per_batch_size": 128, "lr": 0.1, "lr_schedule": "polynomial", "lr_power": 1.0,
        "warmup": 0, "end_epoch": 20, "verbose": 2000, "frequent": 10, "seed": 2048, "optimizer": "sgd", "resume": "",
        "dataset": "ms1m-retinaface-t1", "dataset_path": "/train_tmp/ms1m-retinaface-t1", "num_classes": 93431,
        "val_targets": ("lfw", "cfp_fp", "agedb_30"), "interclass_filtering_threshold": 0.0,
        "models_root": "work_dirs/ms1mv3_r50", "gradient_acc": 1, "clip_norm": 5.0,
    }
    assert {key: getattr(config, key) for key in expected} == expected
    assert config.output_dir == "work_dirs/ms1mv3_r50/r50-arcface-ms1m-retinaface-t1"
    assert own_keys_line(config) == ("ms1mv3_r50.py: keys that nothing here reads: num_image; instead of num_image: "
                                     "nothing, images are counted in the set")


@pytest.mark.parametrize("line, changed", [
    ("margin_list = (1.0, 0.0, 0.4)", {"loss": "cosface", "loss_m2": 0.0, "loss_m3": 0.4}),
    ("network = 'r100'", {"network": "r100", "num_layers": 100}),
    ("network = 'mbf'", {"network": "mbf", "net_name": "mbf", "num_layers": 0, "net_output": "E",
                         "net_multiplier": 2.0}),
    ("resume = True", {"resume": "yes"}),
    ("output = 'here'", {"models_root": "here"}),
    ("sample_rate = 0.2", {"sample_ratio": 0.2}),
    ("sample_rate = 0", {"sample_ratio": 1e-12}),
    ("optimizer = 'adamw'", {"optimizer": "adamw"}),
    ("gradient_acc = 4", {"gradient_acc": 4, "lr": 0.4, "wd": 1.25e-4, "clip_norm": 1.25}),
    ("gradient_acc, config.optimizer = 4, 'adamw'", {"gradient_acc": 4, "optimizer": "adamw", "clip_norm": 1.25,
                                                     "adam_eps": 2.5e-9}),
    ("warmup_epoch = config.num_epoch // 10", {"warmup": "2e"}),
    ("warmup_epoch = -1", {}),
    ("val_targets = []", {"val_targets": ()}),
    ("interclass_filtering_threshold = 0.4", {"interclass_filtering_threshold": 0.4}),
    ("num_workers = 6", {"decode_threads": 6}),
    ("loss_K = 3", {"loss_K": 3}),
    ("save_all_states = True", {}),
    ("using_wandb = True", {"wandb": "project"}),
    ("using_wandb, config.wandb_entity, config.wandb_project = True, 'us', 'faces'", {"wandb": "us/faces"}),
    ("wandb_entity, config.wandb_project = 'us', 'faces'", {}),
])
def test_a_key_alone(parse, line, changed):
    before, after = vars(parse()), vars(parse(f"config.{line}\n"))
    assert {key: value for key, value in after.items() if value != before[key]} == changed


def test_flags_go_over_the_file(parse):
    config = parse("", "--network", "r18", "--lr", "0.02", "--models-root", "there", "--end-epoch", "3")
    assert (config.num_layers, config.lr, config.models_root, config.end_epoch) == (18, 0.02, "there", 3)


def test_base_beside_the_file_is_what_it_is_laid_over(parse):
    config = parse(base="config.seed = 7\nconfig.frequent = 3\nconfig.lr = 9.0\nconfig.notes = 'mine'")
    assert (config.seed, config.frequent, config.lr) == (7, 3, 0.1)  # lr stands in both, and the file's counts
    assert dict(config.own_keys) == {"num_image": 5179510, "notes": "mine"}


def test_the_ending_may_be_left_out_as_in_its_own_commands(parse, tmp_path):
    parse()
    named = parse_args("train_parall", ["--config", str(tmp_path / "configs" / "ms1mv3_r50")], environ={})
    assert named.num_layers == 50


def test_what_is_not_ours_is_one_line(parse):
    line = own_keys_line(parse("config.dali = True\nconfig.save_artifacts = True\n"))
    assert line.startswith("ms1mv3_r50.py: keys that nothing here reads: dali, save_artifacts, num_image; ")
    assert "instead of dali: nothing, threads decode: decode_threads" in line


def test_a_key_of_wandb_is_not_kept(parse):
    config = parse("config.using_wandb = True\nconfig.wandb_key = 'a secret'\n")
    assert "a secret" not in str(config) + own_keys_line(config)
    assert "instead of wandb_key: `wandb login`" in own_keys_line(config)


def test_the_augmentation_of_dali_is_that_of_its_pipeline(parse):
    """Without dali nothing reads dali_aug there, and a line says so here."""
    keys = ("data_resize_prob", "data_blur_prob", "data_hsv_prob", "data_gray_prob", "data_mask_prob")

    def shares(config: Config) -> list[float]:
        return [getattr(config, key) for key in keys]

    assert shares(parse("config.dali = config.dali_aug = True\n")) == [0.1, 0.2, 0.2, 0.1, 0]
    alone = parse("config.dali_aug = True\n")
    assert shares(alone) == shares(parse("config.dali = True\n")) == [0] * 5
    assert "instead of dali_aug: data_resize_prob, " in own_keys_line(alone)
    assert "dali_aug" not in own_keys_line(parse("config.dali = config.dali_aug = True\n"))


def test_its_synthetic_set_is_made_up_here_too(parse):
    config = parse("config.rec = 'synthetic'\nconfig.num_classes = 30 * 10000\nconfig.val_targets = []\n")
    assert (config.dataset_path, config.num_classes) == ("synthetic:300000", 300000)
    assert config.output_dir.endswith("/r50-arcface-synthetic-300000")


@pytest.mark.parametrize("line, message", [
    ("network = 'r51'", f"ms1mv3_r50.py: network: found 'r51', expected one of {', '.join(NETWORKS)}; the "
     "nearest is 'r50'"),
    ("margin_list = (1.0, 0.3, 0.2)", "margin_list: found (1.0, 0.3, 0.2), expected (1.0, m2, 0.0) or (1.0, 0.0, m3)"),
    ("margin_list = 0.5", "margin_list: found 0.5"),
    ("gradient_acc = 0", "gradient_acc: found 0, expected a whole number at least 1"),
    ("rec, config.num_classes = 'synthetic', 0", "num_classes: found none, expected the number of identities"),
    ("decay_epoch = [8, 12]", "decay_epoch: found [8, 12], but of arcface_torch before PolynomialLRWarmup"),
    ("batch_size = 0", "batch_size: found 0, expected a whole number at least 1"),
    ("warmup_epoch = 'two'", "warmup_epoch: found 'two'"),
    ("rec = None", "found no rec, expected one"),
    ("optimizer = 'lamb'", "optimizer: found 'lamb', expected one of 'sgd', 'adamw'"),
])
def test_what_would_train_something_else_is_refused(refusal, line, message):
    assert message in refusal(f"config.{line}\n")


def test_a_base_that_is_none(refusal):
    assert refusal("", base="del config").endswith("found no EasyDict named config, expected the defaults of the files "
                                                   "beside it")


@pytest.mark.parametrize("network", NETWORKS)
def test_its_networks_are_ours(parse, network):
    """Each as a graph of 512 numbers; what stands for the masks of a ViT is there where it has any."""
    graph = build_network(parse(f"config.network = {network!r}\n"))
    assert infer_shapes(graph, (3, 112, 112)).output == (1, 512) and BASE["network"] in NETWORKS
    assert ("mask_token_weight" in graph.list_arguments()) == (network in (
        "vit_t", "vit_s", "vit_b", "vit_b_dp005_mask_005", "vit_l_dp005_mask_005"))


def test_base_itself_is_no_recipe(tmp_path):
    (tmp_path / "base.py").write_text(RECIPE.replace('config.rec = "/train_tmp/ms1m-retinaface-t1"', ""))
    with pytest.raises(UserError, match=r"base.py: found no rec, expected one, as arcface_torch's"):
        parse_args("train_parall", ["--config", str(Path(tmp_path, "base.py"))], environ={})
