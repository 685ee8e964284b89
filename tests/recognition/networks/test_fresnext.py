# SPDX-License-Identifier: Apache-2.0
"""ResNeXt against the same network written in MXNet's own words from the unit of Partial FC's ``resnet.py``."""
from __future__ import annotations

import json
from typing import Any

import pytest

from recognition.config.options import Config
from recognition.config.presets import ROOT, open_config
from recognition.engines.mxnet.imports import mx
from recognition.networks import build_symbol
from recognition.networks.flops import count_flops

UNITS = {"rx50": (3, 4, 14, 3), "rx101": (3, 4, 23, 3)}


def layers(data: Any, name: str, channels: int, kernel: int, stride: int = 1, groups: int = 1, conv: str = "_conv",
           norm: str = "_bn") -> Any:
    body = mx.sym.Convolution(data, num_filter=channels, kernel=(kernel, kernel), stride=(stride, stride),
                              pad=(kernel // 2, kernel // 2), num_group=groups, no_bias=True, workspace=256,
                              name=name + conv)
    return mx.sym.BatchNorm(body, fix_gamma=False, eps=2e-5, momentum=0.9, name=name + norm)


def theirs(units: tuple[int, ...]) -> Any:
    def act(data: Any, name: str) -> Any:
        return mx.sym.LeakyReLU(data, act_type="prelu", name=name)

    body = (mx.sym.identity(mx.sym.Variable("data"), name="id") - 127.5) * 0.0078125
    body = act(layers(body, "", 64, 3, conv="conv0", norm="bn0"), "relu0")
    for stage, (count, width) in enumerate(zip(units, (256, 512, 1024, 2048)), 1):
        for unit in range(1, count + 1):
            name, stride, data = f"stage{stage}_unit{unit}", 2 if unit == 1 else 1, body
            body = mx.sym.BatchNorm(data, fix_gamma=False, eps=2e-5, momentum=0.9, name=name + "_bn1")
            body = act(layers(body, name, width // 2, 1, 1, 32, "_conv1", "_bn2"), name + "_relu1")
            body = act(layers(body, name, width // 2, 3, 1, 32, "_conv2", "_bn3"), name + "_relu2")
            body = layers(body, name, width, 1, stride, 1, "_conv3", "_bn4")
            body = body + (data if unit > 1 else layers(data, name, width, 1, 2, 1, "_conv1sc", "_sc"))
    body = act(layers(body, "", 512, 1, conv="convd", norm="bnd"), "relud")
    body = mx.sym.BatchNorm(body, fix_gamma=False, eps=2e-5, momentum=0.9, name="bn1")
    body = mx.sym.FullyConnected(body, num_hidden=512, name="pre_fc1")
    return mx.sym.BatchNorm(body, fix_gamma=True, eps=2e-5, momentum=0.9, name="fc1")


def said(graph: Any) -> list[Any]:
    """Operators, names of variables, inputs, and those attributes that are not what MXNet takes anyway."""
    usual = {"pad": "(0, 0)", "stride": "(1, 1)", "num_group": "1", "workspace": "256"}
    return [[node["op"], node["name"] if node["op"] == "null" else "", node["inputs"], {
        key: text for key, text in node.get("attrs", {}).items() if usual.get(key) != text and "__" not in key
        and node["op"] != "null"}] for node in graph["nodes"]]


@pytest.mark.parametrize("name", UNITS)
def test_the_graph_is_that_of_the_unit(name: str) -> None:
    graph = build_symbol(Config(**open_config(str(ROOT / "sample_config.py")).presets("network")[name]))
    assert said(json.loads(graph.to_json())) == said(json.loads(theirs(UNITS[name]).tojson()))
    assert count_flops(graph).unknown == ()
