# SPDX-License-Identifier: Apache-2.0
"""Runs with a teacher (``teacher``, ``distil_weight``): what a step adds, engines, batches, states, bad input."""
from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import numpy as np
import pytest

from recognition.config.cli import parse_args
from recognition.config.options import Config, refuse_unsupported
from recognition.data.loader import Batch
from recognition.data.order import BEGINNING
from recognition.data.sets.dataset import open_dataset
from recognition.errors import UserError
from recognition.head.distil import pull
from recognition.io.embeddings import StoredEmbeddings, write_embeddings
from recognition.networks import sym
from recognition.networks.initialise import initialise
from recognition.training.checkpoints.checkpoint import save_checkpoint
from recognition.training.parts import make_teacher
from recognition.training.run import train
from recognition.training.states.state import SavedState, saved_states
from recognition.training.teacher import Distillation

DIM = 8
with_both = pytest.mark.skipif(not all(map(importlib.util.find_spec, ("mxnet", "torch"))), reason="needs both engines")
Make = Callable[..., Config]


def teacher_of(prefix: Path, dim: int = DIM, side: int = 112, seed: int = 7) -> str:
    """A checkpoint of a small network with the numbers of a seed; PREFIX,1."""
    x = sym.Convolution((sym.Variable("data") - 127.5) / 128, num_filter=4, kernel=(7, 7), stride=(7, 7), name="conv0")
    graph = sym.FullyConnected(sym.LeakyReLU(x, act_type="prelu", name="relu0"), num_hidden=dim, name="fc1").graph()
    save_checkpoint(prefix, 1, graph, *initialise(graph, (3, side, side), seed))
    return f"{prefix},1"


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    return teacher_of(tmp_path / "teacher")


def stored(data: Path, folder: Path, images: slice = slice(None), digest: str | None = None) -> str:
    """A folder of made-up embeddings of the images of a set."""
    dataset = open_dataset(data)
    folder.mkdir()
    keys = dataset.keys[images]
    rows = np.random.RandomState(0).standard_normal((len(keys), DIM)).astype(np.float32)
    write_embeddings(folder, keys, DIM, [rows[:20], rows[20:]], {"digest": digest or dataset.digest()})
    return str(folder)


def arrays(config: Config) -> dict[str, np.ndarray]:
    """Parameters, momentum and class centres of the last state."""
    state = SavedState(saved_states(Path(config.output_dir) / "state")[-1])
    backbone = state.backbone()
    own = {} if config.triplets else {"W": np.asarray(state.rows(0, 11, config.loss_K).centres)}
    return {**{f"w {name}": array for name, array in backbone.parameters.items()},
            **{f"m {name}": array for name, array in backbone.momentum.items()}, **own}


def close(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], tolerance: float) -> None:
    """Compare to the tolerance, as a share of the largest number of each array."""
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance * np.abs(array).max(), err_msg=name)


def distances(config: Config) -> list[float]:
    lines = (Path(config.output_dir) / "history.jsonl").read_text().splitlines()
    return [record["teacher_distance"] for record in map(json.loads, lines) if record["kind"] == "train"]


class Fixed:
    """A teacher of given embeddings."""

    fingerprint = ""

    def __init__(self, rows: np.ndarray) -> None:
        self.dim, self._rows = rows.shape[1], rows

    def __call__(self, batch: Batch) -> np.ndarray:
        return self._rows


def batch_of(count: int) -> Batch:
    keys = np.arange(100, 100 + count)
    return Batch(np.zeros((count, 3, 8, 8), np.uint8), keys * 0, keys, 0, 0, BEGINNING)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_the_gradient_of_the_mean_over_all_processes_is_added(kind: str) -> None:
    """The gradient is of the head's kind: NumPy's array, or the tensor of a run whose features stay on the device."""
    random = np.random.RandomState(0)
    x, wanted, of_head = random.standard_normal((3, 4, DIM)).astype(np.float32)
    distillation = Distillation(Fixed(wanted), 3.0, processes=2)
    assert distillation.measured() == {}
    if kind == "torch":
        torch = pytest.importorskip("torch")
        found = distillation.added(torch.from_numpy(of_head), torch.from_numpy(x), batch_of(4))
        assert isinstance(found, torch.Tensor) and found.dtype == torch.float32
        found = found.numpy()
    else:
        found = distillation.added(of_head, x, batch_of(4))
    np.testing.assert_allclose(found, of_head + 3 / 8 * pull(x, wanted).d_features, rtol=0, atol=1e-6)
    assert distillation.measured() == {"teacher_distance": pytest.approx(pull(x, wanted).loss / 4)}
    assert distillation.measured() == {}


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_an_embedding_without_a_direction_ends_the_run_with_its_record(value: float) -> None:
    rows = np.ones((4, DIM), np.float32)
    rows[2] = value
    with pytest.raises(UserError, match=r"--teacher: its embedding of record 102 is zero or not finite"):
        Distillation(Fixed(rows), 1.0, 1).added(rows, rows, batch_of(4))


@with_both
@pytest.mark.parametrize("entry", ["train_parall", "train"])
def test_both_engines_take_the_same_steps_and_come_near_the_teacher(make: Make, teacher: str, tmp_path: Path,
                                                                    entry: str) -> None:
    """Eight steps; one without distil_weight's pull would end elsewhere. Tolerance 1e-4 of the largest number: float32
    sums in another order."""
    found = {}
    for engine in ("mxnet", "torch"):
        config = make(entry=entry, engine=engine, teacher=teacher, distil_weight=300, state_every=8, max_steps=8,
                      frequent=1, devices="cpu:2", per_batch_size=6, models_root=str(tmp_path / engine), lr=0.001)
        assert train(config) == 0
        found[engine] = arrays(config)
        measured = distances(config)
        assert 0 < measured[-1] < measured[0] < 4
    close(found["torch"], found["mxnet"], 1e-4)
    alone = make(entry=entry, engine="mxnet", state_every=8, max_steps=8, devices="cpu:2", per_batch_size=6,
                 models_root=str(tmp_path / "alone"), lr=0.001)
    assert train(alone) == 0
    with pytest.raises(AssertionError):
        close(arrays(alone), found["mxnet"], 1e-2)


@pytest.mark.parametrize("options", [{}, {"loss_name": "triplet", "triplet_bag_size": 40, "images_per_identity": 4}],
                         ids=["arcface", "triplet"])
def test_a_step_of_micro_batches_is_that_of_the_large_batch(engine: str, make: Make, teacher: str, tmp_path: Path,
                                                            options: dict[str, Any]) -> None:
    """Tolerance 2e-5 of the largest number, as without a teacher."""
    found = []
    for size, times in ((12, 1), (3, 4)):
        config = make(per_batch_size=size, gradient_acc=times, teacher=teacher, distil_weight=100, state_every=3,
                      models_root=str(tmp_path / str(times)), lr=0.001, **options)
        assert train(config) == 0
        found.append(arrays(config))
    close(found[1], found[0], 2e-5)


@pytest.mark.parametrize("form", ["checkpoint", "stored"])
def test_a_run_goes_on_to_the_same_bits_and_not_with_another_teacher(
        engine: str, make: Make, gone_on: Callable[..., tuple[Config, Config]], teacher: str, tiny_set: Path,
        tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Augmentation is on; the same teacher may lie elsewhere, which is said."""
    given = teacher if form == "checkpoint" else stored(tiny_set, tmp_path / "rows")
    options: dict[str, Any] = {"state_every": 2, "data_rand_mirror": True, "data_cutoff": 20, "teacher": given}
    found, wanted = map(arrays, gone_on(**options))
    assert [name for name in wanted if wanted[name].tobytes() != found[name].tobytes()] == []

    if form == "checkpoint":
        other, moved = teacher_of(tmp_path / "other", seed=8), teacher_of(tmp_path / "moved")
    else:
        other, moved = stored(tiny_set, tmp_path / "other", digest="another"), stored(tiny_set, tmp_path / "moved")
    go_on: dict[str, Any] = {**options, "max_steps": 5, "models_root": str(tmp_path / "parts"), "resume": "yes"}
    with pytest.raises(UserError, match=r"was saved with teacher '\w{16}', this run has '\w{16}'|of another set"):
        train(make(**{**go_on, "teacher": other}))
    capsys.readouterr()
    assert train(make(**{**go_on, "teacher": moved})) == 0
    assert f"teacher {given} -> {moved}" in capsys.readouterr().out
    assert train(make(**{**go_on, "teacher": "", "max_steps": 6})) == 0
    assert f"teacher {moved} -> " in capsys.readouterr().out


def test_a_state_without_a_teacher_does_not_know_of_one_and_goes_on_with_one(make: Make, teacher: str) -> None:
    config = make(state_every=2, max_steps=2)
    assert train(config) == 0
    identity = SavedState(saved_states(Path(config.output_dir) / "state")[-1]).progress.identity
    assert "teacher" not in identity
    assert train(make(state_every=2, max_steps=4, resume="yes", teacher=teacher)) == 0


def test_stored_embeddings_are_those_of_the_batch(make: Make, tiny_set: Path, tmp_path: Path) -> None:
    """The student, with a learning rate of 1e-6, stays where it is, so its distance is that of its first values: that
    from each record's own row, whatever the order of the images, and also where a filter leaves some out."""
    folder = stored(tiny_set, tmp_path / "rows")
    config = make(teacher=folder, lr=1e-6, max_steps=5, frequent=1, per_batch_size=66 // 5, state_every=5)
    assert train(config) == 0
    rows = StoredEmbeddings(Path(folder))
    assert np.array_equal(rows.of(np.array([3, 66, 1])), rows.of(np.arange(1, 67))[[2, 65, 0]])
    assert len(rows.missing(np.arange(1, 67))) == 0 and rows.missing(np.array([0, 5, 67])).tolist() == [0, 67]
    measured = distances(config)
    assert len(measured) == 4 and all(1.5 < value < 2.5 for value in measured)  # random rows: near 2, by 8 numbers


def refused(config: Config, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(config)


def test_teachers_that_do_not_fit_are_named_in_a_line(engine: str, make: Make, tiny_set: Path, tmp_path: Path) -> None:
    other = teacher_of(tmp_path / "long", dim=16)
    refused(make(teacher=other), rf"--teacher: the embeddings of {re.escape(other)} have 16 numbers, those of the "
                                 r"network 8 \(emb_size\), expected the same")
    small = teacher_of(tmp_path / "small", side=64)
    refused(make(teacher=small), r"--teacher: .*small-0001.params: fc1_weight is of shape .*; the run's images are "
                                 "112x112")


def test_stored_embeddings_that_do_not_fit_are_named_in_a_line(make: Make, tiny_set: Path, tmp_path: Path) -> None:
    short = stored(tiny_set, tmp_path / "short", slice(0, 60))
    refused(make(teacher=short), rf"--teacher: {short} has 60 embeddings, none for 6 of the 66 images of .*, the first "
                                 "of record 61; expected one for each")
    other = stored(tiny_set, tmp_path / "other", digest="0123")
    refused(make(teacher=other), r"has the embeddings of another set \(digest 0123\)")
    (tmp_path / "empty").mkdir()
    refused(make(teacher=str(tmp_path / "empty")), r"embeddings.npy: cannot be read: No such file")
    cut = Path(stored(tiny_set, tmp_path / "cut"))
    (cut / "embeddings.npy").write_bytes((cut / "embeddings.npy").read_bytes()[:-10])
    refused(make(teacher=str(cut)), r"embeddings.npy: found 1046 bytes")
    np.save(cut / "embeddings.npy", np.zeros((66, DIM), np.int32))
    refused(make(teacher=str(cut)), r"found int32 \(66, 8\), expected float16 or float32 of a row an image")
    wrong = Path(stored(tiny_set, tmp_path / "wrong"))
    np.save(wrong / "keys.npy", np.arange(66)[::-1].copy())
    refused(make(teacher=str(wrong)), "keys.npy: found keys in another order")
    np.save(wrong / "keys.npy", np.arange(65))
    refused(make(teacher=str(wrong)), r"keys.npy: found int64 \(65,\), expected int64 of 66 keys")
    (wrong / "embeddings.json").write_text("[]")
    np.save(wrong / "keys.npy", np.arange(1, 67))
    refused(make(teacher=str(wrong)), "embeddings.json: not the note of common.embed_set")


def test_flags_find_the_teacher_or_say_that_there_is_none(teacher: str, tmp_path: Path) -> None:
    def parse(*flags: str) -> Config:
        return parse_args("train_parall", ["--network", "y1", "--dataset", "emore", *flags], environ={})

    prefix = teacher.removesuffix(",1")
    assert parse("--teacher", prefix, "--distil-weight", "5").teacher == teacher
    assert parse("--teacher", f"{prefix}-0001.params").teacher == teacher
    assert parse("--teacher", str(tmp_path)).teacher == str(tmp_path)  # a folder without a model-0001.params
    with pytest.raises(UserError, match=r"--teacher: found no .*gone-0001.params, expected PREFIX"):
        parse("--teacher", str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"distil_weight: found 5.0, but there is no --teacher"):
        parse("--distil-weight", "5")
    with pytest.raises(UserError, match=r"distil_weight: found '0', expected a number above 0|--distil-weight"):
        parse("--teacher", prefix, "--distil-weight", "0")
    refuse_unsupported(Config(teacher="x"))


@pytest.mark.parametrize(("fp16", "has_bfloat16"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("devices", ["cpu", "gpu"])
def test_the_teacher_computes_in_16_bits_if_the_run_does(teacher: str, tiny_set: Path, devices: str, fp16: bool,
                                                         has_bfloat16: bool) -> None:
    """If the engine has bfloat16 there. It gets the devices, batch and images of the run."""
    asked: list[Any] = []

    def embedder(*arguments: Any) -> SimpleNamespace:
        asked.append(arguments)
        return SimpleNamespace(dim=DIM)

    config = Config(teacher=teacher, devices=devices, fp16=fp16, emb_size=DIM, per_batch_size=5)
    engine = SimpleNamespace(has_bfloat16=lambda devices: has_bfloat16, embedder=embedder)
    made = make_teacher(config, engine, open_dataset(tiny_set))
    assert made is not None and made.dim == DIM
    prefix = teacher.removesuffix(",1")
    assert asked == [((prefix, 1), config.devices, 5, (3, 112, 112), fp16 and has_bfloat16)]
