# SPDX-License-Identifier: Apache-2.0
"""``--deterministic``: PyTorch's settings in a run on GPUs, which a fake stands for."""
from __future__ import annotations

import importlib.util
import os
from typing import Any, Callable

import pytest

from recognition.config.options import Config
from recognition.engines.choose import choose_engine
from recognition.errors import UserError
from recognition.training import run

torch = pytest.importorskip("torch")
GPU = (("gpu", 0),)
Settings = "tuple[bool, bool, bool, str | None]"


def settings() -> Settings:
    return (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark,
            torch.utils.deterministic.fill_uninitialized_memory, os.environ.get("CUBLAS_WORKSPACE_CONFIG"))


@pytest.fixture
def inside(make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """``inside(key=value)``: the settings where a run would begin its work, and have started CUDA."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)

    def settings_of(work: Callable[..., Any] = lambda *_: settings(), **options: Any) -> Any:
        monkeypatch.setattr(run, "train_together", work)
        return run.train(make(engine="torch", **options))

    return settings_of


def test_a_run_on_gpus_is_inside_the_settings(inside: Callable[..., Settings]) -> None:
    before = settings()
    assert inside(devices=GPU) == before
    assert inside(devices=GPU, deterministic=True) == (True, False, False, ":4096:8")
    assert settings()[:3] == before[:3]  # nothing of it stays


def test_a_workspace_that_the_user_has_set_stays_if_it_gives_the_same_bits(inside: Callable[..., Settings],
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    for given, used in ((":16:8", ":16:8"), (":0:0", ":4096:8")):
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", given)
        assert inside(devices=GPU, deterministic=True)[3] == used


def test_an_operator_that_cannot_is_one_line(inside: Callable[..., Settings]) -> None:
    """The text is that of PyTorch's own error; other errors stay."""
    def work(*_: Any) -> None:
        raise RuntimeError("adaptive_max_pool2d_backward_cuda does not have a deterministic implementation, but you "
                           "set 'torch.use_deterministic_algorithms(True)'. You can turn off determinism")

    def broken(*_: Any) -> None:
        raise RuntimeError("CUDA error")

    with pytest.raises(UserError, match=r"^deterministic: PyTorch's adaptive_max_pool2d_backward_cuda on GPUs "):
        inside(work, devices=GPU, deterministic=True)
    with pytest.raises(RuntimeError, match="CUDA error"):
        inside(broken, devices=GPU, deterministic=True)


def test_pytorch_still_words_its_error_so(inside: Callable[..., Settings]) -> None:
    """An operator that has none on CPUs either."""
    def work(*_: Any) -> None:
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))

    with pytest.raises(UserError, match=r"^deterministic: PyTorch's put_ on GPUs does not"):
        inside(work, devices=GPU, deterministic=True)


def test_mxnet_on_gpus_is_refused_and_cpus_need_nothing(inside: Callable[..., Settings],
                                                        make: Callable[..., Config]) -> None:
    before = settings()
    assert inside(deterministic=True) == before
    if importlib.util.find_spec("mxnet") is None:
        pytest.skip("mxnet is not installed")
    with choose_engine("mxnet").deterministic((("cpu", 0),)):
        pass
    with pytest.raises(UserError, match=r"^deterministic: found it with MXNet on GPUs, .* or --engine torch$"):
        run.train(make(engine="mxnet", devices=GPU, deterministic=True))
