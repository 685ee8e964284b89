# SPDX-License-Identifier: Apache-2.0
"""Runs that take the network of a checkpoint's own symbol, which may be of another trainer, with its head and loss."""
from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recognition.config.cli import parse_args
from recognition.config.options import Config
from recognition.errors import UserError
from recognition.evaluation.trained_backbone import load_backbone
from recognition.io.params import read_arrays
from recognition.networks import build_symbol
from recognition.networks.initialise import initialise
from recognition.training.run import train
from recognition.training.states.state import SavedState, saved_states

ROOT = Path(__file__).resolve().parents[4]
DIM = 8
OURS = """
exec(compile(open({sample!r}).read(), {sample!r}, "exec"))
dataset.tiny = edict(dataset_path={data!r}, num_classes=11, image_shape=(112, 112, 3), val_targets=["tiny"])
default.network, default.dataset, default.loss, default.models_root = "y1", "tiny", "arcface", {models!r}
default.per_batch_size, default.frequent, default.lr, default.verbose = 12, 2, 0.01, 3
"""


@pytest.fixture
def checkpoint(make: Callable[..., Config], tmp_path: Path) -> Path:
    """The prefix of a checkpoint of a network that no preset has, and of which fc7 and a loss are a part."""
    config = make(models_root=str(tmp_path / "theirs"))
    assert train(config) == 0
    (tmp_path / "old").mkdir()
    prefix = tmp_path / "old" / "their"
    shutil.copy(f"{config.prefix}-0001.params", f"{prefix}-0007.params")
    symbol = json.loads(Path(f"{config.prefix}-symbol.json").read_text())
    nodes, fc1 = symbol["nodes"], symbol["heads"][0][0]
    nodes += [{"op": "null", "name": "fc7_weight", "inputs": []},
              {"op": "FullyConnected", "name": "fc7", "attrs": {"num_hidden": "11", "no_bias": "True"},
               "inputs": [[fc1, 0, 0], [len(nodes), 0, 0]]},
              {"op": "null", "name": "softmax_label", "inputs": []},
              {"op": "SoftmaxOutput", "name": "softmax", "inputs": [[len(nodes) + 1, 0, 0], [len(nodes) + 2, 0, 0]]}]
    symbol["heads"] = [[len(nodes) - 1, 0, 0]]
    Path(f"{prefix}-symbol.json").write_text(json.dumps(symbol))
    return prefix


@pytest.fixture
def parsed(tiny_set: Path, tmp_path: Path, engine: str) -> Callable[..., Config]:
    """``parsed(entry, *flags)``: the configuration of those flags."""
    config = tmp_path / "ours.py"
    config.write_text(OURS.format(sample=str(ROOT / "sample_config.py"), data=str(tiny_set),
                                  models=str(tmp_path / "models")))
    return lambda entry, *flags: parse_args(entry, ["--config", str(config), "--engine", engine, *flags], environ={})


def arrays(path: Path) -> dict[str, np.ndarray]:
    file = read_arrays(path)
    return {name: np.asarray(array) for name, array in zip(file.names, file.arrays)}


@pytest.mark.parametrize("entry", ["train", "train_parall"])
def test_it_trains_saves_resumes_and_verifies(entry: str, engine: str, checkpoint: Path, parsed: Callable[..., Config],
                                              capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--network", "checkpoint", "--pretrained", f"{checkpoint},7"]
    config = parsed(entry, *flags, "--max-steps", "6")
    assert Path(config.output_dir).name == "checkpoint-arcface-tiny"
    assert train(config) == 0
    out = capsys.readouterr().out
    assert "arrays loaded, 0 missing, 0 left over" in out and "going on" not in out
    through = arrays(Path(f"{config.prefix}-0001.params"))
    assert {name for name in through if "weight" in name} == {"arg:conv0_weight", "arg:fc1_weight"}
    assert load_backbone(config.prefix, config.devices, engine=engine).embed(np.zeros((2, 112, 112, 3), np.uint8)
                                                                             ).shape == (2, DIM)
    state = SavedState(saved_states(Path(config.output_dir) / "state")[-1])
    assert state.progress.identity["network"] == "checkpoint" and state.progress.identity["emb_size"] == DIM
    assert len(state.progress.identity["network_sha256"]) == 64
    assert state.progress.config["net_name"] == f"{checkpoint}-symbol.json"
    # In two parts: the same bits.
    assert train(parsed(entry, *flags, "--max-steps", "3", "--extra-model-name=b" if "parall" in entry else "--seed=0",
                        "--models-root", f"{checkpoint.parent}")) == 0
    again = parsed(entry, *flags, "--max-steps", "6", "--extra-model-name=b" if "parall" in entry else "--seed=0",
                   "--models-root", f"{checkpoint.parent}", "--resume")
    assert train(again) == 0
    assert "going on after step 3" in capsys.readouterr().out
    second = arrays(Path(f"{again.prefix}-0001.params"))
    assert [name for name in through if not np.array_equal(through[name], second[name])] == []


def test_a_symbol_by_its_path_starts_from_the_seed(checkpoint: Path, parsed: Callable[..., Config],
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    config = parsed("train_parall", "--network", f"{checkpoint}-symbol.json", "--max-steps", "1")
    assert Path(config.output_dir).name == "their-symbol-arcface-tiny"
    assert train(config) == 0
    assert "loaded" not in capsys.readouterr().out


def test_a_network_of_ours_from_its_file_starts_from_the_same_values(
        configuration: Callable[..., Any], tmp_path: Path) -> None:
    """PReLU's slopes, too, which start from 0.25 by an attribute that a file of strangers loses in the check."""
    ours = configuration("y1", config_file="", image_shape=(112, 112, 3))
    graph = build_symbol(ours)
    (tmp_path / "y1-symbol.json").write_text(graph.to_json())
    theirs = build_symbol(configuration("y1", config_file="", image_shape=(112, 112, 3),
                                        net_name=str(tmp_path / "y1-symbol.json")))
    for mine, other in zip(initialise(graph, (3, 112, 112), 0), initialise(theirs, (3, 112, 112), 0)):
        assert mine.keys() == other.keys() and all(np.array_equal(mine[name], other[name]) for name in mine)


def test_a_preset_may_name_one(checkpoint: Path, parsed: Callable[..., Config], tmp_path: Path) -> None:
    with open(tmp_path / "ours.py", "a") as file:
        file.write('network.theirs = edict(net_name="old/their-symbol.json")\n')
    assert train(parsed("train", "--network", "theirs", "--max-steps", "1")) == 0


def test_another_graph_under_the_same_name_is_no_run_to_go_on_with(checkpoint: Path,
                                                                   parsed: Callable[..., Config]) -> None:
    """Its shapes are the same, so that nothing else would tell."""
    flags = ["--network", "checkpoint", "--pretrained", f"{checkpoint},7"]
    assert train(parsed("train", *flags, "--max-steps", "3")) == 0
    path = Path(f"{checkpoint}-symbol.json")
    path.write_text(path.read_text().replace("_div_scalar", "_mul_scalar"))
    with pytest.raises(UserError, match="was saved with network_sha256 '"):
        train(parsed("train", *flags, "--max-steps", "6", "--resume"))


def rename(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("change, words", [
    (("FullyConnected", "Custom"), "the operator 'Custom', expected one of those that networks of images are made of"),
    (('"fc1"', '"embedding"'), "found no output 'fc1_output'"),
    (('"data"', '"image"'), "found no input 'data'"),
    (("{", "[", ), "not a symbol that MXNet can be given"),
])
def test_a_file_of_strangers_is_judged_before_an_engine_sees_it(change: tuple[str, str], words: str, checkpoint: Path,
                                                                parsed: Callable[..., Config]) -> None:
    rename(Path(f"{checkpoint}-symbol.json"), *change)
    with pytest.raises(UserError, match=words.replace("[", r"\[")):
        train(parsed("train", "--network", "checkpoint", "--pretrained", f"{checkpoint},7"))


def test_what_names_no_symbol_is_one_line(checkpoint: Path, parsed: Callable[..., Config]) -> None:
    def refused(*flags: str) -> Any:
        with pytest.raises(UserError) as caught:
            parsed("train_parall", *flags)
        return str(caught.value)

    assert refused("--network", "checkpoint") == (
        "--network: found 'checkpoint', the network of a checkpoint, expected --pretrained with it")
    assert refused("--network", "checkpoint", "--pretrained", "none,1").startswith(
        "--network: found no file none-symbol.json, expected the symbol of a checkpoint")
    assert refused("--network", "old/none.json").startswith("--network: found no file old/none.json, expected")
