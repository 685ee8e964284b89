# SPDX-License-Identifier: Apache-2.0
"""A run in MLflow (``--mlflow``), through the client of its package ``mlflow`` or ``mlflow-skinny``."""
from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from recognition.errors import UserError
from recognition.training.watch.background import Point, brief
from recognition.training.watch.run_ids import keep_id, kept_id

FILE = "mlflow.json"  # beside the checkpoints: the run's id there
MOST_PARAMETERS = 100  # in a request
MOST_LETTERS = 500  # of a parameter's value
ENDS = {0: "FINISHED", 1: "FAILED"}  # by exit status; any other is a signal's


class MlflowRun:
    """The run in the experiment of MLFLOW_EXPERIMENT_NAME, else in "Default". MLflow has no histograms of numbers: the
    angles' percentiles stand for them."""

    flag = "--mlflow"

    def __init__(self, place: str, folder: Path, options: Mapping[str, Any], step: int) -> None:
        """:param place: a server's address, another address that MLflow knows, or a folder.
        :param options: all of the run. MLflow lets none change: a run that goes on keeps those of its start.
        :param step: the step that the run resumes from; with 0 it is a new run there, too.
        """
        self._client, self._place = require_mlflow(place), place
        self._entities = import_module("mlflow.entities")
        self._folder, self._options = folder, options
        self._id = kept_id(folder / FILE, place) if step else ""
        self._sent: dict[str, int] = {}  # the last step of each number that was there when the run went on

    def start(self) -> str:
        client = self._client
        if self._id:
            found = client.get_run(self._id)
            client.update_run(self._id, status="RUNNING")
            self._sent = {key: max(metric.step for metric in client.get_metric_history(self._id, key))
                          for key in found.data.metrics}
        else:
            found = client.create_run(self._experiment(), run_name=self._folder.resolve().name)
            self._id = found.info.run_id
            keep_id(self._folder / FILE, self._place, self._id)
        texts = {key: str(value)[:MOST_LETTERS] for key, value in self._options.items() if value not in ("", [], {})}
        new = iter([self._entities.Param(key, text) for key, text in texts.items() if key not in found.data.params])
        while parameters := list(islice(new, MOST_PARAMETERS)):
            client.log_batch(self._id, params=parameters)
        return f"run {self._id} at {self._place}"

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def send(self, points: list[Point]) -> None:
        """Send the numbers, but for those that the run sent before it was stopped and went on."""
        metrics = [self._entities.Metric(allowed(key), value, int(1000 * point.time), point.step)
                   for point in points for key, value in point.numbers.items()
                   if point.step > self._sent.get(allowed(key), -1)]
        if metrics:
            self._client.log_batch(self._id, metrics=metrics)

    def end(self, status: int) -> None:
        self._client.set_terminated(self._id, ENDS.get(status, "KILLED"))


def allowed(key: str) -> str:
    """A name with what MLflow takes in names alone."""
    return re.sub(r"[^\w. /-]", "_", key, flags=re.ASCII)


def require_mlflow(place: str) -> Any:
    """A client of the MLflow at ``place``. Nobody is asked yet.

    :raises UserError: if the package is not installed, or knows no such address.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # its package tells its makers of its use otherwise
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # with a line each; Background tries again
    address = place if "://" in place or place.startswith("databricks") else Path(place).resolve().as_uri()
    if address.startswith("file:"):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # from 3.13 on it has to be asked for
    try:
        return import_module("mlflow.tracking").MlflowClient(tracking_uri=address)
    except ImportError as error:
        raise UserError(f"{MlflowRun.flag}: {error}; it needs MLflow: pip install mlflow-skinny, or mlflow for "
                        "databases") from error
    except Exception as error:
        raise UserError(f"{MlflowRun.flag}: found {place!r}, expected a folder or an address that MLflow takes: "
                        f"{brief(error)}") from error
