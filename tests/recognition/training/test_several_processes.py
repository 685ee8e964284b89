# SPDX-License-Identifier: Apache-2.0
"""Whole runs of several processes against one of one process, of one and of several devices."""
from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from recognition.engines.mxnet.imports import mx
from recognition.training.states.state import SavedState, saved_states
from tests.recognition.training.in_process import run_here

ROOT = Path(__file__).resolve().parents[3]
NETWORK = '''
import mxnet as mx

def get_symbol(emb_size):
    """No batch norm and no dropout: what a replica computes does not depend on the images of the others."""
    x = (mx.sym.Variable("data") - 127.5) * 0.0078125
    x = mx.sym.Convolution(x, num_filter=8, kernel=(5, 5), stride=(4, 4), name="conv0")
    x = mx.sym.LeakyReLU(x, act_type="prelu", name="relu0")
    x = mx.sym.Convolution(x, num_filter=16, kernel=(3, 3), stride=(3, 3), name="conv1")
    return mx.sym.FullyConnected(x, num_hidden=emb_size, name="fc1")
'''
CONFIG = """
exec(compile(open({sample!r}).read(), {sample!r}, "exec"))
network.plain = edict(net_name="plain", emb_size=16)
network.tiny = edict(net_name="fmobilefacenet", emb_size=32, net_multiplier=0.25, net_blocks=[1, 1, 1, 1])
dataset.tiny = edict(dataset_path={data!r}, num_classes=11, image_shape=(112, 112, 3), val_targets=["tiny"])
default.network, default.dataset = "plain", "tiny"
"""
FLAGS = ["--verbose", "3", "--frequent", "2"]
HOROVODRUN = ["horovod.runner.launch", "--gloo", "-np", "2", "--network-interface", "lo"]
LAUNCH = ["recognition.launch", "-np", "2", "--"]
TORCH = ["--engine", "torch", "--devices", "cpu"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no_python"]


@pytest.fixture(scope="module")
def folder(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    (folder / "plain.py").write_text(NETWORK)
    (folder / "config.py").write_text(CONFIG.format(sample=str(ROOT / "sample_config.py"), data=str(tiny_set)))
    return folder


def where(folder: Path, name: str) -> list[str]:
    """Flags of a run with checkpoints below ``folder / name``; 12 images in a global batch are for others to see to."""
    return ["--config", str(folder / "config.py"), "--lr", "0.01", "--models-root", str(folder / name)]


def start(folder: Path, name: str, launcher: list[str], *flags: str, entry: str = "train_parall") -> subprocess.Popen:
    """A run of several processes."""
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, sys.executable, str(ROOT / f"{entry}.py"), *where(folder, name), *flags],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def run_all(folder: Path, name: str, launcher: list[str], *flags: str, entry: str = "train_parall"
            ) -> tuple[int, str, str]:
    """A run from its start to its end, of one process in this one: status, standard output, standard error."""
    if launcher:
        return finished(start(folder, name, launcher, *flags, entry=entry))
    return run_here(entry, *where(folder, name), *flags)


def run(folder: Path, name: str, launcher: list[str], *flags: str, entry: str = "train_parall",
        loss: str = "arcface", steps: int = 5) -> tuple[dict[str, np.ndarray], float, str]:
    """Every array of the last state, W joined; the loss of the history; what was printed."""
    name = f"{name}-{entry}-{loss}"
    status, out, err = run_all(folder, name, launcher, *FLAGS, "--max-steps", str(steps), "--loss", loss, *flags,
                               entry=entry)
    assert status == 0, out + err
    (below,) = (folder / name).iterdir()
    saved = SavedState(saved_states(below / "state")[-1])
    assert saved.progress.step == steps
    backbone, losses = saved.backbone(), [json.loads(line) for line in (below / "history.jsonl").open()]
    arrays = {**backbone.parameters, **{f"momentum {name}": array for name, array in backbone.momentum.items()},
              **saved.rows(0, 11, 1)._asdict()}
    return arrays, next(line["loss"] for line in losses if line["kind"] == "train"), out


def assert_close(found: tuple[dict[str, np.ndarray], float, str],
                 wanted: tuple[dict[str, np.ndarray], float, str]) -> None:
    """Sums over the batch are taken in another order: 1e-6 a step, which ArcFace's s = 64 amplifies."""
    assert found[1] == pytest.approx(wanted[1], rel=1e-4)
    assert found[0].keys() == wanted[0].keys()
    for name, array in wanted[0].items():
        atol = 2e-4 * np.abs(array).max(initial=0)
        np.testing.assert_allclose(found[0][name], array, rtol=0, atol=atol, err_msg=name)


def test_parallel_on_x_and_w_over_processes_and_devices(horovod: None, folder: Path) -> None:
    """11 classes on 1, 2 and 4 shards, 1 x 1, 2 x 1 and 2 x 2 processes and devices."""
    one = run(folder, "one", [], "--per-batch-size", "12")
    two = run(folder, "two", HOROVODRUN, "--per-batch-size", "6", "--network plain")
    assert_close(two, one)
    assert two[2].count("Accuracy-Highest") == one[2].count("Accuracy-Highest") == 2  # one process speaks for all
    assert_close(run(folder, "accumulated", HOROVODRUN, "--per-batch-size", "2", "--gradient-acc", "3"), one)
    four = run(folder, "four", LAUNCH, "--per-batch-size", "3", "--devices", "cpu:2")
    assert_close(four, one)
    (state,) = (folder / "four-train_parall-arcface").glob("*/state/step-000000005")
    assert json.loads((state / "manifest.json").read_text())["shards"] == [[0, 3], [3, 6], [6, 9], [9, 11]]


def test_data_parallel_over_devices_and_workers(folder: Path) -> None:
    """W whole in each process, softmax with its bias."""
    one = run(folder, "one", [], "--per-batch-size", "12", entry="train", loss="softmax")
    assert np.abs(one[0]["bias"]).max() > 0
    two = run(folder, "two", [], "--per-batch-size", "6", "--devices", "cpu:2", entry="train", loss="softmax")
    assert_close(two, one)
    workers = run(folder, "workers", LAUNCH, "--per-batch-size", "6", "--kvstore", "dist_sync", entry="train",
                  loss="softmax")
    assert_close(workers, one)


def test_pytorch_under_torchrun_and_under_launch(folder: Path) -> None:
    """The same over 1 x 1, 2 x 1 and 4 x 1 processes and devices; what two saved goes on in four and in one."""
    pytest.importorskip("torch")
    one = run(folder, "torch-one", [], "--per-batch-size", "12", *TORCH)
    two = run(folder, "torch-two", TORCHRUN, "--per-batch-size", "6", *TORCH)
    assert_close(two, one)
    assert two[2].count("Accuracy-Highest") == one[2].count("Accuracy-Highest") == 2  # one process speaks for all
    accumulated = run(folder, "torch-accumulated", TORCHRUN, "--per-batch-size", "2", "--gradient-acc", "3", *TORCH)
    assert_close(accumulated, one)
    four = run(folder, "torch-two", [*LAUNCH[:2], "4", "--"], "--per-batch-size", "3", "--resume", *TORCH, steps=7)
    one_on = run(folder, "torch-one", [], "--per-batch-size", "12", "--resume", *TORCH, steps=7)
    assert "going on after step 5" in four[2] and "going on after step 5" in one_on[2]
    assert_close(four, one_on)


@pytest.mark.parametrize("kind", ["mxnet", "torch"])
def test_a_teacher_pulls_the_same_over_processes(kind: str, folder: Path) -> None:
    """One process, two, and two that hold all class centres each; the distance is told by the first."""
    if kind == "torch":
        pytest.importorskip("torch")
    run(folder, f"{kind}-teacher", [], "--per-batch-size", "12", "--engine", kind, "--devices", "cpu", "--seed", "3")
    teacher = next((folder / f"{kind}-teacher-train_parall-arcface").iterdir())
    flags = ["--engine", kind, "--devices", "cpu", "--teacher", f"{teacher}/model,0", "--distil-weight", "50"]
    processes = [*flags, "--per-batch-size", "6", *(["--kvstore", "dist_sync"] if kind == "mxnet" else [])]
    one = run(folder, f"{kind}-taught", [], "--per-batch-size", "12", *flags)
    assert_close(run(folder, f"{kind}-taught-two", LAUNCH, *processes), one)
    assert_close(run(folder, f"{kind}-taught-two", LAUNCH, *processes, entry="train"), one)
    history = next((folder / f"{kind}-taught-two-train_parall-arcface").iterdir()) / "history.jsonl"
    assert 0 < next(line["teacher_distance"] for line in map(json.loads, history.open()) if line["kind"] == "train") < 4


def test_both_entry_points_and_both_ways_to_exchange_agree(folder: Path) -> None:
    """A margin has no bias, and then the mathematics of the two entry points is the same."""
    one = run(folder, "one", [], "--per-batch-size", "12", entry="train")
    parall = run(folder, "servers", LAUNCH, "--per-batch-size", "6", "--kvstore", "dist_device_sync")
    assert_close(parall, one)


def workers_of(process: subprocess.Popen) -> list[int]:
    """The processes that a launcher has started, in the order of ranks."""
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return sorted(map(int, children.stdout.split()))


def test_one_signalled_process_stops_all_and_fewer_go_on(horovod: None, folder: Path) -> None:
    """SIGTERM to a worker of two; a checkpoint's statistics are the mean of the four replicas of both."""
    flags = ["--network", "tiny", "--verbose", "100", "--frequent", "1"]
    process = start(folder, "stopped", LAUNCH, *flags, "--devices", "cpu:2", "--per-batch-size", "3",
                    "--ckpt", "2", "--state-every", "1000")
    below = folder / "stopped" / "tiny-arcface-tiny"
    history = below / "history.jsonl"
    while process.poll() is None and not (history.exists() and history.stat().st_size):  # all have begun once one logs
        time.sleep(0.1)
    os.kill(workers_of(process)[1], signal.SIGTERM)
    status, out, err = finished(process)
    assert status == 128 + signal.SIGTERM, out + err
    stopped = re.search(r"^stopped by SIGTERM after step (\d+); --resume", out, re.M)
    assert stopped is not None
    (state,) = saved_states(below / "state")
    assert state.name == f"step-{int(stopped[1]):09d}"
    replicas = SavedState(state).backbone().auxiliary
    assert len(replicas) == 4 and len({array["conv_1_batchnorm_moving_mean"].tobytes() for array in replicas}) == 4

    for launcher, images, devices in ((LAUNCH, "3", "cpu:2"), ([], "12", "cpu")):
        status, out, err = run_all(folder, "stopped", launcher, *flags, "--resume", "--per-batch-size", images,
                                   "--devices", devices, "--max-steps", stopped[1])
        assert status == 0 and "going on after step" in out, out + err
        _, _, auxiliary = mx.model.load_checkpoint(str(below / "model"), 0)
        (below / "model-0000.params").unlink()
        for name, array in auxiliary.items():
            mean = np.mean([statistics[name] for statistics in replicas], axis=0, dtype=np.float32)
            np.testing.assert_array_equal(array.asnumpy(), mean, err_msg=name)


def test_centres_of_processes_go_with_their_checkpoint(horovod: None, folder: Path) -> None:
    """Two processes write W apart from the backbone, as Partial FC does; one process takes it, and not with another."""
    (folder / "whole.py").write_text(f"exec(open({str(folder / 'config.py')!r}).read())\n"
                                     "config.ckpt_embedding = False\n")
    flags = ["--max-steps", "2", "--verbose", "100", "--state-every", "0"]
    status, out, err = finished(start(folder, "apart", LAUNCH, *flags, "--per-batch-size", "6", "--config",
                                      str(folder / "whole.py")))
    assert status == 0, out + err
    below = folder / "apart" / "plain-arcface-tiny"
    assert sorted(path.name for path in below.glob("*_c*.param")) == [
        f"{i}_centers{kind}.param" for i in range(2) for kind in ("", "_mom")]
    flags += ["--per-batch-size", "12", "--pretrained", f"{below},0"]
    for words in ("class centres of 11 classes loaded", "they go with model-0000.params as it was when they were"):
        status, out, err = run_all(folder, "apart", [], *flags)
        assert status == 0 and f"{below}: *_centers.param: " in out and words in out, out + err


def test_started_again_it_does_not_go_on_from_the_run_before(horovod: None, folder: Path) -> None:
    """A process dies before the first state of its run, in a folder that holds a state of another run."""
    (folder / "dying.py").write_text(f"""
import os
exec(open({str(folder / "config.py")!r}).read())
if os.path.exists({str(folder / "die")!r}):
    os.remove({str(folder / "die")!r})
    os.kill(os.getpid(), 9)
""")
    flags = ["--per-batch-size", "12", "--verbose", "100"]
    assert run_all(folder, "again", [], *flags, "--max-steps", "7")[0] == 0
    (folder / "die").touch()
    launch = ["recognition.launch", "-np", "1", "--restarts", "2", "--"]
    status, out, err = finished(start(folder, "again", launch, *flags, "--max-steps", "4", "--state-every", "3",
                                      "--config", str(folder / "dying.py")))
    assert status == 0 and "starting again, 1 of 2" in err and "2 of 2" not in err, out + err
    assert "going on" not in out and "is kept in" in out
    (below,) = (folder / "again").iterdir()
    assert [path.name for path in saved_states(below / "state")] == ["step-000000003", "step-000000004"]
    assert [path.name for path in saved_states(below / "state.1")] == ["step-000000007"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["mxnet", "torch"])
def test_a_run_whose_process_is_killed_starts_again_and_ends_with_the_same_bits(horovod: None, folder: Path,
                                                                                engine: str) -> None:
    """SIGKILL to one of two in the middle; the network has batch norm and dropout, each process two replicas."""
    pytest.importorskip(engine)
    flags = ["--engine", engine, "--network", "tiny", "--max-steps", "24", "--verbose", "8", "--state-every", "4",
             "--devices", "cpu:2", "--per-batch-size", "3"]
    assert finished(start(folder, f"whole-{engine}", LAUNCH, *flags))[0] == 0
    process = start(folder, f"killed-{engine}", [*LAUNCH[:-1], "--restarts", "1", "--"], *flags)
    below = folder / f"killed-{engine}" / "tiny-arcface-tiny"
    while process.poll() is None and not saved_states(below / "state"):
        time.sleep(0.05)
    os.kill(workers_of(process)[1], signal.SIGKILL)
    status, out, err = finished(process)
    assert status == 0, out + err
    assert "launch: rank 1 on localhost was ended by SIGKILL" in err and "\ngoing on after step" in out
    whole = folder / f"whole-{engine}" / "tiny-arcface-tiny"
    for path in [whole / "model-0000.params", *whole.glob("state/step-000000024/*.npy")]:
        assert path.read_bytes() == (below / path.relative_to(whole)).read_bytes(), path.name


@pytest.mark.slow
def test_adamw_over_processes_and_devices(horovod: None, folder: Path) -> None:
    """An eps of the size of gradients: a step does not depend on that size, and would make steps of rounding."""
    config = folder / "config.py"
    before = config.read_text()
    config.write_text(before + "config.adam_eps = 0.1\n")
    flags = ["--optimizer", "adamw", "--lr-schedule", "polynomial", "--warmup", "1"]
    one = run(folder, "adamw-one", [], "--per-batch-size", "12", *flags)
    four = run(folder, "adamw-four", LAUNCH, "--per-batch-size", "3", "--devices", "cpu:2", *flags)
    config.write_text(before)
    assert_close(four, one)
    assert one[0]["second_moment"].any()
