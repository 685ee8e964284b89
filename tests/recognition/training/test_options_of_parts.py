# SPDX-License-Identifier: Apache-2.0
"""Options from the Config to the parts of a run: the graph, the head, the steps of the optimiser. With each engine, and
the head with each engine's own class centres."""
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import numpy as np
import pytest

from recognition.config.devices import require_bfloat16
from recognition.config.options import Config
from recognition.engines.choose import choose_engine
from recognition.engines.configured import build_network, computing_of
from recognition.engines.mxnet.passes.choose import form_to_train
from recognition.engines.numbers import make_loss_scale
from recognition.errors import UserError
from recognition.head.sampling import ClassSampler
from recognition.head.sharded import ShardedHead
from recognition.head.triplet_head import TripletHead
from recognition.networks import build_symbol, sym
from recognition.processes.communicator import SingleProcess
from recognition.training.parts import make_backbone, make_head, margin_of

CLASSES, DIM = 11, 8
TRIPLET = {"loss_name": "triplet", "per_batch_size": 6}
GPU = (("gpu", 0),)
Head = Callable[[Config], "ShardedHead | TripletHead"]


@pytest.fixture(params=["host", "mxnet", "torch"])
def head(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Head:
    """``head(config)``: with class centres as on CPUs, and with each engine's own, which it has on GPUs, on the CPU."""

    def own_shard(engine: Any, *place: Any, sampled: bool, on_host: bool, numbers: str, **options: Any) -> Any:
        return engine.shard(*place, on_host=on_host, **options)

    if request.param == "host":
        return lambda config: make_head(config, CLASSES, choose_engine(), SingleProcess())
    pytest.importorskip(request.param)
    monkeypatch.setattr("recognition.training.parts.make_shard", own_shard)
    return lambda config: make_head(config, CLASSES, choose_engine(request.param), SingleProcess())


def test_seed_of_the_network(engine: str, make: Callable[..., Config]) -> None:
    """First values: the same for the same seed, others for another."""
    one, again, other = (backbone(make(seed=seed)).parameters()[0]["conv0_weight"] for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_seed_of_the_centres(head: Head, make: Callable[..., Config]) -> None:
    """First values: the same for the same seed, others for another."""
    one, again, other = (head(make(seed=seed)).shards[0].state().centres for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


@pytest.mark.parametrize(("key", "value", "others", "honoured"), [
    ("net_name", "fmobilenet", {"net_output": "GDC", "num_layers": 0}, lambda n: "conv_14_conv2d" in n),
    ("num_layers", 34, {}, lambda n: "stage4_unit3_conv1" in n and "stage4_unit4_conv1" not in n),
    ("emb_size", 64, {}, lambda n: n["pre_fc1"]["num_hidden"] == "64"),
    ("net_se", 1, {}, lambda n: "stage1_unit1_se_conv1" in n),
    ("net_act", "relu", {}, lambda n: not any(a.get("act_type") == "prelu" for a in n.values())),
    ("net_unit", 1, {}, lambda n: "stage1_unit1_bn3" not in n),
    ("net_input", 0, {}, lambda n: n["conv0"]["kernel"] == "(7, 7)"),
    ("net_output", "FC", {}, lambda n: not any(a.get("op") == "Dropout" for a in n.values())),
    ("net_blocks", [1, 2, 3, 2], {"net_name": "fmobilefacenet", "net_output": "GDC", "emb_size": 128},
     lambda n: "res_3_block1_conv_sep_conv2d" in n and "res_3_block2_conv_sep_conv2d" not in n),
    ("net_multiplier", 0.5, {"net_name": "fmobilefacenet", "net_output": "GDC", "emb_size": 128},
     lambda n: n["conv_1_conv2d"]["num_filter"] == "32"),
    ("densenet_dropout", 0.3, {"net_name": "fdensenet", "num_layers": 121},
     lambda n: any(a.get("op") == "Dropout" and a["p"] == "0.3" for a in n.values())),
    ("net_drop_path", 0.3, {"net_name": "vit", "num_layers": 2},
     lambda n: n.get("block1_path1", {}).get("p") == n.get("block1_path2", {}).get("p") == "0.3"),
    ("net_mask_ratio", 0.5, {"net_name": "vit", "num_layers": 2}, lambda n: "mask_token_weight" in n),
])
def test_options_of_networks(key: str, value: Any, others: dict[str, Any],
                             honoured: Callable[[dict[str, Any]], bool]) -> None:
    """By the names and attributes of the graph's nodes; that it is the legacy graph is what the symbols' tests show."""
    def nodes(**options: Any) -> dict[str, Any]:
        graph = build_symbol(Config(**{"num_layers": 18, **others, **options}))
        return {node.name: {"op": node.op, **node.attrs} for node in graph.nodes}

    assert honoured(nodes(**{key: value}))
    assert not honoured(nodes(**({"emb_size": 512, "net_output": "E", "num_layers": 18} if key == "net_name" else {})))


def test_fp16() -> None:
    """Low precision by the key alone: float16 with a scale of 1024 on a GPU, bfloat16 on a CPU that has it."""
    symbol = sym.Convolution(sym.Variable("data"), num_filter=8, kernel=(3, 3), name="conv0")
    symbol = sym.Convolution(symbol, num_filter=4, kernel=(3, 3), name="conv1")
    symbol = sym.FullyConnected(symbol, num_hidden=4, name="fc1").graph()
    scale = make_loss_scale(computing_of(Config(fp16=True, devices=GPU)))
    assert scale is not None and scale.value == 1024
    other = make_loss_scale(computing_of(Config(fp16=True, fp16_scale=64, devices=GPU)))
    assert other is not None and other.value == 64
    assert make_loss_scale(computing_of(Config(devices=GPU))) is None
    assert make_loss_scale(computing_of(Config(fp16=True))) is None

    def dtypes(**options: Any) -> set[Any]:
        prepared = form_to_train(symbol, computing_of(Config(**options)), (3, 8, 8))
        return {attrs.get("dtype") for attrs in prepared.attributes().values()}

    assert dtypes(fp16=True, devices=GPU) == {"float16", "float32", None} and dtypes(devices=GPU) == {None}
    try:
        require_bfloat16("this test")
    except UserError:
        with pytest.raises(UserError, match=r"this processor has no bfloat16 .*, and float16 needs a GPU"):
            dtypes(fp16=True)
    else:
        assert dtypes(fp16=True) == {"bfloat16", "float32", None}


def test_fp16_of_torch(make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the backbone of a GPU is made with; on a CPU, features of bfloat16's precision."""
    pytest.importorskip("torch")
    with monkeypatch.context() as patch:
        patch.setattr("recognition.engines.torch.engine.ReplicatedBackbone",
                      lambda *place, **options: SimpleNamespace(startup_line="", **options))
        patch.setattr("recognition.engines.torch.triton.batch_norm.choice.why_not", lambda device: "there is no card")
        for options, low, value in (({"fp16": True}, "torch.float16", 1024), ({"fp16_scale": 64}, "torch.float16", 64),
                                    ({}, "None", None)):
            given = backbone(make(engine="torch", devices=GPU, **options))
            scale = given.loss_scale
            assert (str(given.low), scale and scale.value) == (low, value)
    images = np.random.RandomState(0).randint(0, 256, (12, 3, 112, 112)).astype(np.uint8)
    exact = backbone(make(engine="torch")).forward(images)
    monkeypatch.setattr("recognition.engines.numbers.require_bfloat16", lambda what: None)  # slow without it, but right
    made = backbone(make(engine="torch", fp16=True))
    error = np.abs(made.forward(images) - exact).max() / np.abs(exact).max()
    assert made.loss_scale is None and 2**-14 < error < 2**-6  # 8 bits in each of two layers


def test_memonger(engine: str, make: Callable[..., Config]) -> None:
    """A step with dropout ends with the same bits."""
    tiny = {"net_name": "fmobilefacenet", "net_output": "E", "net_multiplier": 0.25, "net_blocks": [1, 1, 1, 1],
            "per_batch_size": 4}
    images = np.random.RandomState(0).randint(0, 256, (4, 3, 112, 112)).astype(np.uint8)

    def after_a_step(memonger: bool) -> dict[str, np.ndarray]:
        made = backbone(make(memonger=memonger, **tiny))
        features = made.forward(images)
        made.backward(features)
        made.step(0.1)
        parameters, auxiliary = made.parameters()
        return {**parameters, **auxiliary, "features": features}

    plain, again = after_a_step(False), after_a_step(True)
    assert [name for name in plain if plain[name].tobytes() != again[name].tobytes()] == []


def test_loss_name(head: Head, make: Callable[..., Config]) -> None:
    """Plain inner products, a margin on unit vectors, triplets on squared distances and on angles."""
    x = np.random.RandomState(0).rand(6, DIM).astype(np.float32) * 3
    labels = np.arange(6)
    losses = {name: head(make(loss_name=name, per_batch_size=6)).forward_backward(x, labels).loss
              for name in ("softmax", "margin_softmax", "triplet", "atriplet")}
    made = head(make(loss_name="softmax"))
    centres = made.shards[0].state().centres.astype(np.float64)
    logits = x @ centres.T
    assert losses["softmax"] == pytest.approx(np.mean(np.log(np.exp(logits).sum(1)) - logits[labels, labels]), rel=1e-5)
    a, p, n = (x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True)).reshape(3, 2, DIM)
    squared = np.square(a - p).sum(1) - np.square(a - n).sum(1)
    angles = np.arccos((a * p).sum(1)) - np.arccos((a * n).sum(1))
    assert losses["triplet"] == pytest.approx(np.maximum(squared + 0.3, 0).mean(), rel=1e-5)
    assert losses["atriplet"] == pytest.approx(np.maximum(angles + 0.3, 0).mean(), rel=1e-5)
    assert losses["margin_softmax"] > 20  # s = 64 and m2 = 0.5 far from any centre


def test_margins(head: Head, make: Callable[..., Config]) -> None:
    """The loss by the formula in float64, of which one is the target's logit; rounding of float32 apart."""
    options = {"loss_s": 10, "loss_m1": 0.9, "loss_m2": 0.4, "loss_m3": 0.1}
    margin = margin_of(Config(**options))
    assert margin.target(np.cos([1.2]))[0][0] == pytest.approx(10 * (np.cos(0.9 * 1.2 + 0.4) - 0.1), rel=1e-12)
    made, x = head(make(**options)), np.random.RandomState(0).standard_normal((1, DIM)).astype(np.float32)
    w = made.shards[0].state().centres.astype(np.float64)
    cosines = (w @ x[0].astype(np.float64)) / np.linalg.norm(w, axis=1) / np.linalg.norm(x.astype(np.float64))
    others, target = np.exp(10 * np.delete(cosines, 3)).sum(), 10 * (np.cos(0.9 * np.arccos(cosines[3]) + 0.4) - 0.1)
    assert made.forward_backward(x, np.array([3])).loss == pytest.approx(
        np.log(others + np.exp(target)) - target, rel=1e-5)


def test_margins_of_images(head: Head, make: Callable[..., Config]) -> None:
    """Two images of one class against the formulas in float64, whose losses differ by the margin of the norm."""
    x = np.random.RandomState(0).standard_normal((2, DIM)).astype(np.float32) * [[2], [5]]
    norms = np.linalg.norm(x, axis=1)

    def loss(m2: Any, m3: Any = 0.0, **options: Any) -> tuple[float, float]:
        made = head(make(loss_s=10, loss_m2=0.4, **options))
        w = made.shards[0].state().centres.astype(np.float64)
        z = 10 * (x / norms[:, None]) @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T
        z[:, 3] = 10 * (np.cos(np.arccos(z[:, 3] / 10) + m2) - m3)
        wanted = np.mean(np.log(np.exp(z).sum(axis=1)) - z[:, 3])
        return made.forward_backward(x.astype(np.float32), np.array([3, 3])).loss, float(wanted)

    quality = np.clip(0.5 * (norms - 0.8 * norms.mean() - 4) / (0.8 * norms.std(ddof=1) + 20 + 1e-3), -1, 1)
    found, wanted = loss(-0.4 * quality, 0.4 + 0.4 * quality, loss_margin="adaface", adaface_h=0.5, adaface_share=0.8)
    assert found == pytest.approx(wanted, rel=1e-5)  # similarities are float32
    low, high = norms.min() - 1, norms.max() + 1
    limits = {"magface_norms": (low, high), "magface_margins": (0.2, 0.7), "magface_weight": 3.0}
    m2 = 0.2 + 0.5 * (norms - low) / (high - low)
    found, wanted = loss(np.where(cosines_of(head, make, x) > 0, m2, 0), loss_margin="magface", **limits)
    assert found == pytest.approx(wanted + np.mean(3 * (norms / high**2 + 1 / norms)), rel=1e-5)
    drawn = np.random.default_rng([make().seed, 0x454C, 0]).normal(0.4, 0.1, 2)
    found, wanted = loss(drawn, loss_margin="elastic", elastic_deviation=0.1)
    assert found == pytest.approx(wanted, rel=1e-5)
    nearest = cosines_of(head, make, x).argmax()
    found, wanted = loss(np.sort(drawn)[[0, 1] if nearest == 0 else [1, 0]], loss_margin="elastic",
                         elastic_deviation=0.1, elastic_sorted=True)
    assert found == pytest.approx(wanted, rel=1e-5)


def cosines_of(head: Head, make: Callable[..., Config], x: np.ndarray) -> np.ndarray:
    """The cosines of two features with the centre of class 3."""
    w = head(make()).shards[0].state().centres[3].astype(np.float64)
    return x @ w / np.linalg.norm(x, axis=1) / np.linalg.norm(w)


def test_loss_K(head: Head, make: Callable[..., Config]) -> None:
    """Three rows a class, of which the nearest counts: with all features at one place the other two do not move."""
    made = head(make(loss_K=3, loss_s=1, wd=0))
    (shard,), before = made.shards, made.shards[0].state().centres.copy()
    made.forward_backward(np.ones((2, DIM)), np.array([1, 1]))
    made.step(0.1)
    moved = np.abs(shard.state().centres - before).max(axis=1) > 0
    assert before.shape == (3 * CLASSES, DIM) and moved.reshape(CLASSES, 3).sum(axis=1).tolist() == [1] * CLASSES


@pytest.mark.parametrize("sample_ratio", [1.0, 0.5, 0.3])
def test_sample_ratio(head: Head, make: Callable[..., Config], sample_ratio: float) -> None:
    """The centres that are drawn take part in a step, those of the batch among them; the others stay."""
    made = head(make(sample_ratio=sample_ratio))
    before = made.shards[0].state().centres.copy()
    made.forward_backward(np.random.RandomState(0).rand(2, DIM), np.array([2, 7]))
    made.step(0.1)
    moved = np.flatnonzero((made.shards[0].state().centres != before).any(axis=1))
    drawn = ClassSampler(sample_ratio, 0)(np.array([2, 7]), 0, 0, CLASSES)
    assert moved.tolist() == (list(range(CLASSES)) if drawn is None else drawn.tolist())
    assert {2, 7} <= set(moved.tolist()) and (len(moved) < CLASSES) == (sample_ratio < 1)


def step_of_w(made: ShardedHead | TripletHead) -> np.ndarray:
    before = made.shards[0].state().centres.astype(np.float64)
    made.forward_backward(np.random.RandomState(0).rand(4, DIM), np.arange(4))
    made.step(0.1)
    return made.shards[0].state().centres - before


def test_factors_of_w(head: Head, make: Callable[..., Config]) -> None:
    """One step from no momentum: lr_mult lr (gradient + wd_mult wd w)."""
    options = {"loss_name": "softmax"}  # moderate gradients: what is left of a float32 difference is 1e-7 of W
    free, fast = step_of_w(head(make(**options, wd=0))), step_of_w(head(make(**options, wd=0, fc7_lr_mult=3)))
    np.testing.assert_allclose(fast, 3 * free, rtol=0, atol=1e-6)
    once, twice = step_of_w(head(make(**options, wd=1))), step_of_w(head(make(**options, wd=1, fc7_wd_mult=2)))
    np.testing.assert_allclose(twice - free, 2 * (once - free), rtol=0, atol=1e-6)
    assert min(np.abs(free).max(), np.abs(once - free).max()) > 1e-3
    assert not step_of_w(head(make(wd=1, fc7_lr_mult=0))).any()


def test_fc7_no_bias(head: Head, make: Callable[..., Config]) -> None:
    """train.py's softmax has a bias, which learns, unless this says that it has none."""
    for fc7_no_bias in (False, True):
        made = head(make(entry="train", loss_name="softmax", fc7_no_bias=fc7_no_bias))
        made.forward_backward(np.random.RandomState(0).rand(4, DIM), np.arange(4))
        made.step(0.1)
        assert made.shards[0].with_bias != fc7_no_bias and made.shards[0].state().bias.any() != fc7_no_bias


def backbone(config: Config) -> Any:
    return make_backbone(config, build_network(config), choose_engine(config.engine), SingleProcess())


BATCH_NORM = """
import mxnet as mx

def get_symbol(emb_size, bn_mom, workspace):
    x = mx.sym.Convolution(mx.sym.Variable("data"), num_filter=4, kernel=(7, 7), stride=(7, 7), workspace=workspace,
                           name="conv0")
    x = mx.sym.BatchNorm(x, fix_gamma=False, momentum=bn_mom, name="bn0")
    return mx.sym.FullyConnected(x, num_hidden=emb_size, name="fc1")
"""


def test_momentum_of_statistics_and_workspace_of_convolutions(engine: str, make: Callable[..., Config],
                                                              tmp_path: Path) -> None:
    """A step moves the mean from 0 by 1 - bn_mom of the batch's; on CPUs a workspace changes no bit."""
    (tmp_path / "normed.py").write_text(BATCH_NORM)
    images = np.random.RandomState(0).randint(0, 256, (12, 3, 112, 112)).astype(np.uint8)

    def after_a_step(**options: Any) -> tuple[np.ndarray, np.ndarray]:
        made = backbone(make(net_name="normed", **options))
        features = made.forward(images)
        made.backward(np.ones_like(features))
        return features, made.parameters()[1]["bn0_moving_mean"]

    features, mean = after_a_step(bn_mom=0)
    slower = after_a_step(bn_mom=0.9)
    np.testing.assert_allclose(slower[1], 0.1 * mean, rtol=1e-4)  # 1 - 0.9 in float32
    assert np.abs(mean).min() > 0.1
    assert after_a_step(bn_mom=0.9, workspace=1)[0].tobytes() == features.tobytes() == slower[0].tobytes()


def decayed(config: Config, steps: int) -> dict[str, np.ndarray]:
    """By what part of its first value a parameter moved in steps of decay alone, gradients of zero, at lr 0.1."""
    made = backbone(config)
    before = made.parameters()[0]
    for _ in range(steps):
        made.backward(np.zeros_like(made.forward(np.zeros((12, 3, 112, 112), np.uint8))))
        made.step(0.1)
    after = made.parameters()[0]
    return {name: np.mean(1 - after[name] / before[name]) for name in before if before[name].all()}


def test_decay_and_momentum(engine: str, make: Callable[..., Config]) -> None:
    """wd 0.2 at lr 0.1: 2 % in the first step, and mom of that again in the second."""
    assert decayed(make(wd=0.2, mom=0.5), 1)["conv0_weight"] == pytest.approx(0.02, rel=1e-4)
    assert decayed(make(wd=0.2, mom=0.5), 2)["conv0_weight"] == pytest.approx(0.02 + 0.02 * 0.98 + 0.5 * 0.02, rel=1e-4)
    assert decayed(make(wd=0.2, mom=0), 2)["conv0_weight"] == pytest.approx(0.02 + 0.02 * 0.98, rel=1e-4)
    assert decayed(make(wd=0), 3)["conv0_weight"] == 0


def test_freezing_and_factors(engine: str, make: Callable[..., Config]) -> None:
    options = {"wd": 0.2, "mom": 0}
    held = decayed(make(**options, freeze="conv*"), 3)
    assert held["conv0_weight"] == 0 and held["fc1_weight"] > 0
    once = decayed(make(**options, freeze="conv*", freeze_steps=2), 3)
    assert once["conv0_weight"] == pytest.approx(0.02, rel=1e-4)
    slow = decayed(make(**options, lr_factor="*=0.5,fc1*=2"), 1)
    assert (slow["conv0_weight"], slow["fc1_weight"]) == (pytest.approx(0.01, rel=1e-4), pytest.approx(0.04, rel=1e-4))


def test_adamw(engine: str, make: Callable[..., Config]) -> None:
    """A step with the gradient g, and one with 0, by the formula in float64; SGD tells g. float32 to 1e-3: a moment is
    what two of nearly one size leave."""
    images = np.random.RandomState(0).randint(0, 256, (12, 3, 112, 112)).astype(np.uint8)

    def moves(**options: Any) -> list[np.ndarray]:
        made, found = backbone(make(wd=0, **options)), []
        for size in (1, 0):
            before = made.parameters()[0]["fc1_weight"].astype(np.float64)
            features = made.forward(images)
            made.backward(np.full_like(features, size))
            made.step(0.01)
            found.append(made.parameters()[0]["fc1_weight"] - before)
        return found

    g = moves(mom=0)[0] / -0.01
    for b1, b2, eps in ((0.9, 0.999, 1e-8), (0.6, 0.9, float(np.abs(g).mean()))):
        m, v = g * (1 - b1), g * g * (1 - b2)
        wanted = []
        for step in (1, 2):
            wanted.append(-0.01 * m / (1 - b1**step) / (np.sqrt(v / (1 - b2**step)) + eps))
            m, v = m * b1, v * b2
        found = moves(optimizer="adamw", adam_beta1=b1, adam_beta2=b2, adam_eps=eps)
        for ours, expected in zip(found, wanted):
            np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-7)


def test_label_smoothing(head: Head, make: Callable[..., Config]) -> None:
    """The loss grows by the share times what the target's logit is above the mean of all: the labels' expectation."""
    x, labels = np.random.RandomState(0).standard_normal((12, DIM)).astype(np.float32), np.arange(12) % CLASSES
    options = {"loss_m2": 0.0, "loss_s": 8.0}
    plain, smoothed = (head(make(**options, label_smoothing=share)) for share in (0.0, 0.25))
    w = plain.shards[0].state().centres.astype(np.float64)
    z = 8 * (x / np.linalg.norm(x, axis=1)[:, None]) @ (w / np.linalg.norm(w, axis=1)[:, None]).T
    wanted = 0.25 * np.mean(z[np.arange(12), labels] - z.mean(axis=1))
    losses = [each.forward_backward(x, labels).loss for each in (plain, smoothed)]
    assert losses[1] - losses[0] == pytest.approx(wanted, rel=1e-3)


def test_layer_decay(engine: str, make: Callable[..., Config]) -> None:
    """What wd takes is in proportion to the rate. conv0 and fc1 have no blocks in their names: two layers."""
    moved = decayed(make(wd=0.2, mom=0, layer_decay=0.5), 1)
    assert moved["conv0_weight"] == pytest.approx(0.01, rel=1e-4)
    assert moved["fc1_weight"] == pytest.approx(0.02, rel=1e-4)
    both = decayed(make(wd=0.2, mom=0, layer_decay=0.5, lr_factor="conv0*=3"), 1)
    assert both["conv0_weight"] == pytest.approx(0.03, rel=1e-4)


def test_dropout_and_drop_path(engine: str, make: Callable[..., Config]) -> None:
    """The same image twelve times: its features differ by what was dropped, but not those for verification."""
    tiny = {"net_name": "fmobilefacenet", "net_multiplier": 0.25, "net_blocks": [1, 1, 2, 1]}
    images = np.tile(np.random.RandomState(0).randint(0, 256, (1, 3, 112, 112)).astype(np.uint8), (12, 1, 1, 1))
    for options, kinds in (({"net_output": "GDC"}, 1), ({"net_output": "GDC", "dropout": 0.5}, 12),
                           ({"net_output": "E"}, 12), ({"net_output": "E", "dropout": 0}, 1),
                           ({"net_output": "GDC", "drop_path": 0.5}, 2)):
        config = make(**tiny, **options)
        made, plain = backbone(config), backbone(make(**tiny, net_output=config.net_output))
        assert np.array_equal(made.embed(images), plain.embed(images)), options
        found = len({row.tobytes() for row in made.forward(images).round(3)})
        assert found == 1 if kinds == 1 else found >= kinds, options
