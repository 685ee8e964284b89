# SPDX-License-Identifier: Apache-2.0
"""Runs watched by Weights & Biases and by MLflow: their real packages, without a network, and what they wrote is read
back. A service that fails is a made-up one."""
from __future__ import annotations

import json
import logging
import struct
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from recognition.config.options import Config
from recognition.errors import UserError
from recognition.training.run import train
from recognition.training.watch import background
from recognition.training.watch.background import Background, Point
from recognition.training.watch.run_ids import keep_id, kept_id

Make = Callable[..., Config]
WATCHED = {"frequent": 1, "verbose": 2, "val_targets": "tiny", "ckpt": 0, "tensorboard_every": 2, "state_every": 2}
NOBODY = "http://127.0.0.1:9"  # the port "discard": nobody listens


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package, without a network and without the user's own settings."""
    package = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    package.teardown()  # what read the environment before
    yield package
    package.teardown()


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package's module of clients."""
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(name, "true")  # it is set back after the test
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    pytest.importorskip("mlflow")
    return pytest.importorskip("mlflow.tracking")


def history(config: Config) -> dict[str, dict[int, float]]:
    """The numbers of history.jsonl by their names and steps."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for line in (Path(config.output_dir) / "history.jsonl").read_text().splitlines():
        record = json.loads(line)
        group = f"{record.pop('kind')}/{record.pop('target', '')}".rstrip("/")
        step = record.pop("step")
        for key, value in record.items():
            found[f"{group}/{key}"][step] = value
    assert {"train/loss", "verification/tiny/accuracy", "gradient_norm/backbone", "angle/p95"} <= found.keys()
    return found


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: protobufs in LevelDB's log format, with a head of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, data = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # the rest of a block is too short for a record
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        data += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(data)
            data = b""


def offline(folder: Path) -> tuple[dict[str, Any], dict[str, dict[int, Any]]]:
    """Project, name and options of an offline run, and its numbers by their names and steps."""
    (path,) = folder.glob("*.wandb")
    about: dict[str, Any] = {}
    numbers: dict[str, dict[int, Any]] = defaultdict(dict)
    for record in records(path):
        if record.HasField("run"):
            about = {"project": record.run.project, "id": record.run.run_id, "name": record.run.display_name,
                     "config": {item.key: json.loads(item.value_json) for item in record.run.config.update}}
        if record.HasField("exit"):
            about["exit"] = record.exit.exit_code
        for item in record.history.item:
            key = item.key or "/".join(item.nested_key)
            if not key.startswith("_") and not key.endswith("/_type"):
                numbers[key][record.history.step.num] = json.loads(item.value_json)
    return about, numbers


def test_the_numbers_of_a_run_in_wandb(make: Make, wandb: Any) -> None:
    """All that the history says, and histograms of angles; a run that goes on is the same one there."""
    config = make(**WATCHED, wandb="faces", max_steps=4)
    assert train(config) == 0
    folder = Path(config.output_dir)
    (first,) = (folder / "wandb").glob("offline-run-*")
    about, numbers = offline(first)
    assert about["project"] == "faces" and about["name"] == folder.name and about["exit"] == 0
    assert about["config"]["lr"] == config.lr and about["config"]["loss_m2"] == config.loss_m2
    histograms = {part: numbers.pop(f"angles/{part}") for part in ("values", "bins")}
    assert numbers == history(config)
    assert histograms["values"].keys() == {2, 4} and sum(histograms["values"][4]) == 12
    assert histograms["bins"][4] == list(range(0, 181, 2))

    time.sleep(1.1)  # its folders have a name to the second
    assert train(make(**WATCHED, wandb="faces", max_steps=6, resume="yes")) == 0
    (second,) = set((folder / "wandb").glob("offline-run-*")) - {first}
    again, more = offline(second)
    assert again["id"] == about["id"] == kept_id(folder / "wandb.json", "faces")
    assert set(more["train/lr"]) == set(history(config)["train/lr"]) - set(numbers["train/lr"]) != set()


def test_the_numbers_of_a_run_in_mlflow(make: Make, mlflow: Any, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the history says, as its own client reads it; a run that goes on sends no step twice."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "faces")
    place = str(tmp_path / "mlruns")
    config = make(**WATCHED, mlflow=place, max_steps=5)
    assert train(config) == 0
    folder = Path(config.output_dir)
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())

    def found() -> dict[str, dict[int, float]]:
        series = {}
        for key in client.get_run(kept_id(folder / "mlflow.json", place)).data.metrics:
            metrics = client.get_metric_history(kept_id(folder / "mlflow.json", place), key)
            series[key] = {metric.step: metric.value for metric in metrics}
            assert len(series[key]) == len(metrics)
        return series

    assert found() == history(config)
    (run,) = client.search_runs([client.get_experiment_by_name("faces").experiment_id])
    assert run.info.run_name == folder.name and run.info.status == "FINISHED"
    assert run.data.params["lr"] == str(config.lr) and run.data.params["loss_m2"] == str(config.loss_m2)

    for later in (folder / "state").glob("step-*5"):  # as if a kill had left the state of step 4 alone
        later.rename(tmp_path / later.name)
    assert train(make(**WATCHED, mlflow=place, max_steps=7, resume="yes")) == 0
    assert found().keys() == history(config).keys()
    assert found()["train/loss"] == history(config)["train/loss"] and max(found()["train/loss"]) == 7
    assert len(client.search_runs([run.info.experiment_id])) == 1
    assert train(make(**WATCHED, mlflow=place, max_steps=2)) == 0  # anew: another run there, too
    assert len(client.search_runs([run.info.experiment_id])) == 2
    assert kept_id(folder / "state.1" / "mlflow.json", place) == run.info.run_id


@pytest.mark.parametrize("ends, status", [(1, "FAILED"), (143, "KILLED")])
def test_how_a_run_ended_is_said_in_mlflow(mlflow: Any, tmp_path: Path, ends: int, status: str) -> None:
    from recognition.training.watch.mlflow_run import MlflowRun

    run = Background(MlflowRun(str(tmp_path / "mlruns"), tmp_path, {"lr": 0.1, "empty": ""}, 0))
    run.write("verification", 3, target="a set (ü)", accuracy=0.5)
    run.close(ends)
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    (found,) = client.search_runs(["0"])
    assert found.info.status == status and found.data.metrics == {"verification/a set ___/accuracy": 0.5}


def test_without_a_network_the_run_goes_on(make: Make, wandb: Any, mlflow: Any, monkeypatch: pytest.MonkeyPatch,
                                           caplog: pytest.LogCaptureFixture) -> None:
    """W&B's package keeps the numbers on the disk; those for MLflow are counted, as history.jsonl has them."""
    from recognition.training.watch import wandb_run

    monkeypatch.setattr(wandb_run, "START_SECONDS", 1.0)
    monkeypatch.setattr(background, "PAUSE", 0.1)
    for name, value in {"MODE": "online", "BASE_URL": NOBODY, "API_KEY": "k" * 40}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    wandb.teardown()
    config = make(**WATCHED, wandb="us/faces", mlflow=NOBODY, max_steps=2)
    with caplog.at_level(logging.INFO):
        assert train(config) == 0
    (folder,) = (Path(config.output_dir) / "wandb").glob("offline-run-*")
    _, numbers = offline(folder)
    assert numbers["train/loss"] == history(config)["train/loss"]
    lines = [record.getMessage() for record in caplog.records if record.name == background.__name__]
    (kept,) = (line for line in lines if line.startswith("--wandb: "))
    assert kept.startswith("--wandb: no answer (") and kept.endswith(f"{folder} until `wandb sync` uploads it")
    fails, unsent = (line for line in lines if line.startswith("--mlflow: "))
    assert "; the run goes on, and tries again" in fails
    assert unsent == "--mlflow: 5 records were not sent; history.jsonl has them"
    assert "k" * 40 not in (Path(config.output_dir) / "training.log").read_text() + caplog.text


def test_the_users_key_is_asked_for_before_anything_trains(make: Make, wandb: Any, monkeypatch: pytest.MonkeyPatch,
                                                           tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", NOBODY)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    wandb.teardown()
    config = make(wandb="faces")
    with pytest.raises(UserError, match="--wandb: found no key of W&B, expected `wandb login` before, WANDB_API_KEY"):
        train(config)
    assert not (Path(config.output_dir) / "history.jsonl").exists()


@pytest.mark.parametrize("key, module, message", [
    ("wandb", "wandb", "--wandb: .*; it needs W&B's package: pip install "),
    ("mlflow", "mlflow.tracking", "--mlflow: .*; it needs MLflow: pip install ")])
def test_one_line_where_it_is_not_installed(make: Make, monkeypatch: pytest.MonkeyPatch, key: str, module: str,
                                            message: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    config = make(**{key: "place"})
    with pytest.raises(UserError, match=message):
        train(config)
    assert not (Path(config.output_dir) / "history.jsonl").exists()


def test_an_address_that_mlflow_does_not_know_is_one_line(make: Make, mlflow: Any) -> None:
    with pytest.raises(UserError, match=r"--mlflow: found 'gopher://x', expected a folder or an address that MLflow "):
        train(make(mlflow="gopher://x"))


def test_a_password_in_the_address_is_refused_and_not_shown(make: Make) -> None:
    with pytest.raises(UserError, match="mlflow: found a name or a password in the address") as error:
        make(mlflow="https://me:secret@host")
    assert "secret" not in str(error.value)
    assert make(mlflow="a folder@home").mlflow == "a folder@home"


def test_what_w_and_b_could_not_upload_is_said(wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                               caplog: pytest.LogCaptureFixture) -> None:
    from recognition.training.watch.wandb_run import WandbRun

    run = WandbRun("faces", tmp_path, {}, 0)
    run.start()

    def finish(exit_code: int) -> None:
        raise TimeoutError

    monkeypatch.setattr(run._run, "finish", finish)
    run.end(0)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert caplog.messages[-1] == f"--wandb: not all is uploaded; `wandb sync {folder}` uploads the rest"


@pytest.mark.parametrize("project", ["a/b/c", "a b?", "/b", "a/"])
def test_a_project_that_w_and_b_would_not_take_is_one_line(make: Make, project: str) -> None:
    with pytest.raises(UserError, match=r"wandb: found '.*', expected PROJECT or ENTITY/PROJECT"):
        make(wandb=project)


class Flaky:
    """A service that fails ``fails`` times, then answers; ``hangs``: it never answers."""

    flag = "--flaky"

    def __init__(self, fails: int = 0, hangs: bool = False) -> None:
        self.fails, self.hangs, self.sent, self.ended = fails, hangs, list[Point](), list[int]()

    def start(self) -> str:
        if self.hangs:
            threading.Event().wait()
        return "here"

    def send(self, points: list[Point]) -> None:
        if self.fails:
            self.fails -= 1
            raise ConnectionError("no route\nand more")
        self.sent += points

    def end(self, status: int) -> None:
        self.ended.append(status)


def test_numbers_wait_while_a_service_fails_and_all_arrive(monkeypatch: pytest.MonkeyPatch,
                                                           caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(background, "PAUSE", 0.01)
    service = Flaky(fails=3)
    watched = Background(service)
    with caplog.at_level(logging.INFO):
        for step in range(250):
            watched.write("train", step, loss=float(step), epoch=1)
        watched.histogram("angles", 250, np.array([0.5, 1.5, 91.0]))
        while len(service.sent) < 251:
            time.sleep(0.01)
        watched.close(7)
    assert [(point.step, point.numbers) for point in service.sent[:250]] == [
        (step, {"train/loss": float(step), "train/epoch": 1.0}) for step in range(250)]
    assert np.flatnonzero(service.sent[250].counts["angles"]).tolist() == [0, 45] and service.ended == [7]
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO][-2:] == [
        "--flaky: no route; the run goes on, and tries again every 0.01 s", "--flaky: answers again"]


def test_a_service_that_hangs_holds_nothing_up(monkeypatch: pytest.MonkeyPatch,
                                               caplog: pytest.LogCaptureFixture) -> None:
    """More than is kept for it: what is lost is counted."""
    monkeypatch.setattr(background, "PATIENCE", 0.01)
    monkeypatch.setattr(background, "MOST_WAITING", 50)
    watched = Background(Flaky(hangs=True))
    for step in range(70):
        watched.write("train", step, loss=1.0)
    watched.close(0)
    assert caplog.messages == ["--flaky: 70 records were not sent; history.jsonl has them"]


def test_an_id_is_of_one_place(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.json"
    assert kept_id(path, "a") == ""
    keep_id(path, "a", "7")
    assert (kept_id(path, "a"), kept_id(path, "b")) == ("7", "")
    path.write_text("[]")
    assert kept_id(path, "a") == ""
