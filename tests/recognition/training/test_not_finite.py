# SPDX-License-Identifier: Apache-2.0
"""Steps with NaN: real runs of a network that cannot bear a black image, of which the set holds one."""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np
import pytest

from recognition.config.options import Config
from recognition.data.loader import Batch
from recognition.data.order import Position
from recognition.data.records.recordio import RecordWriter, pack_record
from recognition.errors import UserError
from recognition.evaluation.verification import NoDirection
from recognition.head.triplet_head import TripletHead
from recognition.head.triplet_loss import TripletLoss
from recognition.networks import sym
from recognition.optim.loss_scale import LossScale
from recognition.processes.communicator import SingleProcess
from recognition.training import bad_steps
from recognition.training.bad_steps import BadBags, BadSteps
from recognition.training.run import train
from recognition.training.states.folder import saved_states
from recognition.training.states.state import Progress, SavedState
from recognition.training.verify import Verifier

ROOT = Path(__file__).resolve().parents[3]
BLACK = 17  # the record of the black image
NETWORK = '''
import mxnet as mx

def get_symbol(emb_size):
    """With a black image: infinite features where {where} is "forward"; a gradient of 0 / 0 where it is "backward"."""
    data = mx.sym.Variable("data")
    x = mx.sym.Convolution(data / 255, num_filter=4, kernel=(7, 7), stride=(7, 7), name="conv0")
    x = mx.sym.BatchNorm(x, fix_gamma=False, name="bn0")
    x, mean = mx.sym.flatten(x), mx.sym.reshape(mx.sym.mean(data, axis=(1, 2, 3)), shape=(-1, 1))
    if "{where}" == "forward":
        x = mx.sym.broadcast_div(x, mean)
    else:
        gate = mx.sym.abs(mx.sym.FullyConnected(mean, num_hidden=1, no_bias=True, name="gate"))
        x = mx.sym.broadcast_add(x, mx.sym.sqrt(gate))
    return mx.sym.FullyConnected(x, num_hidden=emb_size, name="fc1")
'''


@pytest.fixture(scope="module")
def black_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 noisy images of six identities; record BLACK is black."""
    folder = tmp_path_factory.mktemp("black")
    random = np.random.RandomState(0)
    with RecordWriter(folder / "train.rec", folder / "train.idx") as records:
        for i in range(36):
            image = np.zeros((112, 112, 3), np.uint8) if i == BLACK else random.randint(0, 256, (112, 112, 3), np.uint8)
            records.write(i, pack_record(float(i % 6), bytes(cv2.imencode(".jpg", image)[1]), id=i))
    (folder / "property").write_text("6,112,112\n")
    return folder


@pytest.fixture
def configured(make: Callable[..., Config], black_set: Path, tmp_path: Path) -> Callable[..., Config]:
    """``configured(where, key=value)``: a run of six images a step, a state after each."""

    def config(where: str, **options: Any) -> Config:
        (tmp_path / f"{where}.py").write_text(NETWORK.replace("{where}", where))
        return make(**{"dataset_path": str(black_set), "net_name": where, "per_batch_size": 6, "state_every": 1,
                       "max_steps": 6, "models_root": str(tmp_path / f"models-{where}"), **options})

    return config


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """Everything of a state that a step may move."""
    saved = SavedState(path)
    backbone = saved.backbone()
    groups: dict[str, Any] = {"parameter": backbone.parameters, "momentum": backbone.momentum,
                              "second": backbone.second_moment or {},
                              **{f"statistics {i}": part for i, part in enumerate(backbone.auxiliary)},
                              "W": saved.rows(0, 6, 1)._asdict()}
    return {f"{group} {name}": array for group, part in groups.items() for name, array in part.items()}


@pytest.mark.parametrize("where, what", [("forward", "the loss is nan"), ("backward", "gate_weight, are not finite")])
def test_on_nan_stop_names_step_rate_norms_and_records(engine: str, configured: Callable[..., Config], where: str,
                                                       what: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        train(configured(where, on_nan="stop", devices="cpu:2", per_batch_size=3))
    line = str(error.value)
    found = re.match(r"step (\d+): ", line)
    assert found is not None and what in line
    for words in ("at learning rate 0.01; norms: features", "parameters", "class centres", "nothing of this step"):
        assert words in line
    folder = tmp_path / f"models-{where}" / "plain-arcface-tiny"
    step = int(found[1])
    assert [path.name for path in saved_states(folder / "state")][-1:] == ([f"step-{step - 1:09d}"] if step > 1 else [])
    kept = np.load(folder / f"nan-step-{step}.npz")
    assert BLACK in kept["records"] and len(kept["records"]) == 6 == len(set(kept["records"].tolist()))
    assert (kept["labels"] == kept["records"] % 6).all()
    assert (float(kept["lr"]), int(kept["step"])) == (0.01, step)
    if where == "forward":
        assert f"not finite for the images of records {BLACK}; " in line
        assert (~np.isfinite(kept["feature_norms"]) == (kept["records"] == BLACK)).all()
    else:
        assert np.isfinite(kept["feature_norms"]).all()
        bad = dict(zip(kept["parameters"], np.isfinite(kept["gradient_norms"])))
        assert not bad["gate_weight"] and bad["fc1_weight"]


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("more", [{}, {"optimizer": "adamw", "devices": "cpu:2", "per_batch_size": 3}],
                         ids=["sgd", "adamw on two devices"])
def test_on_nan_skip_leaves_the_step_out_and_nothing_of_it_stays(
        engine: str, configured: Callable[..., Config], where: str, more: dict[str, Any], tmp_path: Path,
        capsys: pytest.CaptureFixture[str]) -> None:
    """States before and after the step hold the same bits; then the run goes on, and resumes to the same bits."""
    folder = tmp_path / f"models-{where}" / "plain-arcface-tiny"
    assert train(configured(where, on_nan="skip", **more)) == 0
    found = re.search(r"^step (\d+): .*; left out \(--on-nan skip\)$", capsys.readouterr().out, re.M)
    assert found is not None
    step, whole = int(found[1]), arrays_of(saved_states(folder / "state")[-1])
    assert all(np.isfinite(array).all() for array in whole.values())
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [record["step"] for record in history if record["kind"] == "left_out"] == [step]

    assert train(configured(where, on_nan="skip", max_steps=step, **more)) == 0
    before, after = (arrays_of(folder / "state" / f"step-{number:09d}") for number in (step - 1, step))
    assert before.keys() == after.keys()
    assert [name for name in before if before[name].tobytes() != after[name].tobytes()] == []
    assert train(configured(where, on_nan="skip", resume="yes", **more)) == 0
    again = arrays_of(saved_states(folder / "state")[-1])
    assert [name for name in whole if whole[name].tobytes() != again[name].tobytes()] == []


def test_too_many_in_a_row_stop_the_run_and_files_do_not_pile_up(
        configured: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bad_steps, "MOST_STEPS_IN_A_ROW", 3)
    monkeypatch.setattr(bad_steps, "KEPT_FILES", 2)
    with pytest.raises(UserError, match=r"^step 4: .*; 4 such steps in a row"):
        train(configured("forward", on_nan="skip", per_batch_size=36, state_every=0, max_steps=9))
    folder = tmp_path / "models-forward" / "plain-arcface-tiny"
    assert sorted(path.name for path in folder.glob("nan-step-*")) == ["nan-step-3.npz", "nan-step-4.npz"]


LOSSES = [{}, {"loss_name": "softmax"}, {"optimizer": "adamw"}, {"sample_ratio": 0.5}]


def overflowing(what: str, seed: int = 1) -> dict[str, Any]:
    """Options with which the first update overflows class centres, or parameters, and they alone."""
    return {"seed": seed, **({"lr": 1e-6, "fc7_lr_mult": 1e37} if what == "centres" else
                             {"lr_factor": "fc1_weight=1e37"})}


@pytest.mark.parametrize("loss", [*LOSSES, {"loss_name": "softmax", "entry": "train"}],
                         ids=lambda loss: "-".join(map(str, loss.values())))
@pytest.mark.parametrize("what, on_nan", [("centres", "skip"), ("parameters", "skip"), ("centres", "stop")])
def test_an_update_that_overflows_ends_the_run_in_the_next_step(
        configured: Callable[..., Config], loss: dict[str, Any], what: str, on_nan: str, tmp_path: Path) -> None:
    """Nothing can mend what the first update has moved, so the step that finds it is not skipped. That is the second,
    or the third: softmax of large features has a finite loss, until its gradients have moved the centres, too."""
    norms = {"centres": r"parameters [\d.]+, class centres \S+ to (inf|\S+e\+\d\d)",
             "parameters": r"parameters (inf|\S+e\+\d\d), class centres \S+ to \S+"}[what]
    with pytest.raises(UserError, match=rf"^step [23]: the loss is nan at learning rate \S+; norms: features .*{norms}"
                       r"; .* records \d.*; the parameters or class centres were lost before it, and cannot be mended; "
                       "there is no training state to go back to"):
        train(configured("backward", on_nan=on_nan, state_every=0, **overflowing(what), **loss))
    (path,) = (tmp_path / "models-backward").glob("*/nan-step-*.npz")
    kept = np.load(path)
    assert len(kept["records"]) == 6 and kept["gradient_norms"].size == 0


@pytest.mark.parametrize("what", ["centres", "parameters"])
@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_what_an_update_has_overflowed_is_not_saved(engine: str, configured: Callable[..., Config], what: str,
                                                    on_nan: str, tmp_path: Path) -> None:
    """The rate, 0 in the first step, overflows in the second, after which a state is due: the first stays the last."""
    more: dict[str, Any] = {"lr": 0.01, **overflowing(what), "warmup": 4, "keep_last": 9}
    with pytest.raises(UserError, match=r"^step 2: the update at learning rate \S+ overflows; norms: parameters \S+, "
                       r"class centres \S+ to \S+; nothing of it is saved; --resume goes on from \S+/step-000000001\."):
        train(configured("backward", on_nan=on_nan, max_steps=3, **{**more, "lr": 4 * more["lr"]}))
    (state,) = saved_states(next((tmp_path / "models-backward").iterdir()) / "state")
    assert all(np.isfinite(array).all() for array in arrays_of(state).values())


def test_a_verification_without_finite_embeddings_says_where_the_run_stands(configured: Callable[..., Config],
                                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(self: Verifier) -> None:
        raise NoDirection("tiny: the embedding of image 0 is not finite")

    monkeypatch.setattr(Verifier, "__call__", verify)
    with pytest.raises(UserError, match=r"^step 2: tiny: the embedding of image 0 is not finite; "
                       r"parameters' norm [\d.]+ after learning rate 0.01; --resume goes on from \S+/step-000000001"):
        train(configured("backward", verbose=2, max_steps=9, seed=1))


@pytest.fixture
def float16_backbone(replicated: Callable[..., Any]) -> Callable[[float], Any]:
    return lambda scale: with_a_loss_scale(replicated, scale)


def with_a_loss_scale(replicated: Callable[..., Any], scale: float) -> Any:
    """A backbone with a loss scale, as on a GPU; in float32, which has the same arithmetic and overflows too."""
    x = sym.BatchNorm(sym.Variable("data"), fix_gamma=False, name="bn0")
    symbol = sym.FullyConnected(x, num_hidden=4, name="fc1").graph()
    weights = {"fc1_weight": np.random.default_rng(0).standard_normal((4, 12)).astype(np.float32),
               "fc1_bias": np.zeros(4, np.float32), "bn0_gamma": np.ones(3, np.float32),
               "bn0_beta": np.zeros(3, np.float32)}
    statistics = {"bn0_moving_mean": np.zeros(3, np.float32), "bn0_moving_var": np.ones(3, np.float32)}
    return replicated(symbol, weights, statistics, 1, 4, (3, 2, 2), SingleProcess(), mu=0.9, wd=5e-4,
                      loss_scale=LossScale(scale))


def test_float16_halves_its_scale_and_leaves_the_step_out_whatever_the_policy(
        float16_backbone: Callable[[float], Any], tmp_path: Path) -> None:
    backbone = float16_backbone(2.0**100)
    judge = BadSteps(tmp_path, SingleProcess(), backbone, TripletHead(TripletLoss(0.3), 3, SingleProcess()), skip=False)
    images = np.random.default_rng(1).integers(0, 256, (4, 3, 2, 2)).astype(np.uint8)
    batch = Batch(images, np.arange(4), np.arange(4), 0, 0, Position(0, 4))
    before = backbone.state()
    features = backbone.forward(images)
    backbone.backward(np.full((4, 4), 1e30, np.float32))
    assert not backbone.finite()
    assert judge.leave_out(1, 0.1, batch, features, 1.0) == (
        "step 1: gradients overflowed with a loss scale of 1.26765e+30; left out, the scale halved")
    after = backbone.state()
    assert after.loss_scale is not None and after.loss_scale.tolist() == [2.0**99, 0]
    for ours, theirs in ((before.parameters, after.parameters), (before.momentum, after.momentum),
                         (before.auxiliary[0], after.auxiliary[0])):
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
    assert not list(tmp_path.iterdir())


BAGS = {"loss_name": "triplet", "images_per_identity": 6, "triplet_alpha": 2.0}  # each bag holds the whole set


def test_triplets_on_nan_stop_names_bag_rate_norms_and_records(configured: Callable[..., Config],
                                                               tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        train(configured("forward", on_nan="stop", **BAGS))
    folder = tmp_path / "models-forward" / "plain-arcface-tiny"
    path = folder / "nan-bag-0.npz"
    assert re.fullmatch(
        r"bag 0, after step 0: embeddings are not finite at learning rate 0\.01; norms: features \S+ to \S+ \(1 of 36 "
        rf"not finite\), parameters [\d.]+; features are not finite for the images of records {BLACK}; "
        rf"{re.escape(str(path))} has the numbers of all records; there is no training state to go back to\. Try a "
        r"lower --lr, or softmax before a margin", str(error.value)), str(error.value)
    kept = np.load(path)
    assert sorted(kept["records"].tolist()) == list(range(36)) and (kept["labels"] == kept["records"] % 6).all()
    assert (~np.isfinite(kept["feature_norms"]) == (kept["records"] == BLACK)).all()
    assert (float(kept["lr"]), int(kept["step"]), int(kept["bag"])) == (0.01, 0, 0)
    assert np.isfinite(kept["parameter_norms"]).all() and "fc1_weight" in kept["parameters"]


def test_triplets_on_nan_skip_leaves_the_images_out(engine: str, configured: Callable[..., Config], tmp_path: Path,
                                                    caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert train(configured("forward", on_nan="skip", **BAGS)) == 0
    folder = tmp_path / "models-forward" / "plain-arcface-tiny"
    lines = [record.message for record in caplog.records]
    assert any(re.match(rf"bag 0, after step 0: .* records {BLACK}; .*; left out of the bag \(--on-nan skip\)$", line)
               for line in lines), lines
    state = SavedState(saved_states(folder / "state")[-1])
    assert state.progress.step == 6
    assert all(np.isfinite(array).all() for array in state.backbone().parameters.values())
    assert BLACK not in state.data().get("triplets", np.empty(0))


@pytest.mark.parametrize("bad, found", [(slice(1), "; the parameters were lost before it, and cannot be mended"),
                                        (slice(3), "no image has finite features, so more likely parameters are at")])
def test_a_bag_that_nothing_can_mend_stops_the_run_even_to_skip(
        float16_backbone: Callable[[float], Any], tmp_path: Path, bad: slice, found: str) -> None:
    backbone = float16_backbone(1)
    if bad.stop == 1:
        state = backbone.state()
        state.parameters["fc1_bias"][2] = np.nan
        backbone.load(state, 0)
    features = np.ones((3, 4), np.float32)
    features[bad, 1] = np.inf
    steps = BadSteps(tmp_path, SingleProcess(), backbone, TripletHead(TripletLoss(0.3), 3, SingleProcess()), skip=True)
    with pytest.raises(UserError, match=rf"^bag 7, after step 5: .*{found}"):
        BadBags(steps, lambda step: 0.1, Progress(step=5))(7, np.arange(3), np.arange(3), features)
    assert [path.name for path in tmp_path.iterdir()] == ["nan-bag-7.npz"]


def run_two(configured: Callable[..., Config], tmp_path: Path, *flags: str,
            where: str = "backward") -> tuple[int, str, str]:
    """Two processes of three images each on the same set."""
    config = configured(where)
    (tmp_path / "config.py").write_text(f"""
exec(compile(open({str(ROOT / "sample_config.py")!r}).read(), "sample_config.py", "exec"))
network.plain = edict(net_name={where!r}, emb_size=8)
dataset.tiny = edict(dataset_path={config.dataset_path!r}, num_classes=6, image_shape=(112, 112, 3), val_targets=[])
config.data_rand_mirror = False
loss.triplet.images_per_identity = 6
""")
    process = subprocess.run(
        [sys.executable, "-m", "recognition.launch", "-np", "2", "--", sys.executable, str(ROOT / "train_parall.py"),
         "--config", str(tmp_path / "config.py"), "--network", "plain", "--dataset", "tiny", "--lr", "0.01",
         "--per-batch-size", "3", "--max-steps", "6", "--state-every", "1", "--models-root", str(tmp_path / "two"),
         *flags], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120)
    return process.returncode, process.stdout, process.stderr


def test_all_processes_leave_out_the_same_step(horovod: None, configured: Callable[..., Config],
                                               tmp_path: Path) -> None:
    status, out, err = run_two(configured, tmp_path, "--on-nan", "skip")
    assert status == 0, out + err
    folder = tmp_path / "two" / "plain-arcface-tiny"
    (path,) = folder.glob("nan-step-*.npz")
    kept = np.load(path)
    assert len(kept["records"]) == 6 and BLACK in kept["records"]
    assert out.count("left out (--on-nan skip)") == 1
    assert all(np.isfinite(array).all() for array in arrays_of(saved_states(folder / "state")[-1]).values())


@pytest.mark.slow
@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_all_processes_judge_a_bag_alike(horovod: None, configured: Callable[..., Config], tmp_path: Path,
                                         on_nan: str) -> None:
    status, out, err = run_two(configured, tmp_path, "--on-nan", on_nan, "--loss", "triplet", where="forward")
    assert status == (2 if on_nan == "stop" else 0), out + err
    assert (tmp_path / "two" / "plain-triplet-tiny" / "nan-bag-0.npz").exists()
    assert len(re.findall(rf"bag 0, after step 0: .* of records {BLACK}; ", out + err)) == 1, out + err


@pytest.mark.slow
@pytest.mark.parametrize("what", [("--lr", "1e30"), ("--lr-factor", "fc1_weight=1e37")], ids=["centres", "parameters"])
def test_all_processes_end_after_an_update_that_overflows(horovod: None, configured: Callable[..., Config],
                                                         tmp_path: Path, what: tuple[str, str]) -> None:
    """Centres cut over two processes; the first step has rate 0, the second overflows and its state is not saved."""
    status, out, err = run_two(configured, tmp_path, "--on-nan", "skip", "--warmup", "9", "--keep-last", "9", *what)
    assert status == 2, out + err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "step 2: the update at learning rate" in lines[0], err
    (state,) = saved_states(tmp_path / "two" / "plain-arcface-tiny" / "state")
    assert all(np.isfinite(array).all() for array in arrays_of(state).values())


@pytest.mark.slow
@pytest.mark.parametrize("kvstore", ["device", "dist_sync"])
def test_all_processes_stop_with_one_line(horovod: None, configured: Callable[..., Config], tmp_path: Path,
                                          kvstore: str) -> None:
    status, out, err = run_two(configured, tmp_path, "--kvstore", kvstore)
    assert status == 2, out + err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "gate_weight, are not finite" in lines[0], err
