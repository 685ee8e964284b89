# SPDX-License-Identifier: Apache-2.0
"""Dropout before the embedding and stochastic depth: where they are put, and what is computed then."""
from __future__ import annotations

from typing import Any, Callable

import numpy as np
import pytest

from recognition.config.options import Config, refuse_unsupported
from recognition.errors import UserError
from recognition.networks import build_symbol, sym
from recognition.networks.dropped import with_drop_path, with_dropout
from recognition.networks.graph import Graph
from recognition.networks.initialise import initialise
from recognition.processes.communicator import SingleProcess

SHAPE, DIM, BATCH, SHARE = (3, 8, 8), 6, 64, 0.4


def residual(scales: tuple[float, float]) -> Graph:
    """Two residual blocks without batch norm, whose branches are multiplied by ``scales``."""
    x = sym.Convolution((sym.Variable("data") - 127.5) / 128, num_filter=5, kernel=(3, 3), name="conv0")
    for number, scale in enumerate(scales):
        branch = sym.Convolution(x, num_filter=5, kernel=(3, 3), pad=(1, 1), name=f"conv{number + 1}")
        x = x + sym.LeakyReLU(branch, act_type="prelu", name=f"relu{number}") * scale
    return sym.FullyConnected(x, num_hidden=DIM, name="fc1").graph()


def dropouts(graph: Graph) -> list[tuple[str, float, str]]:
    """Name, share and input of each."""
    return [(node.name, float(node.attrs["p"]), graph.nodes[node.inputs[0].node].name) for node in graph.nodes
            if node.op == "Dropout"]


def test_an_image_has_a_branch_and_the_more_of_it_or_none(replicated: Callable[..., Any]) -> None:
    """The second of two branches is left out for about 0.4 of the images (binomial, 64 draws: within 4 deviations), the
    first for none. The same in the gradient: that by the features goes through the branches that were there."""
    graph = residual((1.0, 1.0))
    start = initialise(graph, SHAPE, 1)

    def made(network: Graph, batch: int = BATCH) -> Any:
        return replicated(network, *start, 1, batch, SHAPE, SingleProcess(), mu=0.0, wd=0.0)

    images = np.random.RandomState(0).randint(0, 256, (BATCH, *SHAPE)).astype(np.uint8)
    dropped = made(with_drop_path(graph, SHARE))
    features = dropped.forward(images)
    with_it, without = (made(residual((1.0, scale))) for scale in (1 / (1 - SHARE), 0.0))
    kinds = [each.forward(images) for each in (with_it, without)]
    distances = np.stack([np.abs(features - kind).max(axis=1) for kind in kinds])
    assert (distances.min(axis=0) < 1e-5).all() and (distances.max(axis=0) > 1e-3).all()
    missed = distances.argmin(axis=0) == 1
    assert abs(missed.mean() - SHARE) < 4 * np.sqrt(SHARE * (1 - SHARE) / BATCH)
    dropped.backward(np.ones_like(features))
    for each, rows in ((with_it, ~missed), (without, missed)):
        each.backward(np.repeat(rows[:, None], DIM, axis=1).astype(np.float32))
    found, *parts = (each.to_host(each.replicas[0].gradients) for each in (dropped, with_it, without))
    for name in found:
        wanted = parts[0][name] + parts[1][name]
        np.testing.assert_allclose(found[name], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max() + 1e-6, err_msg=name)
    assert np.array_equal(dropped.embed(images), made(graph).embed(images))


@pytest.mark.parametrize(("options", "number", "last"), [
    ({"num_layers": 18}, 8, "stage4_unit2_bn3"),
    ({"num_layers": 18, "net_unit": 1, "net_se": 1, "net_output": "FC"}, 8, "broadcast_mul7"),
    ({"net_name": "fmobilefacenet", "net_output": "GDC"}, 12, "res_5_block1_conv_proj_batchnorm"),
], ids=["IResNet", "SE", "MobileFaceNet"])
def test_branches_are_found_in_our_networks(options: dict[str, Any], number: int, last: str) -> None:
    graph = build_symbol(Config(**options))
    found = with_drop_path(graph, 0.2)
    paths = [entry for entry in dropouts(found) if entry[0].endswith("_path")]
    assert len(paths) == number - 1 and paths[-1][1:] == (0.2, last)
    assert [share for _, share, _ in paths] == pytest.approx([0.2 * n / (number - 1) for n in range(1, number)])
    assert found.list_arguments() == graph.list_arguments()
    assert found.list_auxiliary_states() == graph.list_auxiliary_states()


def test_dropout_takes_the_place_of_the_networks_own_or_is_put_before_its_last_layer() -> None:
    own, none = (build_symbol(Config(num_layers=18, net_output=output)) for output in ("E", "FC"))
    dense = build_symbol(Config(net_name="fdensenet", num_layers=121, densenet_dropout=0.3))
    assert dropouts(own) == [("dropout0", 0.4, "bn1")] and dropouts(none) == []
    assert dropouts(with_dropout(own, 0.1)) == [("dropout0", 0.1, "bn1")]
    assert dropouts(with_dropout(own, 0.0)) == [] == dropouts(with_dropout(none, 0.0))
    assert dropouts(with_dropout(none, 0.1)) == [("pre_fc1_dropout", 0.1, "bn1")]
    shares = [share for _, share, _ in dropouts(with_dropout(dense, 0.1))]
    assert shares == [0.3] * (len(shares) - 1) + [0.1]  # those in its blocks stay


def test_networks_without_a_place_for_it_are_refused() -> None:
    mobile = build_symbol(Config(net_name="fmobilenet", net_output="GDC"))
    with pytest.raises(UserError, match=r"^drop_path: found a network without residual sums, expected one"):
        with_drop_path(mobile, 0.1)
    with pytest.raises(UserError, match=r"^dropout: found a network without a fully connected layer behind"):
        with_dropout(sym.Flatten(sym.Variable("data")).graph(), 0.1)
    with pytest.raises(UserError, match=r"^drop_path: found 0.1, but a transformer misses blocks by net_drop_path"):
        refuse_unsupported(Config(net_name="vit", drop_path=0.1))
