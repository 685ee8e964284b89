# SPDX-License-Identifier: Apache-2.0
"""Which engine computes: what is named, what is installed, what can use the devices, what was measured."""
from __future__ import annotations

import importlib.util
from dataclasses import replace
from types import SimpleNamespace

import pytest

from recognition.config.cli import parse_args
from recognition.config.differences import as_json, changed_options
from recognition.config.engines import ENGINES
from recognition.config.options import Config
from recognition.engines import choose
from recognition.engines.choose import decide, decide_for
from recognition.errors import UserError

GPUS = (("gpu", 0), ("gpu", 1))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch):
    """A function that pretends that the named modules are installed, with a processor and GPUs."""

    def pretend(*names: str, processor: str = "", gpus: str = "none") -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in names else None)
        monkeypatch.setattr(choose, "processor_flags", lambda: {processor})

        def check_devices(devices) -> None:
            if gpus not in names:
                raise UserError(f"gpu {devices[0][1]}: there is none")

        monkeypatch.setattr(choose, "choose_engine", lambda name: SimpleNamespace(check_devices=check_devices))

    return pretend


def test_the_engine_of_a_run() -> None:
    """``--engine``, and the key engine."""
    assert parse_args("train", [], environ={}).engine == "auto"
    for name in ("mxnet", "torch"):
        assert parse_args("train_parall", ["--engine", name], environ={}).engine == name
        assert decide(name) == (name, "")
    for ask in (lambda: parse_args("train", ["--engine", "tensorflow"], environ={}), lambda: decide("tensorflow")):
        with pytest.raises(UserError, match=r"engine: found 'tensorflow', expected auto, mxnet or torch$"):
            ask()


@pytest.mark.parametrize("devices", [(("cpu", 0),), GPUS])
def test_mxnet_alone_is_taken_without_a_word(installed, devices) -> None:
    installed("mxnet")
    assert decide("auto", devices) == ("mxnet", "")


@pytest.mark.parametrize("devices", [(("cpu", 0),), GPUS])
def test_torch_alone_is_taken_and_said(installed, devices) -> None:
    installed("torch")
    assert decide("auto", devices) == ("torch", "engine: PyTorch; MXNet is not installed")


def test_neither_mxnet_nor_torch() -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="neither MXNet nor PyTorch"):
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        decide("auto")


def test_centres_of_16_bits_go_to_torch(installed) -> None:
    installed("mxnet", "torch")
    assert decide("auto", centres="bfloat16") == (
        "torch", "engine: PyTorch rather than MXNet: it has class centres in bfloat16")
    installed("mxnet")
    assert decide("auto", centres="bfloat16") == ("mxnet", "")  # which then says that it has none


def test_gpus_go_to_torch_if_it_sees_them(installed) -> None:
    installed("mxnet", "torch", gpus="torch")
    assert decide("auto", GPUS) == ("torch", "engine: PyTorch rather than MXNet: the devices are GPUs")
    installed("mxnet", "torch")
    assert decide("auto", GPUS) == (
        "mxnet", "engine: MXNet rather than PyTorch: PyTorch cannot use the devices (gpu 0: there is none)")


@pytest.mark.parametrize("processor, in_16_bits, network, expected", [
    ("amx_bf16", False, "fresnet", "mxnet"),
    ("amx_bf16", True, "fresnet", "torch"),
    ("amx_bf16", True, "fmobilefacenet", "mxnet"),
    ("avx512_bf16", True, "fresnet", "mxnet"),
])
def test_cpus_go_to_what_was_measured_to_train_faster_mxnet_or_torch(
        installed, processor: str, in_16_bits: bool, network: str, expected: str) -> None:
    installed("mxnet", "torch", processor=processor)
    config = Config(engine="auto", fp16_scale=128.0 * in_16_bits, net_name=network)
    name, line = decide_for(config)
    assert name == expected
    assert line.startswith(f"engine: {ENGINES[name].title} rather than ") and "images/s" in line
    assert "\n" not in line


@pytest.mark.parametrize("processor, in_16_bits, network, warned", [
    ("amx_bf16", True, "fresnet", True), ("amx_bf16", False, "fresnet", False),
    ("amx_bf16", True, "fmobilefacenet", False), ("avx512_bf16", True, "fresnet", False)])
@pytest.mark.parametrize("engine, there", [("mxnet", ("mxnet", "torch")), ("auto", ("mxnet",))])
def test_16_bits_that_make_mxnet_slower_are_said(installed, engine, there, processor, in_16_bits, network, warned
                                                 ) -> None:
    installed(*there, processor=processor)
    config = Config(engine=engine, fp16_scale=128.0 * in_16_bits, net_name=network)
    name, line = decide_for(config)
    assert name == "mxnet"
    assert ("slower than in float32" in line) == bool(line) == warned
    assert decide_for(replace(config, devices=GPUS)) == ("mxnet", "")
    assert decide_for(replace(config, engine="torch")) == ("torch", "")


def test_what_is_not_asked_for_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: pytest.fail(f"looked for {name}"))
    assert decide("torch", GPUS) == ("torch", "")


def test_going_on_in_the_other_engine_is_said_and_old_states_are_of_mxnet() -> None:
    before = as_json(Config(engine="mxnet"))
    assert changed_options(before, Config(engine="torch")) == ["engine mxnet -> torch"]
    assert changed_options({**before, "engine": "auto"}, Config(engine="torch")) == ["engine mxnet -> torch"]
    assert changed_options({**before, "engine": "auto"}, Config(engine="mxnet")) == []
