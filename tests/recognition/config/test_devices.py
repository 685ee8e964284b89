# SPDX-License-Identifier: Apache-2.0
"""Devices and workers from the flag and the environment."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

from recognition.config.cli import parse_args
from recognition.config.devices import (
    num_workers,
    own_devices,
    parse_devices,
    processors,
    require_numbers,
    share_processors,
    threads_per_core,
    visible_devices,
)
from recognition.errors import UserError

CPU = (("cpu", 0),)


@pytest.mark.parametrize("text, devices", [
    ("cpu", CPU),
    ("cpu:1", CPU),
    (" cpu:3 ", (("cpu", 0), ("cpu", 1), ("cpu", 2))),
    ("gpu", (("gpu", 0),)),
    ("gpu:1", (("gpu", 1),)),
    ("gpu:2,0", (("gpu", 2), ("gpu", 0))),
    ([["gpu", 0], ["gpu", 1]], (("gpu", 0), ("gpu", 1))),
])
def test_devices_of_a_flag_or_a_saved_configuration(text, devices):
    assert parse_devices(text) == devices


@pytest.mark.parametrize("text", ["", "cpu:0", "cpu:-1", "cpu:1025", "cpu:99999999999", "cpu:a", "gpu:0,0", "gpu:-1",
                                  "gpu:0,", "tpu", "0,1", [], None, 3, [["cpu"]], [["cpu", 0], ["gpu", 0]]])
def test_no_devices(text):
    with pytest.raises((ValueError, TypeError)):
        parse_devices(text)


@pytest.mark.parametrize("environ, devices", [
    ({}, CPU),
    ({"CUDA_VISIBLE_DEVICES": ""}, CPU),
    ({"CUDA_VISIBLE_DEVICES": "  "}, CPU),
    ({"CUDA_VISIBLE_DEVICES": "-1"}, CPU),
    ({"CUDA_VISIBLE_DEVICES": "3"}, (("gpu", 0),)),
    ({"CUDA_VISIBLE_DEVICES": "5, 2,GPU-0a1b"}, (("gpu", 0), ("gpu", 1), ("gpu", 2))),
    ({"CUDA_VISIBLE_DEVICES": "0,-1,1"}, (("gpu", 0),)),  # as CUDA reads it
    ({"CUDA_VISIBLE_DEVICES": "0,"}, (("gpu", 0),)),
])
def test_visible_devices(environ, devices):
    assert visible_devices(environ) == devices


def test_the_same_gpu_twice_is_refused():
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES: found '0,1,0', expected each GPU once"):
        visible_devices({"CUDA_VISIBLE_DEVICES": "0,1,0"})


def test_number_of_workers():
    assert num_workers({}) == num_workers({"DMLC_NUM_WORKER": ""}) == 1
    assert num_workers({"DMLC_NUM_WORKER": "4"}) == 4


@pytest.mark.parametrize("text", ["0", "-2", "two", "1.5"])
def test_no_number_of_workers(text):
    with pytest.raises(UserError, match=r"^DMLC_NUM_WORKER: found"):
        num_workers({"DMLC_NUM_WORKER": text})


def test_cpu_devices_share_the_processors_and_the_user_has_the_last_word() -> None:
    environ: dict[str, str] = {}
    share_processors([("gpu", 0), ("gpu", 1)], environ)
    assert environ == {}
    share_processors([("cpu", 0)], environ)  # else MXNet takes half of them, also where no core has two threads
    assert environ == {"OMP_NUM_THREADS": str(max(1, processors() // threads_per_core()))}
    environ.clear()
    share_processors([("cpu", 0), ("cpu", 1)], environ)
    assert environ == {"OPENBLAS_NUM_THREADS": str(processors()), "OMP_NUM_THREADS": str(max(1, processors() // 2))}
    chosen = {"OMP_NUM_THREADS": "3"}
    share_processors([("cpu", 0), ("cpu", 1)], chosen)
    assert chosen == {"OPENBLAS_NUM_THREADS": "3", "OMP_NUM_THREADS": "3"}


@pytest.mark.parametrize("devices", [[("cpu", 0)], [("gpu", 0)]], ids=["cpu", "gpu"])
def test_the_processes_of_a_host_share_its_processors(devices, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of GPUs, which gather rows of class centres in host memory."""
    monkeypatch.setattr("recognition.config.devices.processors", lambda: 12)
    environ = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    share_processors(devices, environ)
    assert environ["OMP_NUM_THREADS"] == environ["NUMBA_NUM_THREADS"] == "3"
    environ = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "2"}
    share_processors(devices, environ)
    assert environ["OMP_NUM_THREADS"] == "2"


@pytest.mark.parametrize("mask, threads", [("1\n", 1), ("00000000,00000003\n", 2), ("00000001,00000001\n", 2), ("", 1),
                                           ("what\n", 1), (None, 1)])
def test_threads_per_core(tmp_path: Path, mask: str | None, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recognition.config.devices.TOPOLOGY", tmp_path)
    if mask is not None:
        (tmp_path / "thread_siblings").write_text(mask)
    assert threads_per_core() == threads


@pytest.mark.parametrize("prefix", ["HOROVOD_LOCAL_", "RECOGNITION_LOCAL_", "OMPI_COMM_WORLD_LOCAL_"])
def test_gpus_are_dealt_out_among_the_processes_of_a_host(prefix):
    gpus = parse_devices("gpu:0,1,2,3")
    environ = {f"{prefix}RANK": "1", f"{prefix}SIZE": "2"}
    assert own_devices(gpus, environ) == (("gpu", 2), ("gpu", 3))
    assert own_devices(gpus, {}) == gpus
    assert own_devices(parse_devices("cpu:2"), environ) == parse_devices("cpu:2")
    with pytest.raises(UserError, match=r"^devices: found 3 GPUs for 2 processes on this host"):
        own_devices(gpus[:3], environ)
    with pytest.raises(UserError, match=r"^devices: found 1 GPUs"):
        own_devices(gpus[:1], environ)


@pytest.mark.parametrize(("environ", "message"), [
    ({"OMP_NUM_THREADS": "abc"}, "OMP_NUM_THREADS: found 'abc', expected a whole number from 1 to 4096"),
    ({"OMP_NUM_THREADS": "100000"}, "OMP_NUM_THREADS: found '100000'"), ({"OMP_NUM_THREADS": "2,"}, "OMP_NUM_THREADS"),
    ({"MXNET_CPU_WORKER_NTHREADS": "0"}, "MXNET_CPU_WORKER_NTHREADS: found '0'"),
    ({"NUMBA_NUM_THREADS": "9" * 5000}, "NUMBA_NUM_THREADS: found '999"),
    ({"DMLC_PS_ROOT_PORT": "abc"}, "DMLC_PS_ROOT_PORT: found 'abc', expected a whole number from 1 to 65535"),
    ({"HOROVOD_SIZE": "abc"}, "HOROVOD_SIZE: found 'abc'"), ({"RECOGNITION_WORKER": "-1"}, "RECOGNITION_WORKER: found"),
    ({"HOROVOD_RANK": "5", "HOROVOD_SIZE": "2"}, "HOROVOD_RANK: found 5, expected less than HOROVOD_SIZE, 2")])
def test_variables_that_end_libraries_are_looked_at_first(environ, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        require_numbers(environ)
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        parse_args("train", [], environ=environ)


def test_variables_as_they_should_be():
    require_numbers({"OMP_NUM_THREADS": "4,2", "HOROVOD_RANK": "1", "HOROVOD_SIZE": "2", "DMLC_NUM_WORKER": ""})
