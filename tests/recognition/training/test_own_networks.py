# SPDX-License-Identifier: Apache-2.0
"""Networks of the user's own, from config.py to a checkpoint that Gluon loads."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Callable

import numpy as np
import pytest

from recognition.data.verification_set import load_bin
from recognition.engines.mxnet.imports import mx
from recognition.evaluation.verification import verify

SYMBOL = """
import mxnet as mx
from config import config

def get_symbol():
    data = (mx.sym.Variable('data') - 127.5) * 0.0078125
    body = mx.sym.Convolution(data, num_filter=config.filters, kernel=(7, 7), stride=(7, 7), no_bias=True, name='patch')
    body = mx.sym.LeakyReLU(mx.sym.BatchNorm(body, fix_gamma=False, name='norm'), act_type=config.net_act, name='act')
    return mx.sym.FullyConnected(body, num_hidden=config.emb_size, name='embedding')
"""
BLOCK = """
from mxnet.gluon import nn

class Patches(nn.HybridBlock):
    def __init__(self, emb_size):
        super().__init__()
        with self.name_scope():
            self.body = nn.HybridSequential()
            self.body.add(nn.Conv2D(8, 7, 7), nn.BatchNorm(), nn.PReLU(), nn.Dense(emb_size), nn.BatchNorm())

    def hybrid_forward(self, F, x):
        return self.body((x - 127.5) / 128)

def get_symbol(emb_size, filters):
    assert filters == 8
    return Patches(emb_size)
"""
RUN = ["--per-batch-size", "4", "--max-steps", "4", "--verbose", "4", "--ckpt", "2", "--state-every", "0"]


@pytest.mark.parametrize("text", [SYMBOL, BLOCK], ids=["symbol", "block"])
def test_own_network_trains_and_gluon_loads_it(text: str, train: Callable[..., tuple[int, str, str]], tiny_set: Path,
                                               tmp_path: Path) -> None:
    """The embeddings that Gluon gives have the mean norm and the accuracy that the run printed (six digits)."""
    (tmp_path / "my_net.py").write_text(text)
    with open(tmp_path / "config.py", "a") as config:
        config.write("network.mine = edict(net_name='my_net', emb_size=16, net_act='elu', filters=8)\n")
    status, out, err = train("own", "--network", "mine", *RUN)
    assert status == 0, err
    assert out.startswith("config.py: keys not ours, left to your own network: filters\n")
    prefix = tmp_path / "own" / "mine-arcface-tiny" / "model"
    printed = re.search(r"\[tiny\]\[4\]XNorm: ([\d.]+)\n\[tiny\]\[4\]Accuracy-Flip: ([\d.]+)\+", out)
    assert printed is not None, out

    network = mx.gluon.SymbolBlock.imports(f"{prefix}-symbol.json", ["data"], f"{prefix}-0001.params")
    result = verify(lambda images: network(mx.nd.array(images)).asnumpy(), load_bin(tiny_set / "tiny.bin"), 10)
    assert result.xnorm == pytest.approx(float(printed[1]), abs=1e-4)
    assert result.mean == pytest.approx(float(printed[2]), abs=1e-5)

    symbol, parameters, states = mx.model.load_checkpoint(str(prefix), 1)
    assert symbol.list_outputs() == ["fc1_output"]
    images = mx.nd.array(np.random.default_rng(0).integers(0, 256, (2, 3, 112, 112)))
    executor = symbol.bind(mx.cpu(), {"data": images, **parameters}, aux_states=states, grad_req="null")
    # The same operators; float32 sums may run in another order.
    np.testing.assert_allclose(network(images).asnumpy(), executor.forward()[0].asnumpy(), rtol=1e-5, atol=1e-5)
