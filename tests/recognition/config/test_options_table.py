# SPDX-License-Identifier: Apache-2.0
"""docs/options.md: whole, and true as far as a program can tell."""
from __future__ import annotations

import ast
import re

import pytest

from recognition.config.cli import flag_keys, flag_name
from recognition.config.command_line import british
from recognition.config.groups.option import ENTRIES
from recognition.config.options import OPTIONS, option_key
from recognition.config.presets import ROOT

ROWS = [[cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / "docs" / "options.md").read_text().splitlines() if line.startswith("| `")]


# The contract's flags and keys, written down a second time on purpose.
FLAGS = """dataset network loss models-root pretrained pretrained-epoch ckpt verbose lr lr-steps wd mom frequent
per-batch-size kvstore"""
PARALL_FLAGS = "worker-id extra-model-name fp16-scale"
KEYS = """bn_mom workspace emb_size ckpt_embedding net_se net_act net_unit net_input net_blocks net_output
net_multiplier val_targets ce_loss fc7_lr_mult fc7_wd_mult fc7_no_bias max_steps data_rand_mirror data_cutoff data_color
data_images_filter count_flops memonger is_shuffled_rec fp16 loss_K sample_ratio
network pretrained pretrained_epoch dataset loss frequent verbose kvstore end_epoch lr wd mom per_batch_size ckpt
lr_steps models_root num_workers
net_name num_layers densenet_dropout dataset_path num_classes image_shape
loss_name loss_s loss_m1 loss_m2 loss_m3 images_per_identity triplet_alpha triplet_bag_size triplet_max_ap"""


def test_all_options_stand_there_once_and_in_order():
    assert [row[0].strip("`") for row in ROWS] == [british(key) for key in OPTIONS]


def test_every_flag_and_key_of_the_contract_stands_there():
    flags = {row[1] for row in ROWS}
    assert {f"`--{flag}`" for flag in FLAGS.split()} | {
        f"`--{flag}` (train_parall.py)" for flag in PARALL_FLAGS.split()} <= flags
    assert set(KEYS.split()) <= {row[0].strip("`") for row in ROWS}


@pytest.mark.parametrize("key, flag, default, meaning, effect, mxnet, torch, test", ROWS, ids=list(OPTIONS))
def test_row(key, flag, default, meaning, effect, mxnet, torch, test):
    key = option_key(key.strip("`"))
    entries = [entry for entry in ENTRIES if key in flag_keys(entry)]
    if entries:
        assert flag.startswith(f"`{flag_name(key)}`") and ("train_parall.py" in flag) == (len(entries) == 1)
    option_type, expected = OPTIONS[key].metadata["type"], OPTIONS[key].default
    if isinstance(expected, (int, float)):
        assert default == str(expected)
    elif default != "empty":
        assert option_type.check(default, key) == expected
    assert meaning == OPTIONS[key].metadata["help"].replace("|", "or") and effect and mxnet and torch
    for named in test.split(", "):  # by the source of the test, which sets the option: by its key or by its flag
        assert re.search(rf"\b{key}\b|{flag_name(key)}\b", source(*named.strip("`").split("::"))), named


def source(path, name):
    """The text of a test with its decorators, with the fixtures of its module that it asks for, and the constants there
    from which its parameters come."""
    text = (ROOT / path).read_text()
    there = {name: node for node in ast.parse(text).body for name in names_of(node)}
    wanted, found = [there[name]], []
    for node in wanted:
        found.append(ast.get_source_segment(text, node))
        asked = [node]
        if isinstance(node, ast.FunctionDef):
            found += [ast.get_source_segment(text, decorator) for decorator in node.decorator_list]
            asked = [*node.decorator_list, *(ast.Name(argument.arg) for argument in node.args.args)]
        names = {part.id for start in asked for part in ast.walk(start) if isinstance(part, ast.Name)}
        wanted += [there[name] for name in names if name in there and there[name] not in wanted]
    return "\n".join(found)


def names_of(node):
    """The names that a statement of a module gives."""
    if isinstance(node, ast.FunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]
