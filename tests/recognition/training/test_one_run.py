# SPDX-License-Identifier: Apache-2.0
"""Processes of one run that have not everything alike are told so at once."""
from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Callable

import pytest

from recognition.config.cli import parse_args
from recognition.config.differences import as_json
from recognition.processes import alike
from recognition.processes.alike import require_alike, require_shared, shared_options
from tests.recognition.threads import Thread, together

ROOT = Path(__file__).resolve().parents[3]


def said(*processes: Callable[[Thread], None]) -> list[str]:
    """What each process ends with; empty if it goes on."""
    return [str(error or "") for error in together(lambda process: processes[process.rank](process), len(processes))]


def test_the_first_option_that_differs_is_named_in_all_processes() -> None:
    config = parse_args("train_parall", ["--devices", "cpu:2"], environ={})
    hosts = replace(config, dataset_path="elsewhere", models_root="there", config_file="/b/config.py", decode_threads=3,
                    own_keys={"scratch": {"/host/b"}})
    gpus = [replace(config, devices=(("gpu", first), ("gpu", first + 1))) for first in (0, 4)]
    for changed, expected in ((config, ""), (hosts, ""),
                              (replace(config, lr=0.5), "lr: process 2 has 0.5, process 0 0.1, expected the same"),
                              (replace(config, seed=7, wd=0.1), "seed: process 2 has 7, process 0 "),
                              (replace(config, devices=config.devices[:1]),
                               "devices: process 2 has '1 of cpu', process 0 '2 of cpu'")):
        ends = said(*(lambda communicator, one=one: require_alike(shared_options(as_json(one)), communicator)  # type: ignore
                      for one in (config, config, changed)))
        assert len(set(ends)) == 1 and ends[0].startswith(expected) and bool(ends[0]) == bool(expected)
    assert shared_options(as_json(gpus[0])) == shared_options(as_json(gpus[1]))


def test_a_folder_that_is_not_shared(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    assert said(*[lambda communicator: require_shared(here, communicator)] * 3) == [""] * 3
    ends = said(lambda communicator: require_shared(here, communicator),
                lambda communicator: require_shared(there, communicator))
    assert ends == [f"--models-root: process 1 does not see what process 0 writes to {folder}; all need it on a file "
                    "system that they share, or each host its own with --states-on hosts" for folder in (here, there)]
    assert not list(tmp_path.rglob("*/*"))


def test_the_host_that_does_not_share_a_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    own = threading.local()
    monkeypatch.setattr(alike.socket, "gethostname", lambda: own.name)

    def process(host: str, folder: Path) -> Callable[[Thread], None]:
        def check(communicator: Thread) -> None:
            own.name = host
            require_shared(folder, communicator)
        return check

    ends = said(process("a", tmp_path), process("a", tmp_path), process("b", tmp_path / "there"))
    assert all(end.startswith("--models-root: process 2 on b does not see what process 0 on a writes to ")
               for end in ends)


@pytest.mark.parametrize("servers", [(), pytest.param(("--servers", "1"), marks=pytest.mark.slow)])
def test_real_processes_of_which_one_has_another_rate(start: Callable[..., subprocess.Popen], horovod: None,
                                                      tmp_path: Path, servers: tuple[str, ...]) -> None:
    entry, kvstore = ("train", ["--kvstore", "dist_sync"]) if servers else ("train_parall", [])
    run = start("never", "--help")  # writes the configuration
    run.communicate()
    wrapper = ["sh", "-c", 'test "$RECOGNITION_WORKER" = 1 && set -- "$@" --lr 0.5; exec "$0" "$@"']
    done = subprocess.run(
        [sys.executable, "-m", "recognition.launch", "-np", "2", *servers, "--", *wrapper, sys.executable,
         str(ROOT / f"{entry}.py"), "--config", str(tmp_path / "config.py"), "--models-root", str(tmp_path / "models"),
         "--per-batch-size", "6", "--max-steps", "4", "--lr", "0.01", *kvstore], cwd=ROOT, capture_output=True,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)
    assert done.returncode == 2
    assert "lr: process 1 has 0.5, process 0 0.01, expected the same in all processes of a run" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "models").rglob("*.params")) and not list((tmp_path / "models").rglob("*.writing"))
