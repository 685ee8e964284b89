# SPDX-License-Identifier: Apache-2.0
"""The stand-in for MXNet: files in the words of ``mx.sym`` give the JSON that they give with MXNet, byte for byte."""
from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")

from recognition.engines.torch.modules.own_network import own_network
from recognition.errors import UserError
from recognition.networks import sym
from recognition.networks.initialise import initialise
from recognition.networks.operators import OPERATORS

needs_mxnet = pytest.mark.skipif(importlib.util.find_spec("mxnet") is None, reason="needs MXNet")
FILES = {
    "methods": """
import mxnet as mx
from mxnet.symbol import Variable

def get_symbol(emb_size):
    x = Variable('data').astype('float32')
    x = mx.sym.Convolution(x, num_filter=8, kernel=(3, 3), stride=(4, 4), name='conv', bias=None)
    x = x.reshape((0, 2, 4, -1)).transpose((0, 2, 1, 3)).reshape(shape=(0, 8, 28, 28))
    x = x.clip(-1, 6).relu() + x.sigmoid() * x.mean(1, True).tile((1, 8, 1, 1))
    x = x.slice_axis(axis=2, begin=0, end=14).swapaxes(2, 3).pad(mode='constant', pad_width=(0, 0, 0, 0, 1, 1, 1, 1))
    first, second = x.split(num_outputs=2, axis=1)
    x = mx.sym.concat(first, second.flip(axis=3), dim=1).expand_dims(1).squeeze(axis=1)
    print(x.infer_shape(data=(1, 3, 112, 112))[1], len(first), x.name, x.list_outputs())
    return mx.sym.FullyConnected(x.sum(axis=(2, 3)).flatten(), num_hidden=emb_size)
""",
    "arithmetic": """
import mxnet as mx

def get_symbol(emb_size):
    x = mx.symbol.Variable('data')
    x = (1 - x / 255.0) * 2 ** (-x) + 3 / (x + 1) - abs(x) ** 2 + x % 7 + x ** x + (x > 3) * x - (x < 5)
    x = mx.sym.Pooling(x, (2, 2), 'avg', stride=(4, 4))
    return mx.sym.FullyConnected(data=x, num_hidden=emb_size, name='fc1')
""",
    "attributes": """
import mxnet as mx
from mxnet import init

def get_symbol(emb_size):
    data = mx.sym.Variable(name='data')
    w = mx.sym.var('w', shape=(4, 3, 7, 7), lr_mult=2.0, wd_mult=0, dtype='float32', init=mx.init.Xavier(magnitude=2),
                   attr={'__mine__': 'yes'}, __also__='this')
    x = mx.sym.Convolution(data, w, num_filter=4, kernel=(7, 7), stride=(7, 7), no_bias=True, attr={'mirror_stage': 1})
    x = mx.sym.LeakyReLU(x, mx.sym.Variable('slope', init=init.Constant(0.1)), act_type='prelu', attr=None, name=None)
    x._set_attr(mirror_stage='True')
    assert x.attr('mirror_stage') == 'True' and x.list_attr()['act_type'] == 'prelu'
    x = mx.contrib.sym.AdaptiveAvgPooling2D(x, output_size=(4, 4)) + mx.sym.contrib.AdaptiveAvgPooling2D(
        x, output_size=4, name='again')
    bias = mx.sym.Variable('b', init=mx.init.MSRAPrelu('in', 0.1))
    return mx.sym.FullyConnected(x, num_hidden=emb_size, weight=mx.sym.Variable('v', init=mx.initializer.Normal(0.02)),
                                 bias=bias if False else mx.sym.Variable('c', init='zeros'))
""",
}


@pytest.fixture
def own(tmp_path, configuration) -> Callable[..., Any]:
    """``own(text, ...)``: the configuration of a network in a file, and the file."""

    def write(text: str, **options: Any) -> Any:
        (tmp_path / "mine.py").write_text(text)
        return configuration(net_name="mine", emb_size=8, memonger=True, **options), tmp_path / "mine.py"

    return write


@needs_mxnet
@pytest.mark.parametrize("name", FILES)
def test_a_file_gives_the_graph_that_it_gives_with_mxnet(name: str, own: Callable[..., Any], capfd: Any) -> None:
    """What it prints is the same, too; first values are those that ``init`` names."""
    from recognition.engines.mxnet.own_network import own_symbol

    found, said = [], []
    for engine in (own_symbol, own_network):
        found.append(engine(*own(FILES[name])))
        said.append(capfd.readouterr().out)
    assert found[1].to_json() == found[0].to_json()
    assert said[1] == said[0]
    initialise(found[1], (3, 112, 112), 0)


@needs_mxnet
def test_attributes_stand_in_the_order_of_mxnet() -> None:
    """Apart from operators that take any number of inputs, and inputs that our table leaves out."""
    from recognition.engines.mxnet.imports import mx

    odd = {"Custom", "softmax", "SoftmaxOutput", "Softmax", "BatchNorm_v1"}
    checked = 0
    for name, operator in OPERATORS.items():
        theirs = getattr(mx.sym, name, None)
        if theirs is None or operator.variadic or name in odd:
            continue
        words = [word for word in inspect.signature(theirs).parameters if word not in ("name", "attr", "out", "kwargs")]
        ours = [*operator.inputs, *operator.states, *operator.parameters]
        shared = min(len(words), len(ours))
        assert ours[:shared] == words[:shared], name
        checked += 1
    assert checked > 80


@needs_mxnet
def test_the_methods_are_those_of_mxnets_symbols() -> None:
    from recognition.engines.mxnet.imports import mx

    assert {name for name in OPERATORS if not name.startswith("_") and hasattr(mx.sym.Symbol, name)} == sym.METHODS
    assert all(hasattr(mx.sym.Symbol, name) for name in sym.LISTS)


def test_a_file_is_not_told_of_memonger(own: Callable[..., Any]) -> None:
    """Public files then look for a plan of their own by binding the network with MXNet; the engine does it itself."""
    text = FILES["arithmetic"].replace("get_symbol(emb_size)", "get_symbol(emb_size, memonger)").replace(
        "    x = mx.symbol", "    assert not memonger\n    x = mx.symbol")
    assert own_network(*own(text)).list_outputs() == ["fc1_output"]


def test_parts_that_are_not_there_are_imported_and_said_where_they_are_used(own: Callable[..., Any]) -> None:
    """Public files import some that they do not need."""
    imports = ("import mxnet.ndarray as nd\nimport mxnet.gluon as gluon\nimport mxnet.autograd\n"
               "import mxnet.gluon.nn as layers\nfrom mxnet.gluon import nn\nfrom mxnet import nd as arrays\n")
    assert own_network(*own(imports + FILES["arithmetic"])).list_outputs() == ["fc1_output"]
    used = imports + "class Net(nn.HybridBlock):\n    pass\n"
    with pytest.raises(UserError, match=r"mine.py, line 7: AttributeError: .* mxnet.gluon.nn has no HybridBlock \("):
        own_network(*own(used))


@pytest.mark.parametrize(("line", "message"), [
    ("mx.sym.topk(data)", "with the PyTorch engine mx.sym has no topk"),
    ("mx.sym.contrib.BilinearResize2D(data)", "with the PyTorch engine mx.sym.contrib has no BilinearResize2D"),
    ("mx.init.Orthogonal()", "with the PyTorch engine mx.init has no Orthogonal, but constant, zero"),
    ("mx.nd.zeros(3)", "with the PyTorch engine mxnet has sym and init alone, no nd"),
    ("data.topk(k=2)", "a symbol has no topk here, but abs, argmax"),
    ("data[1]", "data: found the output 1, expected 0 to 0"),
    ("mx.sym.Variable('x', wide=3)", "Variable has the attribute 'wide', expected attr, shape, "),
    ("mx.sym.Activation(data, act_type='relu')._set_attr(mine='3')", "Activation has the attribute 'mine', expected"),
])
def test_what_the_stand_in_lacks_is_said_by_name(line: str, message: str, own: Callable[..., Any]) -> None:
    text = f"import mxnet as mx\n\ndef get_symbol():\n    data = mx.sym.Variable('data')\n    return {line}\n"
    with pytest.raises(UserError, match=r"mine.py, line 5: .*Error: ") as error:
        own_network(*own(text))
    assert message in str(error.value) and "\n" not in str(error.value)
