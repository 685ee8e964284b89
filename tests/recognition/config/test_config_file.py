# SPDX-License-Identifier: Apache-2.0
"""A user's config.py: the legacy form works as it is, and what is wrong with one is said in one line."""
from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from recognition.config.options import Config
from recognition.config.presets import ConfigFile, open_config, own_keys_line
from recognition.errors import UserError

# The form of the legacy file: attributes on EasyDicts, imports that it does not need, values of every age of it.
LEGACY = """
import numpy as np
import os
from easydict import EasyDict as edict

config = edict()
config.bn_mom = 0.9
config.data_cutoff = False
config.max_steps = 0
config.net_blocks = [1,4,6,2]
config.val_targets = ['lfw']
config.loss_K = 3
config.flip_noise_prob = 0.0
config.memonger = False #not work now

network = edict()
network.mine = edict()
network.mine.net_name = 'fresnet'
network.mine.num_layers = 50
network.mine.per_batch_size = 32

dataset = edict()
dataset.faces = edict()
dataset.faces.dataset = 'another name'
dataset.faces.dataset_path = '../datasets/faces'
dataset.faces.num_classes = 1234
dataset.faces.image_shape = (112,112,3)
dataset.faces.lr_steps = '10,20'

loss = edict()
loss.arcface = edict()
loss.arcface.loss_name = 'margin_softmax'
loss.arcface.loss_s = 64.0
loss.arcface.loss_m1 = 1.0
loss.arcface.loss_m2 = 0.5
loss.arcface.loss_m3 = 0.0
loss.arcface.per_batch_size = 60

default = edict()
default.network = 'mine'
default.dataset = 'faces'
default.loss = 'arcface'
default.per_batch_size = 128
default.lr = 0.2

def generate_config(_network, _dataset, _loss):
    for k, v in loss[_loss].items():
      config[k] = v
      if k in default:
        default[k] = v
    for k, v in network[_network].items():
      config[k] = v
      if k in default:
        default[k] = v
    for k, v in dataset[_dataset].items():
      config[k] = v
      if k in default:
        default[k] = v
    config.loss = _loss
    config.network = _network
    config.dataset = _dataset
    config.num_workers = 1
    if 'DMLC_NUM_WORKER' in os.environ:
      config.num_workers = int(os.environ['DMLC_NUM_WORKER'])
"""
CHOSEN = {"network": "mine", "dataset": "faces", "loss": "arcface"}


def written(folder: Path, text: str) -> ConfigFile:
    (folder / "config.py").write_text(text)
    return open_config(root=folder)


def refusal(folder: Path, text: str, chosen=CHOSEN) -> str:
    with pytest.raises(UserError) as error:
        written(folder, text).lay_presets(chosen, {kind: f"--{kind}" for kind in CHOSEN})
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_legacy_file(tmp_path):
    values = written(tmp_path, LEGACY).lay_presets(CHOSEN, CHOSEN)
    assert values["loss_K"] == 3
    assert values["num_classes"] == 1234
    assert values["per_batch_size"] == 32  # the network's preset goes over the loss's
    assert values["lr"] == 0.2
    assert values["lr_steps"] == "10,20"  # default has no such key: the preset's value stands in config alone


@pytest.mark.parametrize("spelling", ["centres", "centers"])
def test_both_spellings_of_centre_are_keys(tmp_path, spelling):
    """A saved configuration keeps the one that it has."""
    text = LEGACY + f"\nconfig.{spelling}_on = 'cpu'\ndefault.{spelling}_from = 'random'\n"
    values = written(tmp_path, text).lay_presets(CHOSEN, CHOSEN)
    assert (values["centers_on"], values["centres_from"], values["own_keys"]) == ("cpu", "random", {})
    assert {"centers_on", "centres_from"} <= vars(Config()).keys()


def test_each_flag_is_read_from_default_and_each_other_key_from_config(tmp_path):
    both = LEGACY + "\nconfig.lr = 0.7\nconfig.emb_size = 256\ndefault.emb_size = 128\n"
    values = written(tmp_path, both).lay_presets(CHOSEN, CHOSEN)
    assert (values["lr"], values["emb_size"]) == (0.2, 256)


def test_loading_twice_starts_anew_and_leaves_no_module_and_no_cache(tmp_path):
    before = set(sys.modules)
    first = written(tmp_path, LEGACY)
    first.lay_presets(CHOSEN, CHOSEN)
    assert written(tmp_path, LEGACY).module.default.per_batch_size == 128
    assert {name for name in set(sys.modules) - before if "config" in name} == set()
    assert [path.name for path in tmp_path.iterdir()] == ["config.py"]


def test_an_edit_of_the_same_size_in_the_same_second_is_seen(tmp_path):
    assert written(tmp_path, LEGACY).module.config.loss_K == 3
    assert written(tmp_path, LEGACY.replace("loss_K = 3", "loss_K = 1")).module.config.loss_K == 1


def test_which_file(tmp_path):
    (tmp_path / "sample_config.py").write_text(LEGACY)
    assert open_config(root=tmp_path).name == "sample_config.py"
    written(tmp_path, LEGACY)
    assert open_config(root=tmp_path).name == "config.py"
    other = tmp_path / "other.txt"
    other.write_text(LEGACY)
    assert open_config(str(other), root=tmp_path).path == other
    with pytest.raises(UserError, match=r"none.py: no such file$"):
        open_config("none.py", root=tmp_path)


@pytest.mark.parametrize("broken, line, reason", [
    ("x = 1 / 0", 2, "ZeroDivisionError: division by zero"),
    ("config.lr == ", 2, "SyntaxError: invalid syntax"),
    ("import no_such_module", 2, "ModuleNotFoundError: No module named 'no_such_module'"),
    ("raise SystemExit('no')", 2, "SystemExit: no"),
    ("raise ValueError('two\\nlines')", 2, "ValueError: two lines"),
])
def test_an_error_in_the_file_names_its_line(tmp_path, broken, line, reason):
    assert refusal(tmp_path, "\n" + broken + "\n" + LEGACY) == f"config.py, line {line}: {reason}"


def test_an_error_in_generate_config_names_its_line(tmp_path):
    text = LEGACY.replace("    config.loss = _loss", "    config.loss = _los")
    line = text.splitlines().index("    config.loss = _los") + 1
    assert refusal(tmp_path, text).startswith(f"config.py, line {line}: NameError: name '_los' is not defined")


@pytest.mark.parametrize("name", ["config", "network", "dataset", "loss", "default", "generate_config"])
def test_a_missing_part_is_named(tmp_path, name):
    assert f"found no {'function ' if name == 'generate_config' else 'EasyDict named '}{name}" in \
           refusal(tmp_path, LEGACY + f"\ndel {name}\n")


def test_an_unknown_preset(tmp_path):
    assert refusal(tmp_path, LEGACY, {**CHOSEN, "network": "mime"}) == (
        "--network: found 'mime', expected a network preset of config.py: mine; the nearest is 'mine'")


@pytest.mark.parametrize("line, nearest", [
    ("config.data_mirror = True", "'data_mirror'; the nearest is 'data_rand_mirror'"),
    ("config.batch_size = 64", "'batch_size'; the nearest is 'per_batch_size'"),
    ("default.lr_step = '10'", "'lr_step'; the nearest is 'lr_steps'"),
    ("network.mine.net_dropout = 0.4", "'net_dropout'; the nearest is 'densenet_dropout'")])
def test_a_key_like_one_of_ours_is_taken_for_a_typo(tmp_path, line, nearest):
    assert refusal(tmp_path, f"{LEGACY}\n{line}\n") == (
        f"config.py: found the unknown key {nearest}; a key of your own needs another name, or to be read by the "
        "network that net_name names")


def test_keys_that_are_not_ours_are_carried(tmp_path):
    """As the recipes' own programs did: such files hold what other programs read, or nobody."""
    text = LEGACY + "\ndefault.log_dir = './models/'\nconfig.widths = [4, 8]\nnetwork.mine.depth = 3\n"
    values = written(tmp_path, text).lay_presets(CHOSEN, CHOSEN)
    assert values["own_keys"] == {"log_dir": "./models/", "widths": [4, 8], "depth": 3}
    assert not {"log_dir", "widths", "depth"} & values.keys()


def test_what_is_said_of_keys_that_are_not_ours():
    config = Config(config_file="a/config.py", own_keys={"widths": [4], "depth": 3})
    assert own_keys_line(config) == "config.py: keys that nothing here reads: widths, depth"
    assert own_keys_line(dataclasses.replace(config, net_name="my_net")) == \
           "config.py: keys not ours, left to your own network: widths, depth"
    assert own_keys_line(Config()) == ""


def test_keys_of_other_trainers_are_said_with_what_is_here_instead():
    config = Config(config_file="config.py", own_keys={"clip_gradient": 4, "rec": "x", "widths": 1})
    assert own_keys_line(config) == (
        "config.py: keys that nothing here reads: clip_gradient, rec, widths; instead of clip_gradient: "
        "clip_norm, of all gradients together; instead of rec: dataset_path")


def test_a_key_that_the_users_network_reads_is_no_typo(tmp_path):
    """In the file that net_name names, or in one beside it that this one names."""
    text = LEGACY.replace("'fresnet'", "'my_net'") + "\nconfig.net_dropout = 0.4\nconfig.net_blocs = 3\n"
    (tmp_path / "symbol").mkdir()
    (tmp_path / "symbol" / "my_net.py").write_text("import helpers, config\nx = config.config.net_dropout\n")
    assert "net_blocs" in refusal(tmp_path, text)
    (tmp_path / "symbol" / "helpers.py").write_text("from config import config\ny = config.net_blocs\n")
    assert written(tmp_path, text).lay_presets(CHOSEN, CHOSEN)["own_keys"] == {"net_dropout": 0.4, "net_blocs": 3}


def test_a_preset_without_what_it_is_for(tmp_path):
    text = LEGACY.replace("dataset.faces.dataset_path", "dataset.faces.dataset")
    assert refusal(tmp_path, text) == "config.py: found no dataset_path in the dataset preset 'faces'"
