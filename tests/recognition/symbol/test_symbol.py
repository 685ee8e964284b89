# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from recognition.errors import UserError
from recognition.mxnet_compat import mx
from recognition.symbol import build_symbol
from recognition.symbol.initialise import initialise
from recognition.symbol.passes import fast_prelu

QUICK = ("r18", "r50v1", "y1")
GOLDEN = ("r18", "r34", "r50", "r50v1", "r100", "r100fc", "y1", "y2")
# The graphs that the public InsightFace code gives for each choice of options: sha256 of [nodes, heads] as JSON.
LEGACY_GRAPHS = json.loads((Path(__file__).parent / "legacy_graphs.json").read_text())


def graph(symbol):
    found = json.loads(symbol.tojson())
    return [found["nodes"], found["heads"]]


def run(symbol, parameters, auxiliary, images):
    executor = symbol.bind(mx.cpu(), {"data": mx.nd.array(images), **parameters}, aux_states=auxiliary, grad_req="null")
    return executor.forward(is_train=False)[0].asnumpy()


def on_device(arrays):
    return {name: mx.nd.array(value) for name, value in arrays.items()}


@pytest.mark.parametrize("name", GOLDEN)
def test_graph_of_a_preset_is_the_golden_one(name, configuration, shared):
    golden = mx.sym.load(str(shared / "legacy" / "symbols" / f"{name}-symbol.json"))
    symbol = build_symbol(configuration(name))
    assert symbol.list_outputs() == ["fc1_output"]
    assert graph(symbol) == graph(golden)  # operators, attributes, names and order, to the letter


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in GOLDEN])
def test_preset_gives_the_golden_graphs_output(name, configuration, shared):
    golden = mx.sym.load(str(shared / "legacy" / "symbols" / f"{name}-symbol.json"))
    symbol = build_symbol(configuration(name))
    parameters, auxiliary = map(on_device, initialise(symbol, (3, 112, 112), seed=1))
    images = np.random.default_rng(0).integers(0, 256, (1, 3, 112, 112))
    found, expected = (run(item, parameters, auxiliary, images) for item in (symbol, golden))
    np.testing.assert_array_equal(found, expected)  # the same graph: the same bits


@pytest.mark.parametrize("optimise", [lambda symbol: symbol, fast_prelu], ids=["plain", "fast_prelu"])
def test_legacy_checkpoint_gives_its_output(optimise, configuration, shared):
    folder = shared / "legacy" / "checkpoint" / "y1-softmax-emore"
    _, parameters, auxiliary = mx.model.load_checkpoint(str(folder / "model"), 1)
    images = np.random.RandomState(0).randint(0, 256, (2, 3, 112, 112)).astype("float32")
    found = run(optimise(build_symbol(configuration("y1"))), parameters, auxiliary, images)
    expected = np.load(folder / "expected.npz", allow_pickle=False)["fc1"]
    # Float32 sums of 49 layers in another order on another processor: 1e-4 of the largest value.
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("family", "options", "digest"), LEGACY_GRAPHS,
                         ids=[" ".join(map(str, [family, *options.values()])) for family, options, _ in LEGACY_GRAPHS])
def test_graph_of_any_options_is_the_legacy_one(family, options, digest, configuration):
    is_map = options.get("net_output") == "Z"  # the legacy graph ends there; ours flattens it and calls it fc1_output
    sizes = {"emb_size": 512 * 7 * 7} if is_map else {}
    symbol = build_symbol(configuration(net_name=family, **{**options, **sizes}))
    if is_map:
        symbol = symbol.get_internals()["dropout0_output"]
    assert hashlib.sha256(json.dumps(graph(symbol), sort_keys=True).encode()).hexdigest() == digest


def test_same_options_give_the_same_json(configuration):
    assert build_symbol(configuration("y1")).tojson() == build_symbol(configuration("y1")).tojson()


@pytest.mark.parametrize(("options", "message"), [
    ({"net_name": "fresnets"}, "net_name: found 'fresnets', expected one of .*'fresnet'.*nearest is 'fresnet'"),
    ({"num_layers": 51}, "num_layers: found 51, expected one of 18, 34, .*50"),
    ({"net_unit": 4}, "net_unit: found 4, expected one of 1, 2, 3"),
    ({"net_input": 3}, "net_input: found 3, expected one of 0, 1, 2"),
    ({"net_se": 2}, "net_se: found 2, expected one of 0, 1"),
    ({"net_act": "prelus"}, "net_act: found 'prelus', expected one of .*nearest is 'prelu'"),
    ({"net_output": "GAPP"}, "net_output: found 'GAPP', expected one of .*nearest is 'GAP'"),
    ({"net_output": "Z"}, "emb_size: found 512, but net_output Z gives 25088 features for 112x112 images"),
    ({"net_output": "GDC", "net_input": 0}, "image_shape: found 112x112x3.*conv_6dw7_7_conv2d"),
    ({"net_name": "fmobilefacenet", "net_blocks": [1, 4, 6]}, "net_blocks: found .*four"),
    ({"net_name": "fmobilefacenet", "net_multiplier": 0}, "net_multiplier: found 0, expected"),
])
def test_bad_options_are_named_with_the_valid_ones(options, message, configuration):
    with pytest.raises(UserError, match=message):
        build_symbol(configuration(**{"num_layers": 18, **options}))
