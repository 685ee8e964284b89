# SPDX-License-Identifier: Apache-2.0
"""``--dataset`` with a place in place of a preset: a folder, several, what is made up."""
from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from recognition.config.cli import parse_args
from recognition.config.dataset_places import name_of_sets
from recognition.config.differences import as_json
from recognition.config.groups.option import ENTRIES
from recognition.config.options import Config
from recognition.config.presets import ROOT
from recognition.errors import UserError

LEGACY = """
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
    config.loss, config.network, config.dataset = _loss, _network, _dataset
"""


@pytest.fixture
def parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """parse_args on flags in a folder of its own, with a copy of sample_config.py."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample_config.py").write_text((ROOT / "sample_config.py").read_text())
    return lambda *argv, entry="train_parall": parse_args(entry, argv, tmp_path, {})


def records(folder: Path, prop: str = "77,112,112\n", targets: str = "lfw agedb_30 zebra african") -> Path:
    folder.mkdir(parents=True)
    for name in ("train.rec", *(f"{target}.bin" for target in targets.split())):
        (folder / name).touch()
    if prop:
        (folder / "property").write_text(prop)
    return folder


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_folder_of_records_is_verified_on_all_that_is_there(parse: Callable[..., Config], tmp_path: Path,
                                                             entry: str) -> None:
    """The recipes' targets come last: by the last of all a verification is the best."""
    folder = records(tmp_path / "sets" / "faces")
    config = parse("--dataset", str(folder), entry=entry)
    assert (config.dataset_path, config.num_classes, config.image_shape) == (str(folder), 0, (112, 112, 3))
    assert config.val_targets == ("african", "zebra", "lfw", "agedb_30")
    assert config.output_dir == "./models/r100-arcface-faces"
    assert parse("--dataset", "sets/faces/", "--val-targets", "zebra", entry=entry).val_targets == ("zebra",)
    assert Config(**json.loads(json.dumps(as_json(config)))) == config


def test_the_images_are_as_large_as_the_property_file_says(parse: Callable[..., Config], tmp_path: Path) -> None:
    for number, (prop, side) in enumerate({"5,128,128\nshuffled\n": 128, "": 112, "no numbers": 112,
                                           "5,96,112\n": 112}.items()):
        folder = records(tmp_path / str(number), prop)
        assert parse("--dataset", str(folder)).image_shape == (side, side, 3), prop


def test_a_preset_goes_before_a_folder_of_its_name(parse: Callable[..., Config], tmp_path: Path) -> None:
    records(tmp_path / "emore")
    assert parse("--dataset", "emore").dataset_path == "./datasets/faces_emore"
    assert parse("--dataset", "./emore").dataset_path == "./emore"


def test_a_legacy_config_takes_a_folder_as_a_preset(parse: Callable[..., Config], tmp_path: Path) -> None:
    """Its own generate_config looks the name up among its presets."""
    text = (tmp_path / "sample_config.py").read_text()
    (tmp_path / "config.py").write_text(text[: text.index("def generate_config")] + LEGACY)
    assert parse("--dataset", str(records(tmp_path / "a,b"))).dataset_path == str(tmp_path / "a,b")
    assert parse("--dataset", "synthetic:9").num_classes == 9


def test_what_is_made_up(parse: Callable[..., Config]) -> None:
    config = parse("--dataset", "synthetic:2000000")
    assert (config.dataset_path, config.num_classes, config.val_targets) == ("synthetic:2000000", 2000000, ())
    assert config.output_dir == "./models/r100-arcface-synthetic-2000000"


def test_several_sets(parse: Callable[..., Config], tmp_path: Path) -> None:
    """Presets, folders and what is made up; the targets of all, each once."""
    folder = records(tmp_path / "mine", targets="mine lfw")
    config = parse("--dataset", f"emore,{folder}, synthetic:5", "--dataset-weights", "1,0.5,2")
    assert config.dataset_path == ("./datasets/faces_emore", str(folder), "synthetic:5")
    assert config.dataset_weights == (1, 0.5, 2) and config.num_classes == 0
    assert config.val_targets == ("mine", "lfw", "cfp_fp", "agedb_30")
    assert config.output_dir == "./models/r100-arcface-emore+mine+synthetic-5"
    assert Config(**json.loads(json.dumps(as_json(config)))) == config


def test_a_list_of_paths_in_a_preset(parse: Callable[..., Config], tmp_path: Path) -> None:
    file = tmp_path / "sample_config.py"
    file.write_text(file.read_text() + "dataset.both = edict(dataset_path=['a', 'b'], dataset_weights=[1, 3])\n"
                                       "dataset.one = edict(dataset_path=['a'])\n")
    config = parse("--dataset", "both")
    assert (config.dataset_path, config.dataset_weights) == (("a", "b"), (1, 3))
    joined = parse("--dataset", "both,emore", "--dataset-weights", "")
    assert joined.dataset_path == ("a", "b", "./datasets/faces_emore")
    assert parse("--dataset", "one").dataset_path == "a"


@pytest.mark.parametrize("flags, line", [
    (("--dataset", "emor"), "--dataset: found 'emor', expected a dataset preset of sample_config.py: emore, retina, "
     "glint360k, webface, webface42m, demo, a folder, synthetic:N; the nearest is 'emore'"),
    (("--dataset", "nowhere/faces"), "--dataset: found 'nowhere/faces', expected a dataset preset"),
    (("--dataset", "synthetic:0"), "--dataset: found 'synthetic:0', expected a dataset preset"),
    (("--dataset", "emore,nowhere"), "--dataset: found 'nowhere' in 'emore,nowhere', expected a dataset preset"),
    (("--dataset", "emore,demo,wide"), "--dataset: loss_s is 16 in 'wide' and 32.0 in one before it, expected the same "
     "in all sets"),
    (("--dataset", "emore,retina", "--dataset-weights", "1"), "dataset_weights: found 1 for 2 data sets, expected one"),
    (("--dataset-weights", "1,2"), "dataset_weights: found 2 for 1 data sets, expected one for each"),
    (("--dataset-weights", "0"), "--dataset-weights: found '0', expected numbers above 0, at most 100"),
    (("--dataset", "emore,retina", "--dataset-weights", "1,2", "--loss", "triplet"),
     "dataset_weights: found (1.0, 2.0), but a bag of triplets takes each identity once")])
def test_what_is_no_place_is_refused_in_one_line(parse: Callable[..., Config], tmp_path: Path, flags: tuple[str, ...],
                                                 line: str) -> None:
    file = tmp_path / "sample_config.py"
    file.write_text(file.read_text() + "dataset.wide = edict(dataset_path='w', loss_s=16)\n")
    with pytest.raises(UserError) as error:
        parse(*flags)
    assert str(error.value).startswith(line.replace("demo, a", "demo, wide, a")) and "\n" not in str(error.value)


def test_names_of_folders_of_runs() -> None:
    assert name_of_sets("emore") == "emore" and name_of_sets("/x/faces/") == "faces"
    many = ",".join(f"/x/set{n}" for n in range(40))
    assert len(name_of_sets(many)) <= 80 and name_of_sets(many) != name_of_sets(many[:-1])


@pytest.mark.parametrize("page", ["README.md", "docs/data.md", "datasets/own_images.md"])
def test_the_commands_of_the_pages_are_read(parse: Callable[..., Config], tmp_path: Path, page: str) -> None:
    """Commands that name a folder, with such folders; what they do is in training/test_places_of_data.py."""
    records(tmp_path / "datasets" / "mine")
    (tmp_path / "photographs" / "anna").mkdir(parents=True)
    text = (ROOT / page).read_text().replace("\\\n", " ")
    found = re.findall(r"^ +python train_parall.py (.*--dataset \S*(?:mine|photographs|synthetic).*)$", text, re.M)
    assert found
    for command in found:
        words = shlex.split(command, comments=True)
        config = parse(*words, *(("--pretrained=", "--centres-from=checkpoint") if "--pretrained" in words else ()))
        assert config.dataset_places[-1] in ("datasets/mine", "photographs", "synthetic:2000000")
