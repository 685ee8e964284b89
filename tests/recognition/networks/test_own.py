# SPDX-License-Identifier: Apache-2.0
"""Networks that users bring as files: legacy modules, functions with options, Gluon blocks."""
from __future__ import annotations

import json
import sys
from functools import partial
from types import ModuleType

import numpy as np
import pytest

from recognition import networks
from recognition.engines.choose import choose_engine
from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.passes.prelu import fast_prelu
from recognition.engines.mxnet.symbols import to_symbol
from recognition.errors import UserError
from recognition.networks.flops import count_flops
from recognition.networks.initialise import initialise
from recognition.networks.shapes import infer_shapes

build_symbol = partial(networks.build_symbol, own_network=choose_engine().own_network)

# As the public recipes have it: options from the global config, helpers of the same folder, other names of layers.
LEGACY = """
import mxnet as mx
import my_utils
from config import config, default

def get_symbol():
    data = (mx.sym.Variable('data') - 127.5) * 0.0078125
    body = my_utils.conv(data, 'first', 4)
    return mx.sym.FullyConnected(body, num_hidden=config.emb_size, name='embedding')
"""
UTILS = """
import mxnet as mx
from config import config
bn_mom = config.bn_mom

def conv(data, name, channels):
    body = mx.sym.Convolution(data, num_filter=channels, kernel=(7, 7), stride=(7, 7), no_bias=True, name=name)
    body = mx.sym.BatchNorm(body, momentum=bn_mom, name=name + '_bn')
    return mx.sym.LeakyReLU(body, act_type=config.net_act, name=name + '_act')
"""
OPTIONS = """
import mxnet as mx

def get_symbol(emb_size, *, net_multiplier=1.0, depth=2, **others):
    assert not others
    data = mx.sym.LeakyReLU(mx.sym.Variable('data') / 255)
    for _ in range(depth):
        data = mx.sym.Convolution(data, num_filter=int(8 * net_multiplier), kernel=(3, 3), stride=(4, 4))
    return mx.sym.FullyConnected(data, num_hidden=emb_size, name='fc1')
"""
BLOCK = """
from mxnet.gluon import nn

class Small(nn.HybridBlock):
    def __init__(self, emb_size):
        super().__init__()
        with self.name_scope():
            self.body = nn.HybridSequential()
            self.body.add(nn.Conv2D(4, 7, 7, use_bias=False, weight_initializer='xavier'), nn.BatchNorm(), nn.PReLU(),
                          nn.Dense(emb_size))

    def hybrid_forward(self, F, x):
        return self.body((x - 127.5) / 128)

def get_symbol(emb_size):
    return Small(emb_size)
"""


@pytest.fixture
def own(tmp_path, configuration):
    """``own(text, net_name=..., ...)``: the configuration of a network in the file mine.py beside a config.py."""

    def write(text, file="mine.py", net_name="mine", **options):
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        (path.parent / "my_utils.py").write_text(UTILS)
        return configuration(net_name=net_name, config_file=str(tmp_path / "config.py"), **{"emb_size": 8, **options})

    return write


@pytest.mark.parametrize("text", [LEGACY, OPTIONS, BLOCK], ids=["legacy", "options", "block"])
def test_own_network_is_like_ours(text, own):
    """Named output, shapes, first values, the same JSON each time, and the fast PReLU on the same parameters: two
    roundings of features of the order of 1 are within 1e-5."""
    config = own(text)
    symbol = build_symbol(config)
    assert symbol.list_outputs() == ["fc1_output"]
    assert infer_shapes(symbol, (3, 112, 112), batch=2).output == (2, 8)
    assert build_symbol(config).to_json() == symbol.to_json()
    values, states = initialise(symbol, (3, 112, 112), 0)
    values["data"] = np.random.default_rng(0).integers(0, 256, (2, 3, 112, 112))
    features = []
    for network in (symbol, fast_prelu(symbol)):
        shapes = {name: array.shape for name, array in values.items()}
        executor = to_symbol(network).simple_bind(mx.cpu(), grad_req="null", **shapes)
        executor.copy_params_from({name: mx.nd.array(value) for name, value in values.items()},
                                  {name: mx.nd.array(value) for name, value in states.items()})
        features.append(executor.forward(is_train=False)[0].asnumpy())
    assert features[0].std() > 0
    np.testing.assert_allclose(*features, rtol=1e-5, atol=1e-5)


def test_operators_that_are_not_in_the_table_are_asked_of_mxnet(own):
    """Several outputs, inputs, an output that is hidden, states: shapes and first values as with any other."""
    text = OPTIONS.replace("return", """data = mx.sym.where(data > 0, data, mx.sym.arcsinh(data))
    data = mx.sym.topk(data, axis=1, k=2, ret_typ='both')[0]
    data = mx.sym.contrib.BilinearResize2D(data, height=5, width=4)
    return""")
    graph = build_symbol(own(text))
    assert infer_shapes(graph, (3, 112, 112)).arguments["fc1_weight"] == (8, 40)
    assert count_flops(graph).unknown == ("_contrib_BilinearResize2D", "arcsinh", "topk", "where")
    assert json.loads(to_symbol(graph).tojson()) == json.loads(graph.to_json())
    with pytest.raises(UserError, match=r"image_shape: found 8x8x3, expected images .*; convolution1 says: kernel"):
        infer_shapes(graph, (3, 8, 8))


@pytest.mark.parametrize(("file", "net_name"), [
    ("symbol/mine.py", "mine"), ("nets/mine.py", "nets/mine.py"), ("fresnet.py", "./fresnet.py")])
def test_where_it_may_lie(file, net_name, own):
    assert "embedding_weight" in build_symbol(own(LEGACY, file, net_name)).list_arguments()


def test_a_family_of_ours_goes_before_a_file(own):
    assert "embedding_weight" not in build_symbol(own(LEGACY, "fmobilefacenet.py", "fmobilefacenet")).list_arguments()


def test_options_are_those_of_this_run(own):
    legacy = build_symbol(own(LEGACY, emb_size=5, net_act="leaky", bn_mom=0.7))
    assert infer_shapes(legacy, (3, 112, 112)).output == (1, 5)
    assert "first_act_gamma" not in legacy.list_arguments()
    assert legacy.attributes()["first_bn"]["momentum"] == "0.7"  # my_utils read it when it was imported
    assert build_symbol(own(LEGACY, bn_mom=0.6)).attributes()["first_bn"]["momentum"] == "0.6"
    wide = build_symbol(own(OPTIONS, net_multiplier=2.0))
    assert wide.attributes()["convolution1"]["num_filter"] == "16"


def test_keys_and_values_of_the_users_own_reach_it(own):
    """As config.py has them: keys that are not ours, and values of ours that no network of ours knows."""
    text = LEGACY.replace("'first', 4", "'first', config.widths[0]")
    legacy = build_symbol(own(text, net_act="gelu", own_keys=(("widths", [6, 7]),)))
    assert legacy.attributes()["first"]["num_filter"] == "6" and legacy.attributes()["first_act"]["act_type"] == "gelu"
    shallow = build_symbol(own(OPTIONS, own_keys=(("depth", 1), ("width", 3))))
    weights = [name for name in shallow.list_arguments() if name.endswith("weight")]
    assert weights == ["convolution0_weight", "fc1_weight"]


def test_no_trace_is_left(own, monkeypatch):
    theirs = ModuleType("config")
    monkeypatch.setitem(sys.modules, "config", theirs)
    path = list(sys.path)
    build_symbol(own(LEGACY))
    with pytest.raises(UserError):
        build_symbol(own("import my_utils\n1 / 0"))
    assert sys.modules["config"] is theirs
    assert "my_utils" not in sys.modules
    assert sys.path == path


@pytest.mark.parametrize(("text", "message"), [
    ("x = 1", r"net_name mine: .*mine.py: found no function get_symbol$"),
    ("def get_module():\n    pass", r"no function get_symbol; get_module, which it has, is for --engine torch$"),
    ("def get_symbol():\n    return 1", "get_symbol gave int, expected a Symbol or a HybridBlock"),
    ("def get_symbol(emb_size, width):\n    pass", "get_symbol takes 'width', expected the name of an option"),
    ("def get_symbol():\n    return 1 / 0", r"mine.py, line 2: ZeroDivisionError: division by zero$"),
    ("import no_such_module", r"mine.py, line 1: ModuleNotFoundError: No module named 'no_such_module'$"),
    (LEGACY.replace("'data'", "'image'"), "found no input named 'data', .*among image, first_weight, "),
    (LEGACY.replace("config.emb_size", "9"), "emb_size: found 8, but net_name mine .* gives 9 features for 112x112"),
    (LEGACY.replace("name='embedding'", "size=3"), r"mine.py, line 9: .*MXNetError: .*Cannot find argument 'size'"),
    (LEGACY.replace("return", "fc1 =").replace("'embedding'", "'fc1'") + "    return mx.sym.L2Normalization(fc1)",
     "found the outputs l2normalization0_output, expected one, the embedding, and no other layer named fc1"),
    (BLOCK.replace("return self.body((x - 127.5) / 128)", "return [x, self.body(x)]"), "gave list, expected"),
    (BLOCK.replace("nn.PReLU(),", "").replace("nn.Dense(emb_size)", "nn.Conv2D(8, 1)"),
     "output of shape .N, 8, 16, 16., expected .N, em"),
])
def test_what_is_no_network_is_said_in_a_line(text, message, own):
    with pytest.raises(UserError, match=message) as error:
        build_symbol(own(text))
    assert len(str(error.value).splitlines()) == 1


def test_a_name_that_is_nothing(own):
    with pytest.raises(UserError, match=r"net_name: found 'fmobilnet', expected one of 'fresnet', .*, or a Python file "
                                        r"beside config.py or in symbol there; the nearest is 'fmobilenet'"):
        build_symbol(own(LEGACY, net_name="fmobilnet"))
