# SPDX-License-Identifier: Apache-2.0
"""Flags over presets over defaults, for both entry points."""
from __future__ import annotations

import subprocess
import sys

import pytest

from recognition.config.cli import find_pretrained, flag_keys, flag_name, parse_args
from recognition.config.presets import ROOT
from recognition.errors import UserError, command

CONTRACT = {
    "dataset": "emore", "network": "r100", "loss": "arcface", "models_root": "./models", "pretrained": "",
    "pretrained_epoch": 1, "ckpt": 3, "verbose": 2000, "lr": 0.1, "lr_steps": (100000, 160000, 220000), "wd": 0.0005,
    "mom": 0.9, "frequent": 20, "per_batch_size": 128, "kvstore": "device",
}
PARALL = {"worker_id": 0, "extra_model_name": "", "fp16_scale": 0.0}


SAMPLE = (ROOT / "sample_config.py").read_text()


@pytest.fixture
def parse(tmp_path):
    """parse_args on flags, with sample_config.py alone (not a config.py that someone keeps in this checkout)."""
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    (shipped / "sample_config.py").write_text(SAMPLE)
    return lambda *argv, entry="train_parall", root=shipped, **environ: parse_args(entry, argv, root, environ)


@pytest.fixture
def refusal(parse):
    """The line with which flags are refused."""

    def refused(*argv, **options):
        with pytest.raises(UserError) as error:
            parse(*argv, **options)
        assert len(str(error.value).splitlines()) == 1
        return str(error.value)

    return refused


@pytest.mark.parametrize("entry, defaults", [("train", CONTRACT), ("train_parall", {**CONTRACT, **PARALL})])
def test_flags_and_defaults_of_the_contract(parse, entry, defaults):
    config = parse(entry=entry)
    assert {key: getattr(config, key) for key in defaults} == defaults
    assert set(defaults) <= set(flag_keys(entry))
    assert config.entry == entry


def test_precedence(parse):
    assert parse("--network", "y1").per_batch_size == 128
    assert parse("--network", "y1").emb_size == 128  # the preset's, over config's 512
    config = parse("--lr-steps", "1e,2e", "--warmup", "0.5e", "--optimizer", "adamw", "--lr-schedule", "cosine",
                   "--end-epoch", "3")
    assert (config.lr_steps, config.warmup, config.optimizer, config.lr_schedule) == \
           (("1e", "2e"), "0.5e", "adamw", "cosine")
    config = parse("--network=y1", "--lr", "0.01", "--lr-steps", "5,6", "--val-targets", "a,b", "--max-steps", "7",
                   "--end-epoch", "2")
    assert (config.lr, config.lr_steps, config.val_targets, config.max_steps, config.end_epoch) == \
           (0.01, (5, 6), ("a", "b"), 7, 2)


def test_presets_set_what_flags_set_and_flags_win(parse, tmp_path):
    text = SAMPLE + "\ndataset.demo.lr = 0.3\nnetwork.demo.lr = 0.2\ndefault.lr = 0.7\n"
    (tmp_path / "config.py").write_text(text)
    assert parse("--dataset", "demo", root=tmp_path).lr == 0.3
    assert parse("--network", "demo", root=tmp_path).lr == 0.2
    assert parse("--network", "demo", "--dataset", "demo", root=tmp_path).lr == 0.3
    assert parse(root=tmp_path).lr == 0.7
    assert parse("--dataset", "demo", "--lr", "0.9", root=tmp_path).lr == 0.9


def test_the_file_that_is_named_is_read(parse, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(SAMPLE + "\ndefault.network = 'y2'\n")
    config = parse("--config", str(mine))
    assert (config.network, config.net_blocks, config.config_file) == ("y2", (2, 8, 16, 4), str(mine))


def test_a_flag_and_its_value_may_be_one_word(parse, refusal):
    """So that it passes horovodrun's own parser."""
    config = parse("--network y1", "--dataset", "demo", "--extra-model-name", "a b", "--lr  0.5")
    assert (config.network, config.extra_model_name, config.lr) == ("y1", "a b", 0.5)
    many = parse("--network y1 --dataset demo --tensorboard --lr=0.5  --extra-model-name 'a b' --resume --seed\n3")
    assert (many.network, many.dataset, many.tensorboard, many.lr) == ("y1", "demo", True, 0.5)
    assert (many.extra_model_name, many.resume, many.seed) == ("a b", "yes", 3)
    assert parse("--fp16-scale 128 --network y1").fp16_scale == 128
    assert parse("--network=y1 --dataset=demo", "--lr", "0.5").network == "y1"
    assert parse("--extra-model-name=a b", " --network y1 ").extra_model_name == "a b"
    assert parse("--models-root", "a --b c", "--devices=cpu").models_root == "a --b c"
    assert refusal("--network y1 --datset demo").startswith("--datset: unknown flag; the nearest is '--dataset'")
    assert refusal("--netwrk y1").startswith("--netwrk: unknown flag; the nearest is '--network'")


def test_devices(parse):
    assert parse().devices == (("cpu", 0),)
    assert parse(CUDA_VISIBLE_DEVICES="4,6").devices == (("gpu", 0), ("gpu", 1))
    assert parse("--devices", "cpu:2", CUDA_VISIBLE_DEVICES="4,6").devices == (("cpu", 0), ("cpu", 1))


def test_worker_id(parse, refusal):
    two = {"DMLC_NUM_WORKER": "2"}
    assert parse("--worker-id", "1", "--kvstore", "dist_sync", **two).worker_id == 1
    assert refusal("--worker-id", "2", "--kvstore", "dist_sync", **two).startswith("worker_id: found 2, expected less")
    assert refusal("--worker-id", "1").endswith("(DMLC_NUM_WORKER), 1")


def test_what_follows_from_other_options(parse):
    assert parse("--verbose", "30").state_every == 30
    assert parse("--ckpt", "0").state_every == 0
    assert parse("--ckpt", "0", "--state-every", "5").state_every == 5
    assert 1 <= parse().decode_threads <= 8
    assert parse("--decode-threads", "3").decode_threads == 3


@pytest.mark.parametrize("argv, resume", [((), ""), (("--resume",), "yes"), (("--resume", "auto"), "auto")])
def test_resume(parse, argv, resume):
    assert parse(*argv).resume == resume


def test_abbreviated_flags_work_as_they_did(parse):
    assert parse("--per-batch", "8").per_batch_size == 8


@pytest.mark.parametrize("argv, message", [
    (["--netwrk", "y1"], "--netwrk: unknown flag; the nearest is '--network'; train_parall.py --help lists them"),
    (["--lr"], "argument --lr: expected one argument; train_parall.py --help lists the flags"),
    (["--lr", "-1"], "--lr: found '-1', expected a number above 0"),
    (["--lr=fast"], "--lr: found 'fast', expected a number above 0"),
    (["--lr-steps", "3,2"], "--lr-steps: found '3,2', expected whole numbers of batches above 0 in ascending "
                            "order, such as '100000,160000,220000', or epochs, such as '10e,18e,22e'"),
    (["--ckpt", "4"], "--ckpt: found '4', expected a whole number at least 0 and at most 3"),
    (["--devices", "tpu"], "--devices: found 'tpu', expected cpu, cpu:N (N devices on the CPU), gpu or gpu:I,J "
                           "(those GPUs, each once)"),
    (["stray"], "unexpected argument 'stray'; train_parall.py --help lists the flags"),
    (["--extra-model-name", "../x"], "--extra-model-name: found '../x', expected a text of one line without slashes"),
])
def test_bad_flags(refusal, argv, message):
    assert refusal(*argv) == message


def test_flags_of_train_parall_only(refusal):
    assert refusal("--fp16-scale=1", entry="train") == "--fp16-scale: a flag of train_parall.py only"
    assert refusal("--centers-on=cpu", entry="train") == "--centers-on: a flag of train_parall.py only"


@pytest.mark.parametrize("spelling", ["centres", "centers"])
def test_both_spellings_of_centre_are_flags(parse, refusal, spelling):
    config = parse(f"--{spelling}-on", "cpu", f"--{spelling}-from=random")
    assert (config.centers_on, config.centres_from) == ("cpu", "random")
    assert refusal(f"--{spelling}-on", "gpu").startswith("--centres-on: found 'gpu', expected one of")
    assert refusal(f"--{spelling}-on", "cpu", "--loss", "triplet", "--per-batch-size", "3") == (
        "centres_on: found 'cpu', but a triplet loss has no class centres")


def test_unknown_presets(refusal):
    expected = "--loss: found 'arcfase', expected a loss preset of sample_config.py: softmax, nsoftmax, "
    assert refusal("--loss", "arcfase").startswith(expected)
    assert refusal("--dataset", "emor").endswith("; the nearest is 'emore'")
    assert refusal("--network", "r122").endswith(
        "; Partial FC names it and says nowhere what its 122 layers are, but a checkpoint has its network: --network "
        "PREFIX-symbol.json")


def test_a_bad_value_in_a_file_is_said_by_its_key(refusal, tmp_path):
    (tmp_path / "config.py").write_text(SAMPLE + "\nconfig.net_act = 'prelou'\n")
    assert refusal(root=tmp_path) == ("config.py: net_act: found 'prelou', expected one of 'prelu', 'relu'; "
                                      "the nearest is 'prelu'")
    (tmp_path / "config.py").write_text(SAMPLE + "\ndefault.network = 'r5'\n")
    assert refusal(root=tmp_path).startswith("config.py: default.network: found 'r5', expected a network preset")


def test_pretrained(parse, shared):
    folder = shared / "legacy" / "checkpoint" / "y1-softmax-emore"
    prefix = str(folder / "model")
    for named in (prefix, f"{prefix},1", str(folder), f"{folder},1", f"{folder}/,1", f"{prefix}-0001.params"):
        assert find_pretrained(named, 1)[0].replace("//", "/") == prefix
    for named in (f"{prefix},1", f"{prefix}-0001.params"):
        assert find_pretrained(named, 7)[1] == 1  # the number in the text wins
    config = parse("--pretrained", f"{folder},1", "--pretrained-epoch", "9")
    assert (config.pretrained, config.pretrained_epoch) == (prefix, 1)


def test_pretrained_that_is_not_there(refusal, tmp_path):
    (tmp_path / "model-0003.params").touch()
    message = refusal("--pretrained", str(tmp_path))
    assert message.startswith(f"--pretrained: found no {tmp_path}/model-0001.params, expected PREFIX, ")
    assert message.endswith("holds model-0003.params")
    assert refusal("--pretrained", "no/such,2").startswith("--pretrained: found no no/such-0002.params")


def test_a_run_that_goes_on_needs_no_checkpoint(parse, refusal, tmp_path):
    flags = ["--models-root", str(tmp_path), "--pretrained", "gone,3", "--network", "y1", "--loss", "softmax"]
    assert parse(*flags, "--resume").pretrained == "gone"  # without a state it ends with a line about that
    assert "found no gone-0003.params" in refusal(*flags, "--resume", "auto")
    state = tmp_path / "y1-softmax-emore" / "state" / "step-000000004"
    state.mkdir(parents=True)
    (state / "manifest.json").touch()
    config = parse(*flags, "--resume", "auto")
    assert (config.pretrained, config.pretrained_epoch) == ("gone", 3)
    assert "found no gone-0003.params" in refusal(*flags)


def test_help_shows_flags_presets_and_the_defaults_after_them(parse, capsys):
    with pytest.raises(SystemExit) as end:
        parse("--network", "d169", "--help")
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(flag_name(key) in shown for key in flag_keys("train_parall"))
    assert "images per device and batch (default: 64)" in shown
    assert "softmax, nsoftmax, arcface, cosface, combined, adaface, magface, elastic_arc, " in shown
    assert "triplet, atriplet (default: arcface)" in shown


def test_a_command_ends_with_status_2(parse, capsys):
    assert command(lambda: parse("--lr", "0") and 0)() == 2
    assert capsys.readouterr().err == "error: --lr: found '0', expected a number above 0\n"


def test_help_imports_nothing_heavy():
    program = ("import sys, train_parall\nfrom train import parse_args\ntry:\n    parse_args('train', ['--help'])\n"
               "except SystemExit:\n    pass\n"
               "heavy = {'mxnet', 'numpy', 'cv2', 'scipy', 'sklearn', 'numba'}\n"
               "print(sorted(heavy & set(sys.modules)), file=sys.stderr)")
    # config.py of this checkout, if any, may import what it likes: run from a copy of what --help needs.
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    if not (ROOT / "config.py").exists():
        assert done.stderr.strip() == "[]"


def test_a_flag_of_yes_or_no_stands_without_a_value(parse, refusal, capsys):
    assert parse("--network", "r50", "--tensorboard", "--dataset", "webface").tensorboard is True
    assert parse("--network", "r50").tensorboard is False
    assert "unexpected argument 'yes'" in refusal("--tensorboard", "yes")
    with pytest.raises(SystemExit):
        parse("--help")
    assert "--tensorboard-every EVERY" in capsys.readouterr().out
