# SPDX-License-Identifier: Apache-2.0
"""What the options of the class centres make of a head, with each engine's own class centres."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recognition.config.devices import Device
from recognition.config.options import Config, refuse_unsupported
from recognition.engines.choose import choose_engine
from recognition.engines.configured import computing_of
from recognition.engines.cpu.shard import CpuShard
from recognition.errors import UserError
from recognition.head.shard import Shard
from recognition.head.sharded import HeadResult, ShardedHead
from recognition.processes.communicator import SingleProcess
from recognition.training.parts import make_head


class NoGpu:
    """An engine whose shards on GPUs have their arrays in host memory."""

    def __init__(self, engine: str) -> None:
        self._engine, self.name = choose_engine(engine), engine

    def shard(self, device: Device, *place: Any, **options: Any) -> Shard:
        return self._engine.shard(("cpu", device[1]), *place, **options)


def head_of(engine: str, device: str, **options: object) -> ShardedHead:
    made = make_head(Config(emb_size=8, devices=device, **options), 40, NoGpu(engine),  # type: ignore[arg-type]
                     SingleProcess())
    assert isinstance(made, ShardedHead)
    return made


def two_steps(head: ShardedHead) -> tuple[list[HeadResult], np.ndarray]:
    random, results = np.random.RandomState(0), []
    for _ in range(2):
        x, labels = random.standard_normal((6, 8)).astype(np.float32), random.randint(0, 40, 6)
        results.append(head.forward_backward(x, labels))
        head.step(0.1)
    return results, head.shards[0].state().centres


def test_where_the_centres_live(engine: str) -> None:
    """On a device, on the host with sampled rows moved, on the host with the sums made there: rounding apart."""
    for ratio in (0.5, 1.0):
        heads = {place: head_of(engine, "gpu", centers_on=place, sample_ratio=ratio) for place in ("device", "cpu")}
        assert not isinstance(heads["device"].shards[0], CpuShard)
        assert isinstance(heads["cpu"].shards[0], CpuShard) == (ratio == 1)
        if ratio < 1:
            assert isinstance(heads["cpu"].shards[0].state().centres, np.ndarray)
            assert heads["cpu"].shards[0].on_host and not heads["device"].shards[0].on_host
        (first, w), (second, v) = (two_steps(head) for head in heads.values())
        assert [r.loss for r in first] == [r.loss for r in second] or ratio == 1
        np.testing.assert_allclose([r.loss for r in first], [r.loss for r in second], rtol=1e-5)
        np.testing.assert_allclose(w, v, rtol=0, atol=1e-5 * np.abs(w).max())


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_centres_on_a_disk(engine: str, device: str, tmp_path: Path) -> None:
    """In the folder of ``centers_folder`` or the run's; with the bits of centres in host memory."""
    (first, w), (second, v), (third, u) = (
        two_steps(head_of(engine, device, sample_ratio=0.5, **place)) for place in (
            {"centers_on": "cpu"}, {"centers_on": "disk", "centers_folder": str(tmp_path / "fast")},
            {"centers_on": "disk", "models_root": str(tmp_path), "network": "r50", "loss": "arcface", "dataset": "d"}))
    assert [r.loss for r in first] == [r.loss for r in second] == [r.loss for r in third]
    assert np.array_equal(w, v) and np.array_equal(w, u)
    assert (tmp_path / "fast").is_dir() and (tmp_path / "r50-arcface-d").is_dir()


@pytest.mark.parametrize(("options", "line"), [
    ({}, "centres_on: found 'disk', but a step without --sample-ratio would read all of the disk"),
    ({"sample_ratio": 0.1, "centres_from": "embeddings", "pretrained": "x"},
     "centres_on: found 'disk', but sums of embeddings would need memory for all class centres"),
    ({"sample_ratio": 0.1, "centers_on": "cpu", "centers_folder": "fast"},
     "centres_folder: found 'fast', but it is for --centres-on disk"),
])
def test_what_a_disk_is_not_for(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        refuse_unsupported(Config(**{"centers_on": "disk", **options}))


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_numbers_of_the_centres(engine: str, device: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In 16 bits with PyTorch, also on a CPU; a centre moves as in float32 but for 2^-7 of its numbers at most."""
    if engine == "mxnet":
        with pytest.raises(UserError, match="centres_numbers: found 'bfloat16', but MXNet keeps class centres as "
                                            "float32; expected --engine torch"):
            head_of(engine, device, centers_numbers="bfloat16")
        return
    (first, w), (second, v) = (two_steps(head_of(engine, device, centers_numbers=numbers))
                               for numbers in ("float32", "bfloat16"))
    assert capsys.readouterr().out == "class centres: bfloat16, rounded at random\n"
    np.testing.assert_allclose(v, w, rtol=0, atol=2**-7 * np.abs(w).max())
    assert not np.any(v.view(np.uint32) & 0xFFFF) and np.any(w.view(np.uint32) & 0xFFFF)
    assert second[1].loss == pytest.approx(first[1].loss, rel=0.02)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_filter_of_conflicting_negatives(engine: str, device: str) -> None:
    """At a threshold that most cosines exceed nearly nothing is left to be wrong about; at 0 it is off."""
    off, on = (two_steps(head_of(engine, device, interclass_filtering_threshold=value))[0] for value in (0, 0.001))
    assert on[0].loss < off[0].loss
    assert two_steps(head_of(engine, device))[0][0].loss == off[0].loss


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_derivative_at_the_target(engine: str, device: str) -> None:
    exact, straight = (two_steps(head_of(engine, device, target_gradient=value))[0]
                       for value in ("exact", "straight_through"))
    assert exact[0].loss == straight[0].loss
    assert np.abs(exact[0].d_features - straight[0].d_features).max() > 1e-3


@pytest.mark.parametrize(("options", "keeps"), [
    ({}, True), ({"centers_on": "cpu", "sample_ratio": 0.5}, True), ({"centers_on": "cpu"}, False),
    ({"gradient_acc": 2}, False), ({"label_smoothing": 0.1}, False),
    ({"loss_name": "triplet", "per_batch_size": 6}, False)])
def test_features_stay_on_the_device_of_the_only_shard_with_torch(options: dict[str, Any], keeps: bool) -> None:
    """Without a sample, W in the host's memory is the host's to compute with."""
    assert computing_of(Config(devices=(("gpu", 0),), **options)).keep_features is keeps
    assert not computing_of(Config(devices=(("gpu", 0), ("gpu", 1)), **options)).keep_features
