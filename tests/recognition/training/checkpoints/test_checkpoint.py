# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.symbols import to_symbol
from recognition.errors import UserError
from recognition.io.centres import save_centres
from recognition.networks import sym
from recognition.networks.graph import Graph
from recognition.training.checkpoints.checkpoint import save_checkpoint
from recognition.training.checkpoints.pretrained import read_params, take_over


def small_network() -> Graph:
    return sym.BatchNorm(sym.FullyConnected(sym.Variable("data"), num_hidden=3, name="pre_fc1"), name="fc1").graph()


def arrays() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    random = np.random.RandomState(0)
    shapes = {"pre_fc1_weight": (3, 5), "pre_fc1_bias": (3,), "fc1_gamma": (3,), "fc1_beta": (3,)}
    return ({name: random.rand(*shape).astype(np.float32) for name, shape in shapes.items()},
            {name: random.rand(3).astype(np.float32) for name in ("fc1_moving_mean", "fc1_moving_var")})


def test_plain_mxnet_reads_it(tmp_path: Path) -> None:
    parameters, auxiliary = arrays()
    path = save_checkpoint(tmp_path / "run" / "model", 1, small_network(), parameters, auxiliary)
    assert path == tmp_path / "run" / "model-0001.params"
    symbol, args, aux = mx.model.load_checkpoint(str(tmp_path / "run" / "model"), 1)
    assert symbol.list_outputs() == ["fc1_output"]
    assert all(np.array_equal(args[name].asnumpy(), parameters[name]) for name in parameters)
    assert all(np.array_equal(aux[name].asnumpy(), auxiliary[name]) for name in auxiliary)
    names = ["model-0001.params", "model-symbol.json"]
    assert sorted(p.name for p in path.parent.iterdir()) == sorted(names + [f"{name}.sha256" for name in names])


def test_the_files_are_those_that_mxnet_writes(tmp_path: Path) -> None:
    parameters, auxiliary = arrays()
    path = save_checkpoint(tmp_path / "model", 1, small_network(), parameters, auxiliary)
    mx.nd.save(str(tmp_path / "theirs"), {**{f"arg:{name}": mx.nd.array(value) for name, value in parameters.items()},
                                          **{f"aux:{name}": mx.nd.array(value) for name, value in auxiliary.items()}})
    assert path.read_bytes() == (tmp_path / "theirs").read_bytes()
    to_symbol(small_network()).save(str(tmp_path / "theirs"))
    assert (tmp_path / "model-symbol.json").read_bytes() == (tmp_path / "theirs").read_bytes()
    save_centres(tmp_path, 3, np.ones((4, 2), np.float32), np.zeros((4, 2), np.float32))
    mx.nd.save(str(tmp_path / "theirs"), mx.nd.ones((4, 2)))
    assert (tmp_path / "3_centers.param").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert (tmp_path / "3_centers_mom.param").exists()
    save_centres(tmp_path, 3, np.zeros((4, 2), np.float32), None)  # with AdamW, over what SGD left
    assert not (tmp_path / "3_centers_mom.param").exists()
    assert not mx.nd.load(str(tmp_path / "3_centers.param"))[0].asnumpy().any()


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, full_disk: Callable) -> None:
    parameters, auxiliary = arrays()
    path = save_checkpoint(tmp_path / "model", 1, small_network(), parameters, auxiliary)
    before = path.read_bytes()
    parameters["pre_fc1_weight"] = np.ones((100, 100), np.float32)
    with full_disk(20000), pytest.raises(UserError, match=r"model-0001\.params: cannot be written: File too large"):
        save_checkpoint(tmp_path / "model", 1, small_network(), parameters, auxiliary)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.glob("model-*[ns]")) == ["model-0001.params", "model-symbol.json"]
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(UserError, match=r"model-symbol\.json: cannot be written: "):
        save_checkpoint(path / "model", 1, small_network(), parameters, auxiliary)
    with pytest.raises(UserError, match=r"0_centers\.param: cannot be written: "):
        save_centres(path, 0, np.ones((4, 2)), np.ones((4, 2)))


def no_advice(shapes: dict[str, tuple[int, ...]]) -> str:
    return f"{len(shapes)} shapes"


def test_every_array_of_a_checkpoint_is_accounted_for(tmp_path: Path) -> None:
    parameters, auxiliary = arrays()
    path = save_checkpoint(tmp_path / "model", 1, small_network(), {**parameters, "fc7_weight": parameters["fc1_beta"],
                                                                   "other_weight": parameters["fc1_beta"]}, auxiliary)
    zeros = ({name: np.zeros_like(a) for name, a in parameters.items()},
             {name: np.zeros_like(a) for name, a in auxiliary.items()})
    zeros[0]["new_bias"] = np.zeros(3, np.float32)
    line = take_over(path, read_params(path), zeros, no_advice)
    assert "6 arrays loaded, 1 missing (new_bias), 1 left over (other_weight); 7 shapes" in line
    assert np.array_equal(zeros[0]["pre_fc1_weight"], parameters["pre_fc1_weight"])
    assert np.array_equal(zeros[1]["fc1_moving_var"], auxiliary["fc1_moving_var"])


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    parameters, auxiliary = arrays()
    path = save_checkpoint(tmp_path / "model", 1, small_network(), parameters, auxiliary)
    found = read_params(path)
    with pytest.raises(UserError, match=r"1 of its arrays have a wrong shape \(the first, pre_fc1_bias: found "
                                        r"\(3,\), expected \(4,\)\), 0 would fit, 1 are missing \(new\), 5 left "
                                        r"over .*; 6 shapes"):
        take_over(path, found, ({"pre_fc1_bias": np.zeros(4), "new": np.zeros(1)}, {}), no_advice)
    with pytest.raises(UserError, match=r"none of its 6 arrays .*; 6 shapes"):
        take_over(path, found, ({"conv0_weight": np.zeros(4)}, {}), no_advice)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.params").write_text("not arrays")
    with pytest.raises(UserError, match="not a file of MXNet's arrays"):
        read_params(tmp_path / "text.params")
    for saved, words in [({"weight": mx.nd.ones(2)}, "an array named 'weight', expected arg"),
                         ([mx.nd.ones(2)], "arrays without names")]:
        mx.nd.save(str(tmp_path / "model.params"), saved)
        with pytest.raises(UserError, match=words):
            read_params(tmp_path / "model.params")


def test_a_deeper_network_of_the_same_family_is_another(tmp_path: Path) -> None:
    """All that the checkpoint has would fit, by name and shape, and the rest would stay at random values."""
    parameters, auxiliary = arrays()
    path = save_checkpoint(tmp_path / "model", 1, small_network(), parameters, auxiliary)
    zeros = tuple({name: np.zeros_like(a) for name, a in group.items()} for group in (parameters, auxiliary))
    zeros[0]["stage5_weight"] = np.zeros(3, np.float32)
    with pytest.raises(UserError, match=r"would be 6 arrays loaded, 1 missing \(stage5_weight\).*fits --network small"):
        take_over(path, read_params(path), zeros, lambda shapes: "it fits --network small")
    assert not zeros[0]["pre_fc1_weight"].any()
