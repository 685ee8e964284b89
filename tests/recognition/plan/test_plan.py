# SPDX-License-Identifier: Apache-2.0
"""The command ``python -m recognition.plan``."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recognition.errors import UserError
from recognition.plan.command import main, parse
from recognition.plan.pace import Network, pace
from recognition.plan.planning import METHODS

DEMO = ["--network", "demo", "--classes", "1000000", "--devices", "4", "--per-batch-size", "16"]


def table_of(text: str) -> dict[str, list[str]]:
    """The cells of each row of four, by its title."""
    rows = {}
    for line in text.splitlines():
        words = line.split()
        if line.startswith("  ") and len(words) > 4:
            rows[" ".join(words[:-4])] = words[-4:]
    return rows


def test_the_table_says_what_json_says(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    assert main([*DEMO, "--memory", "3.5", "--json", str(path)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("demo, float32, PyTorch, sgd; 1,000,000 classes x 128; 4 gpu x 16 images = 64 a step\n")
    rows, saved = table_of(text), json.loads(path.read_text())
    ways = [saved["ways"][name] for name in METHODS]
    for part in ways[0]["memory"]:
        assert rows[part] == [f"{way['memory'][part] / 1e9:.2f}" for way in ways]
    assert rows["in all"] == [f"{way['total'] / 1e9:.2f}" for way in ways]
    assert rows["MB sent"] == [f"{way['sent'] / 1e6:,.1f}" for way in ways]
    assert rows["fits"] == ["yes" if way["fits"] else "no" for way in ways] == ["no", "no", "yes", "yes"]
    assert rows["most classes"] == [f"{way['most_classes']:,}" for way in ways]
    assert rows["fewest devices"] == [str(way["fewest_devices"] or "none") for way in ways]
    for way in ways:
        assert way["total"] == sum(way["memory"].values()) and way["fits"] == (way["total"] <= 3.5e9)
    assert saved["setting"]["classes"] == 1_000_000 and saved["memory"] == 3.5


def test_json_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DEMO, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["ways"]) == list(METHODS) and "fits" not in found["ways"]["old"]


def test_flags_reach_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    main([*DEMO, "--on", "cpu", "--sub-centres", "3", "--emb-size", "64", "--optimizer", "adamw", "--sample-ratio",
          "0.2", "--reserve", "0", "--memonger", "--fp16", "--centers-on", "cpu", "--json"])
    setting = json.loads(capsys.readouterr().out)["setting"]
    assert setting.pop("backbone")["parameters"] > 0
    assert setting == {"classes": 1_000_000, "devices": 4, "images": 16, "dim": 64, "kind": "cpu", "sub_centres": 3,
                       "ratio": 0.2, "optimizer": "adamw", "centres_on": "cpu", "filtered": False, "reserve": 0,
                       "number_bytes": 4, "shard": "cpu", "gradient_bytes": 4, "average": False}


def test_presets_give_what_flags_do_not() -> None:
    flags, config = parse(["--network", "d169", "--dataset", "webface42m", "--loss", "cosface"])
    assert (config.num_classes, config.per_batch_size, config.sample_ratio, config.loss_K) == (2059906, 64, 0.1, 1)
    assert (flags.devices, flags.on, flags.reserve, flags.memory) == (8, "gpu", 2.5, None)


def test_a_config_of_ones_own(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "sample_config.py").read_text()
    (tmp_path / "mine.py").write_text(
        text + "\nconfig.sample_ratio = 0.3\nconfig.loss_K = 2\ndefault.pretrained = './models/not-here,1'\n"
        "dataset.mine = edict(dataset_path='', num_classes=77, image_shape=(64, 64, 3))\n")
    _, config = parse(["--config", str(tmp_path / "mine.py"), "--dataset", "mine"])
    assert (config.sample_ratio, config.loss_K, config.num_classes, config.image_shape[0]) == (0.3, 2, 77, 64)


@pytest.mark.parametrize(("flags", "says"), [
    (["--classes", "0"], "--classes: found '0', expected a whole number at least 1"),
    (["--devices", "gpu:0"], "--devices: found 'gpu:0', expected a whole number at least 1"),
    (["--on", "tpu"], "--on: found 'tpu', expected one of 'gpu', 'cpu'"),
    (["--memory", "-1"], "--memory: found '-1', expected a number above 0"),
    (["--reserve", "much"], "--reserve: found 'much', expected a number at least 0"),
    (["--optimizer", "adam"], "--optimizer: found 'adam', expected one of 'sgd', 'adamw'; the nearest is 'adamw'"),
    (["--sub-centres", "0"], "--sub-centres: found '0', expected a whole number at least 1"),
    (["--emb-size", "x"], "--emb-size: found 'x', expected a whole number at least 1"),
    (["--sample-ratio", "2"], "--sample-ratio: found '2', expected a number above 0 and at most 1"),
    (["--network", "r51"], "--network: found 'r51', expected a network preset of sample_config.py"),
    (["--dataset", "demo"], "--classes: not given, and the dataset preset 'demo' has no num_classes"),
    (["--loss", "triplet"], "--loss: found 'triplet', expected a loss with class centres"),
    (["--worker-id", "0"], "unrecognized arguments: --worker-id"),
])
def test_mistakes_are_one_line(flags: list[str], says: str) -> None:
    with pytest.raises(UserError) as error:
        parse(flags)
    assert str(error.value).startswith(says) and "\n" not in str(error.value)


def test_a_mistake_of_the_network_ends_the_command_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--network", "m1", "--loss", "arcface", "--classes", "10", "--emb-size", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: --emb-size")


def test_a_file_that_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert main([*DEMO, "--json", str(tmp_path / "file" / "plan.json")]) == 2
    assert str(tmp_path / "file" / "plan.json") in capsys.readouterr().err.splitlines()[-1]


def test_help_and_mistakes_do_not_wait_for_mxnet() -> None:
    program = ("import sys\nfrom recognition.plan.command import main\ncode = main(['--classes', 'x'])\n"
               "print(code, 'mxnet' in sys.modules, 'numpy' in sys.modules)")
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                         cwd=Path(__file__).parents[3])
    assert run.stdout.split() == ["2", "False", "False"]


def test_the_pace_of_several_hosts(capsys: pytest.CaptureFixture[str]) -> None:
    """The same by hand: 16 images at 100 a second are 0.16 s; what is sent, over 10^9 bits a second."""
    assert main([*DEMO, "--hosts", "2", "--link", "1", "--measured", "100", "--json"]) == 0
    ways = json.loads(capsys.readouterr().out)["ways"]
    assert "images_per_second" not in ways["old"]
    for name in ("data_parallel", "parallel", "sampled"):
        exchange = ways[name]["sent"] * 8 / 1e9
        assert ways[name]["images_per_second"] == {"least": pytest.approx(64 / (0.16 + exchange)),
                                                   "most": pytest.approx(64 / max(0.16, exchange))}
    assert main([*DEMO, "--hosts", "2", "--link", "1", "--measured", "100"]) == 0
    rows = capsys.readouterr().out.splitlines()
    least = next(line.split()[2:] for line in rows if line.startswith("  at least"))
    assert least == [f"{ways[name]['images_per_second']['least']:,.0f}" for name in
                     ("data_parallel", "parallel", "sampled")]
    assert pace(4, 16, 100, 10**9, Network(1, 1e-9)) == (400, 400)  # one host has no link


# arcface_torch's README: r50 on WebFace42M (2,059,906 identities) with Partial FC 0.2, images a second; GPUs and images
# a GPU. The network is not published: 25 Gbit/s is assumed. A host has eight GPUs, and their pace is known.
@pytest.mark.parametrize("devices, images, published", [(16, 512, 11000), (32, 128, 17000)])
def test_the_pace_that_was_published(devices: int, images: int, published: int,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    main(["--network", "r50", "--fp16", "--classes", "2059906", "--sample-ratio", "0.2", "--devices", str(devices),
          "--per-batch-size", str(images), "--hosts", str(devices // 8), "--link", "25", "--measured", str(5900 / 8),
          "--json"])
    found = json.loads(capsys.readouterr().out)["ways"]["sampled"]["images_per_second"]
    assert found["least"] <= published <= found["most"]


def test_the_speed_of_the_network_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DEMO, "--hosts", "2", "--measured", "100"]) == 2
    assert capsys.readouterr().err == ("error: --link: not given, expected the speed of the network between hosts, "
                                       "such as --link 10\n")


@pytest.mark.parametrize(("flags", "shard", "bytes_a_number"), [
    (["--engine", "torch", "--fp16"], "triton", 10), (["--centres-numbers", "bfloat16", "--fp16"], "triton", 4),
    (["--engine", "torch"], "torch", 8), (["--engine", "torch", "--centres-numbers", "bfloat16"], "torch", 4),
    (["--engine", "torch", "--fp16", "--head-products", "float32"], "torch", 8),
    (["--engine", "torch", "--head-products", "float16", "--optimizer", "adamw"], "triton", 14),
    (["--engine", "torch", "--fp16", "--loss", "softmax"], "torch", 8), (["--fp16"], "triton", 10),
    (["--engine", "mxnet", "--fp16"], "gpu", 8),
    (["--engine", "torch", "--fp16", "--emb-size", "2049"], "torch", 8),
    (["--centres-numbers", "bfloat16", "--on", "cpu"], "torch on cpu", 4)])
def test_what_a_number_of_w_takes_by_what_computes(flags: list[str], shard: str, bytes_a_number: int,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    """docs/gpu_head.md: 10 bytes with Triton's kernels and W in float32, 4 in bfloat16, with SGD."""
    main(["--network", "demo", "--classes", "10000000", "--devices", "1", "--per-batch-size", "64", *flags, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["setting"]["shard"] == shard
    numbers = 10**7 * found["setting"]["dim"]
    memory = found["ways"]["parallel"]["memory"]
    stored = sum(memory.get(part, 0) for part in ("class centres W", "their moments", "unit vectors"))
    assert stored == bytes_a_number * numbers


def test_a_disk_holds_w_and_what_the_plan_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    for on, ratio in (("gpu", ["--sample-ratio", "0.01"]), ("cpu", [])):
        assert main([*DEMO, "--on", on, "--engine", "torch", "--centres-on", "disk", *ratio]) == 0
        rows = table_of(capsys.readouterr().out)
        assert rows["and of its disk"] == ["0.00", "0.00", "0.26", "0.26"]  # 250,000 x 128 numbers, twice
        assert rows["class centres W"][2:] == rows["their moments"][2:] == ["0.00", "0.00"]
    with pytest.raises(UserError, match="--centres-numbers: found 'bfloat16', but MXNet keeps"):
        parse([*DEMO, "--engine", "mxnet", "--centres-numbers", "bfloat16"])
