# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import inspect
import json
from pathlib import Path

import numpy as np
import pytest

from recognition.config.devices import require_bfloat16
from recognition.config.groups.network import NETWORK_KEYS
from recognition.config.options import Config
from recognition.engines.configured import computing_of
from recognition.engines.interface import Updating
from recognition.engines.mxnet.backbone import ReplicatedBackbone
from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.passes.choose import bound_form
from recognition.engines.mxnet.passes.prelu import fast_prelu
from recognition.engines.mxnet.symbols import to_symbol
from recognition.errors import UserError
from recognition.networks import FAMILIES, build_symbol, first_weights
from recognition.networks.graph import Graph
from recognition.networks.initialise import initialise
from recognition.processes.communicator import SingleProcess

QUICK = ("r18", "y1", "m05", "mnas025", "vargfacenet")
GOLDEN = ("r18", "r34", "r50", "r50v1", "r100", "r100fc", "y1", "y2", "m1", "m05", "mnas", "mnas05", "mnas025", "d169",
          "d201", "vargfacenet")
SIDE = 112
# The graphs that the public InsightFace code gives for each choice of options: sha256 of graph() as JSON.
LEGACY_GRAPHS = json.loads((Path(__file__).parent / "legacy_graphs.json").read_text())
# Attributes that say what MXNet takes anyway; the legacy code writes some of them here and there.
UNSAID = {"momentum": "0.9", "use_global_stats": "False", "stride": "(1, 1)", "pad": "(0, 0)", "dilate": "(1, 1)",
          "num_group": "1", "layout": "NCHW", "global_pool": "False", "axes": "()", "pooling_convention": "valid",
          "count_include_pad": "True", "cudnn_off": "False"}


def graph(symbol):
    """What a graph computes: operators, their attributes and inputs, and the variables with their names and wishes.

    Without names of operators, which nobody depends on, and without the workspace and the shapes, tested elsewhere.
    """
    found = json.loads(symbol.to_json() if isinstance(symbol, Graph) else symbol.tojson())
    return [[[node["op"], node["name"] if node["op"] == "null" else "", attributes(node), node["inputs"]]
             for node in found["nodes"]], found["heads"]]


def attributes(node):
    written = node.get("attrs", {})
    unsaid = {"workspace", "__shape__", *({"kernel"} if written.get("global_pool") == "True" else ())}
    return {key: value for key, value in written.items() if key not in unsaid and UNSAID.get(key) != value}


def run(symbol, parameters, auxiliary, images):
    # Bound with gradients: without any, MXNet 1.9.1 fuses layers in ways that go wrong.
    arguments = {"data": mx.nd.array(images), **parameters}
    bound = to_symbol(symbol) if isinstance(symbol, Graph) else symbol
    executor = bound.bind(mx.cpu(), arguments, {name: mx.nd.zeros_like(array) for name, array in arguments.items()},
                           aux_states=auxiliary)
    return executor.forward(is_train=False)[0].asnumpy()


def on_device(arrays):
    return {name: mx.nd.array(value) for name, value in arrays.items()}


@pytest.mark.parametrize("name", GOLDEN)
def test_graph_of_a_preset_is_the_golden_one(name, configuration, shared):
    golden = mx.sym.load(str(shared / "legacy" / "symbols" / f"{name}-symbol.json"))
    symbol = build_symbol(configuration(name))
    assert symbol.list_outputs() == ["fc1_output"]
    assert graph(symbol) == graph(golden)
    assert symbol.list_arguments() == golden.list_arguments()
    assert symbol.list_auxiliary_states() == golden.list_auxiliary_states()
    assert to_symbol(symbol).infer_shape(data=(2, 3, SIDE, SIDE)) == golden.infer_shape(data=(2, 3, SIDE, SIDE))


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in GOLDEN])
def test_preset_gives_the_golden_graphs_output(name, configuration, shared):
    golden = mx.sym.load(str(shared / "legacy" / "symbols" / f"{name}-symbol.json"))
    symbol = build_symbol(configuration(name))
    parameters, auxiliary = map(on_device, initialise(symbol, (3, SIDE, SIDE), seed=1))
    random = np.random.default_rng(0)
    for values in (parameters, auxiliary):
        for name in values:
            if not name.endswith("_weight"):  # else ones, zeros and 0.25: a slope on the wrong map would not show
                values[name] += mx.nd.array(random.uniform(-0.1, 0.1, values[name].shape))
    images = random.integers(0, 256, (1, 3, SIDE, SIDE))
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
    symbol = build_symbol(configuration(net_name=family, **options))
    if options.get("net_output") == "Z":  # the legacy graph ends there; ours flattens it and calls it fc1_output
        symbol = symbol.cut("dropout0_output")
    assert hashlib.sha256(json.dumps(graph(symbol), sort_keys=True).encode()).hexdigest() == digest


@pytest.mark.parametrize("name", ["y1", "mnas025"])
def test_same_options_give_the_same_json(name, configuration):
    assert build_symbol(configuration(name)).to_json() == build_symbol(configuration(name)).to_json()


@pytest.mark.parametrize("name", ["r18", "vargfacenet"])
def test_workspace_reaches_every_convolution(name, configuration):
    nodes = build_symbol(configuration(name, workspace=99)).nodes
    convolutions = [node for node in nodes if node.op == "Convolution"]
    assert len(convolutions) > 18
    assert all(node.attrs["workspace"] == "99" for node in convolutions)


def test_the_configuration_names_the_options_of_families():
    taken = {name for family in FAMILIES.values() for name in inspect.signature(family.get_symbol).parameters}
    assert taken == {*NETWORK_KEYS, "emb_size", "bn_mom", "workspace", "image_shape"}


@pytest.mark.parametrize("name", [*QUICK, "d169"])
def test_momentum_reaches_every_batch_norm(name, configuration):
    nodes = build_symbol(configuration(name, bn_mom=0.8)).nodes
    assert {node.attrs["momentum"] for node in nodes if node.op == "BatchNorm"} == {"0.8"}


@pytest.mark.parametrize(("options", "emb_size"), [
    ({"net_name": "fmobilenet", "net_multiplier": 0.25, "net_output": "GDC"}, 256),
    ({"net_name": "fmobilenet", "net_output": "GNAP"}, 256),
    ({"net_name": "fmnasnet", "net_multiplier": 0.25, "net_output": "GNAP"}, 512),
    ({"net_name": "fdensenet", "num_layers": 169, "net_output": "GDC"}, 512),
    ({"net_name": "fdensenet", "num_layers": 121, "net_output": "GNAP"}, 512),
])
def test_outputs_that_the_legacy_graph_has_too_few_channels_for(options, emb_size, configuration):
    assert build_symbol(configuration(emb_size=emb_size, **options)).list_outputs() == ["fc1_output"]


@pytest.mark.parametrize("options", [{}, {"fp16": True, "memonger": True}], ids=["float32", "all passes"])
@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name in ("y1", "m05", "mnas025") else pytest.mark.slow) for name in GOLDEN])
def test_preset_trains(name, options, configuration):
    """Two steps in the form that training binds, on two images: every gradient is a number, and the second step sees
    the first."""
    config = configuration(name)
    if options:
        try:
            require_bfloat16("this test")
        except UserError as reason:
            pytest.skip(str(reason))
    symbol = build_symbol(config)
    backbone = ReplicatedBackbone(
        bound_form(symbol, computing_of(Config(**options)), (3, SIDE, SIDE)),
        *initialise(symbol, (3, SIDE, SIDE), 1, first_weights(config.net_name)), [mx.cpu()], 2,
        (3, SIDE, SIDE), SingleProcess(), updating=Updating(0.9, 5e-4))
    images = np.random.default_rng(0).integers(0, 256, (2, 3, SIDE, SIDE), dtype=np.uint8)
    features = []
    for _ in range(2):
        features.append(backbone.forward(images))
        backbone.backward(np.random.default_rng(1).standard_normal((2, config.emb_size)))
        backbone.step(1e-3)
    parameters, auxiliary = backbone.parameters()
    assert all(np.isfinite(array).all() for array in (*features, *parameters.values(), *auxiliary.values()))
    assert not np.array_equal(*features)


@pytest.mark.parametrize(("options", "message"), [
    ({"net_name": "fresnets"}, "net_name: found 'fresnets', expected one of .*'fresnet'.*nearest is 'fresnet'"),
    ({"num_layers": 51}, "num_layers: found 51, expected one of 18, 34, .*50"),
    ({"net_unit": 4}, "net_unit: found 4, expected one of 1, 2, 3"),
    ({"net_input": 3}, "net_input: found 3, expected one of 0, 1, 2"),
    ({"net_se": 2}, "net_se: found 2, expected one of 0, 1"),
    ({"net_act": "prelus"}, "net_act: found 'prelus', expected one of .*nearest is 'prelu'"),
    ({"net_output": "GAPP"}, "net_output: found 'GAPP', expected one of .*nearest is 'GAP'"),
    ({"net_output": "Z"}, "emb_size: found 512, but .* with net_output Z gives 25088 features for 112x112 images"),
    ({"net_output": "GDC", "net_input": 0}, "image_shape: found 112x112x3.*conv_6dw7_7_conv2d"),
    ({"net_name": "fmobilefacenet", "net_blocks": [1, 4, 6]}, "net_blocks: found .*four"),
    ({"net_name": "fmobilefacenet", "net_multiplier": 0}, "net_multiplier: found 0, expected"),
    ({"net_name": "fmobilenet", "net_multiplier": 0.03}, "net_multiplier: found 0.03, expected at least 0.03125"),
    ({"net_name": "fmnasnet", "net_multiplier": 0.05}, "net_multiplier: found 0.05, expected at least 0.0625"),
    ({"net_name": "vargfacenet", "net_multiplier": 0.2}, "net_multiplier: found 0.2, expected a multiple of 0.25"),
    ({"net_name": "vargfacenet", "net_se": 2}, "net_se: found 2, expected one of 0, 1"),
    ({"net_name": "vargfacenet", "net_output": "GDC"}, "image_shape: found 112x112x3.*conv_6dw7_7_conv2d"),
    ({"net_name": "vit", "net_multiplier": 0.13}, "net_multiplier: found 0.13, expected a multiple of 0.015625"),
    ({"net_name": "vit", "image_shape": (8, 112, 3)}, "image_shape: found 8x112, expected sides of 9 pixels at least"),
    ({"net_name": "vit", "net_mask_ratio": 1}, "net_mask_ratio: found 1, expected"),
    ({"net_name": "fdensenet"}, "num_layers: found 18, expected one of 121, 161, 169, 201"),
    ({"net_name": "fdensenet", "num_layers": 121, "densenet_dropout": 1}, "densenet_dropout: found 1, expected"),
])
def test_bad_options_are_named_with_the_valid_ones(options, message, configuration):
    with pytest.raises(UserError, match=message):
        build_symbol(configuration(**{"num_layers": 18, **options}))
