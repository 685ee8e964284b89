# SPDX-License-Identifier: Apache-2.0
"""arcface_torch's checkpoints, as PyTorch itself writes and reads them: networks, class centres and moments, both ways.

The network and the optimiser of the reference are PyTorch's, written from their public definition.
"""
from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from common import inference
from common.convert_torch import main
from common.embedding.model_flags import add_model_flags, as_text, beside, check_model_flags, open_model
from recognition.config.command_line import Parser
from recognition.config.differences import as_json
from recognition.config.options import Config
from recognition.errors import UserError
from recognition.evaluation.trained_backbone import load_backbone
from recognition.head.shard import ShardState, split_classes
from recognition.io.centres import centres_in_file
from recognition.io.params import read_arrays
from recognition.networks.families import fresnet
from recognition.networks.shapes import infer_shapes
from recognition.training.states.arcface_torch import ArcfaceTorchState, find_ranks
from recognition.training.states.save import save_state
from recognition.training.states.state import Progress, SavedState

torch = pytest.importorskip("torch")
CLASSES, DIM, STEPS = 11, 16, 6
IDENTITY = {"num_classes": CLASSES, "emb_size": DIM, "loss_K": 1, "bias": False, "optimizer": "sgd", "images": 66}


class Unit(torch.nn.Module):
    def __init__(self, inside: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = torch.nn.BatchNorm2d(inside)
        self.conv1 = torch.nn.Conv2d(inside, channels, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(channels)
        self.prelu = torch.nn.PReLU(channels)
        self.conv2 = torch.nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn3 = torch.nn.BatchNorm2d(channels)
        self.downsample = torch.nn.Sequential(torch.nn.Conv2d(inside, channels, 1, stride, bias=False),
                                              torch.nn.BatchNorm2d(channels)) if stride > 1 else None

    def forward(self, x):
        y = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return y + (self.downsample(x) if self.downsample else x)


class IResNet(torch.nn.Module):
    """r18: four stages of two units; the factor of the last batch norm is fixed."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(64)
        self.prelu = torch.nn.PReLU(64)
        inside = 64
        for stage, channels in enumerate((64, 128, 256, 512), 1):
            setattr(self, f"layer{stage}", torch.nn.Sequential(Unit(inside, channels, 2), Unit(channels, channels, 1)))
            inside = channels
        self.bn2 = torch.nn.BatchNorm2d(512)
        self.fc = torch.nn.Linear(512 * 49, dim)
        self.features = torch.nn.BatchNorm1d(dim)
        self.features.weight.requires_grad = False

    def forward(self, x):
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(torch.flatten(self.bn2(x), 1)))


def optimiser_of(kind: str, network, weight):
    groups = [{"params": network.parameters()}, {"params": [weight]}]
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=5e-4)
    return torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)


def random_gradients(seed: int, parameters) -> None:
    random = np.random.default_rng(seed)
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.grad = torch.tensor(random.standard_normal(parameter.shape, dtype=np.float32) * 0.01)


@pytest.fixture(scope="module", params=["sgd", "adamw"])
def theirs(request, tmp_path_factory):
    """(folder, kind, network, W, optimisers of ranks) of a run of two ranks after STEPS steps, saved as arcface_torch
    does. W of a rank is its own parameter."""
    torch.manual_seed(0)
    folder, kind = tmp_path_factory.mktemp("theirs"), request.param
    network = IResNet(DIM)
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    start = [parameter.detach().clone() for parameter in network.parameters()]
    centres, optimisers = [], []
    for rank, (low, high) in enumerate(split_classes(CLASSES, 2)):
        with torch.no_grad():
            for parameter, value in zip(network.parameters(), start):  # all ranks take the same steps
                parameter.copy_(value)
        weight = torch.nn.Parameter(torch.normal(0, 0.01, (high - low, DIM)))
        optimiser = optimiser_of(kind, network, weight)
        for step in range(STEPS):
            random_gradients(step, network.parameters())
            random_gradients(100 + step + rank, [weight])
            optimiser.step()
        for group in optimiser.param_groups:
            group["lr"] *= 0.5  # as the scheduler leaves the rate of the next step
        torch.save({"epoch": 2, "global_step": STEPS, "state_dict_backbone": network.state_dict(),
                    "state_dict_softmax_fc": {"weight": weight}, "state_optimizer": optimiser.state_dict(),
                    "state_lr_scheduler": {"last_epoch": STEPS, "_last_lr": [0.05, 0.05]}},
                   folder / f"checkpoint_gpu_{rank}.pt")
        centres.append(weight)
        optimisers.append(optimiser)
    torch.save(network.state_dict(), folder / "model.pt")
    return folder, kind, network, centres, optimisers


class Rows:
    """A shard of the class centres that keeps what it is given."""

    with_bias = False

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop, self.given = start, stop, []

    def load(self, state: ShardState, first: int) -> None:
        self.given.append((first, state))

    def state(self) -> ShardState:
        return ShardState(*(np.concatenate([getattr(part, name) for _, part in self.given])
                            for name in ShardState._fields))


def test_the_network_of_model_pt_computes_what_pytorch_does(theirs, tmp_path, noise):
    """1e-4 of the numbers: float32 through 18 layers in which factors have moved."""
    folder, _, network, *_ = theirs
    assert main([str(folder / "model.pt"), f"{tmp_path}/model,1"]) == 0
    network.eval()
    with torch.no_grad():
        pixels = torch.tensor(noise[:4].transpose(0, 3, 1, 2).astype(np.float32))
        expected = network((pixels - 127.5) / 127.5).numpy()
    found = load_backbone(f"{tmp_path}/model,1", batch_size=4).embed(noise[:4], flip=False, unit=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_inference_by_its_own_command(theirs, tmp_path, noise, capsys):
    """What it prints is the plain output for the pixels of the file; as above, and five digits are printed."""
    folder, _, network, *_ = theirs
    cv2.imwrite(str(tmp_path / "face.png"), noise[0][..., ::-1])
    words = ["--weight", str(folder / "model.pt"), "--network", "r18", "--img", str(tmp_path / "face.png")]
    assert inference.main(words) == 0
    found = np.array([float(number) for number in re.findall(r"-?\d+\.\d*(?:e[-+]\d+)?", capsys.readouterr().out)])
    network.eval()
    with torch.no_grad():
        pixels = torch.tensor(noise[:1].transpose(0, 3, 1, 2).astype(np.float32))
        expected = network((pixels - 127.5) / 127.5)[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert inference.main(["--weight", str(folder / "model.pt")]) == 2
    assert "--network: found 'r50', but" in capsys.readouterr().err


def test_its_weights_are_a_model_for_commands(theirs, noise, tmp_path):
    folder, _, network, *_ = theirs
    parser = Parser()
    add_model_flags(parser)
    args = parser.parse_args(["--model", str(folder / "model.pt"), "--devices", "cpu", "--batch-size", "2"])
    check_model_flags(args)
    embed, _ = open_model(args)
    network.eval()
    planes = np.ascontiguousarray(noise[:3].transpose(0, 3, 1, 2))
    with torch.no_grad():
        expected = network((torch.tensor(planes.astype(np.float32)) - 127.5) / 127.5).numpy()
    np.testing.assert_allclose(embed(planes), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert (as_text(args.model), beside(args.model, "x").name) == (str(folder / "model.pt"), "model-x")


def test_class_centres_of_all_ranks_come_along(theirs, tmp_path, capsys):
    folder, _, _, centres, _ = theirs
    assert main([str(folder / "checkpoint_gpu_1.pt"), f"{tmp_path}/model,1"]) == 0
    assert f"11 class centres of 2 ranks; the rest of the training state is left out: --resume with --models-root " \
           f"{folder} goes on with it" in capsys.readouterr().out
    path = tmp_path / "model-0001.params"
    found = centres_in_file(path, read_arrays(path))
    assert found.form == "fc7_<i>_weight" and not found.mismatch(CLASSES, 1)
    for one, weight in zip(found.centres, centres):
        np.testing.assert_array_equal(one[:], weight.detach().numpy())


@pytest.mark.parametrize("shards", [1, 3])
def test_a_state_to_go_on_from(theirs, shards):
    """Names and shapes are those of the network; the next step, without a gradient, is that of PyTorch's optimiser:
    1e-6 of the largest number, as both are sums of a few float32."""
    folder, kind, network, centres, optimisers = theirs
    state = ArcfaceTorchState(folder, find_ranks(folder))
    state.require_identity({**IDENTITY, "optimizer": kind})
    assert (state.progress.step, state.progress.epoch, state.progress.offset, state.data()) == (STEPS, 2, 0, {})
    backbone = state.backbone()
    shapes = infer_shapes(fresnet.get_symbol(num_layers=18, emb_size=DIM, net_output="FC"), (3, 112, 112))
    for arrays in (backbone.parameters, backbone.momentum):
        assert {name: array.shape for name, array in arrays.items()} == {
            name: shape for name, shape in shapes.arguments.items() if name != "data"}
    assert {name: array.shape for name, array in backbone.auxiliary[0].items()} == dict(shapes.auxiliary)
    rows = [Rows(*range_) for range_ in split_classes(CLASSES, shards)]
    for shard in rows:
        state.fill(shard, 1)
    np.testing.assert_array_equal(np.concatenate([shard.state().centres for shard in rows]),
                                  np.concatenate([weight.detach().numpy() for weight in centres]))
    moved = optimisers[1].state[network.conv1.weight], optimisers[1].state[centres[1]]
    last = np.concatenate([shard.state().momentum for shard in rows])[-len(centres[1]):]
    if kind == "sgd":
        expected = [-0.05 * one["momentum_buffer"].numpy() for one in moved]
        scale = 128 / 127.5
    else:
        expected = [one["exp_avg"].numpy() for one in moved]
        scale = 127.5 / 128
        np.testing.assert_allclose(backbone.second_moment["conv0_weight"], moved[0]["exp_avg_sq"] * scale**2, rtol=1e-6)
        assert {int(count) for count in backbone.updates.values()} == {STEPS}
    np.testing.assert_allclose(backbone.momentum["conv0_weight"], expected[0] * scale, rtol=1e-6)
    np.testing.assert_allclose(last, expected[1], rtol=1e-6)


def saved_here(theirs, folder: Path, end_epoch: int = 4) -> SavedState:
    """A training state of ours with the numbers of ``theirs``, after STEPS steps of 3 an epoch."""
    source, kind, *_ = theirs
    taken = ArcfaceTorchState(source, 2)
    taken.require_identity({**IDENTITY, "optimizer": kind})
    shard = Rows(0, CLASSES)
    taken.fill(shard, 1)
    config = Config(network="r18", num_layers=18, net_output="FC", emb_size=DIM, lr=0.1 if kind == "sgd" else 0.01,
                    lr_schedule="polynomial", lr_power=1.0, end_epoch=end_epoch, per_batch_size=11, optimizer=kind,
                    devices="cpu:2", wd=5e-4 if kind == "sgd" else 0.1)
    progress = Progress(step=STEPS, epoch=2, identity={**IDENTITY, "optimizer": kind}, config=as_json(config))
    return SavedState(save_state(folder, progress, taken.backbone(), [shard]))


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_state_of_ours_becomes_checkpoints_that_pytorch_goes_on_from(theirs, tmp_path, ranks, capsys):
    """A run of ours of 4 epochs, halfway: the rate has fallen to half, as in ``theirs``. So what comes back is what
    went in, to the rounding of float32, and PyTorch's next step is the same."""
    state = saved_here(theirs, tmp_path / "state")
    _, kind, network, centres, _ = theirs
    assert main([str(state.path), str(tmp_path / "out"), "--ranks", str(ranks)]) == 0
    assert f"after step {STEPS}, 2 epochs" in capsys.readouterr().out
    assert find_ranks(tmp_path / "out") == ranks
    whole = torch.cat([weight.detach() for weight in centres])
    for rank, (low, high) in enumerate(split_classes(CLASSES, ranks)):
        content = torch.load(tmp_path / "out" / f"checkpoint_gpu_{rank}.pt", weights_only=True)
        copy, weight = IResNet(DIM), torch.nn.Parameter(torch.zeros(high - low, DIM))
        copy.load_state_dict(content["state_dict_backbone"])
        with torch.no_grad():
            weight.copy_(content["state_dict_softmax_fc"]["weight"])
        assert torch.equal(weight.detach(), whole[low:high])
        optimiser = optimiser_of(kind, copy, weight)
        optimiser.load_state_dict(content["state_optimizer"])
        rate = 0.05 if kind == "sgd" else 0.005
        assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([rate, rate])
        assert (content["epoch"], content["global_step"]) == (2, STEPS)
        for name, value in network.state_dict().items():
            if "num_batches" not in name:
                torch.testing.assert_close(copy.state_dict()[name], value, rtol=1e-5, atol=1e-7, msg=name)
    assert torch.load(tmp_path / "out" / "model.pt", weights_only=True).keys() == network.state_dict().keys()
    again = ArcfaceTorchState(tmp_path / "out", ranks)
    again.require_identity(state.progress.identity)
    for found, expected in zip(again.backbone(), state.backbone()):
        for arrays, wanted in zip(*((group if isinstance(group, list) else [group or {}])
                                    for group in (found, expected))):
            assert arrays.keys() == wanted.keys()
            for name, array in wanted.items():
                np.testing.assert_allclose(arrays[name], array, rtol=1e-5, atol=1e-8, err_msg=name)


def test_the_end_of_a_run_has_no_momentum_to_save(theirs, tmp_path, capsys):
    """A momentum here is a movement by the rate, and that is 0 at the end."""
    state = saved_here(theirs, tmp_path / "state", end_epoch=2)
    assert main([str(state.path), str(tmp_path / "out")]) == 0
    said = "without momentum: this is the end, where the rate is 0" in capsys.readouterr().out
    assert said == (theirs[1] == "sgd")
    content = torch.load(tmp_path / "out" / "checkpoint_gpu_0.pt", weights_only=True)
    assert {kind for moments in content["state_optimizer"]["state"].values() for kind in moments} == (
        {"step", "exp_avg", "exp_avg_sq"} if theirs[1] == "adamw" else set())


@pytest.mark.parametrize("key, value, message", [
    ("num_classes", 12, "gpu_1.pt: found 5 class centres, expected 6, the part of rank 1 of 2 of 12 classes"),
    ("emb_size", 32, "checkpoint_gpu_0.pt was saved with emb_size 16, this run has 32"),
    ("loss_K", 3, "checkpoint_gpu_0.pt was saved with loss_K 1, this run has 3"),
    ("optimizer", "lamb", "this run has 'lamb'"),
])
def test_of_another_run(theirs, key, value, message):
    folder, kind, *_ = theirs
    state = ArcfaceTorchState(folder, 2)
    with pytest.raises(UserError) as error:
        state.require_identity({**IDENTITY, "optimizer": kind, key: value})
        state.fill(Rows(0, value), 1)
    assert message in str(error.value)


def test_a_missing_rank_and_a_file_of_another_kind(theirs, tmp_path):
    folder, *_ = theirs
    for name in ("checkpoint_gpu_0.pt", "checkpoint_gpu_2.pt"):
        (tmp_path / name).write_bytes((folder / "model.pt").read_bytes())
    with pytest.raises(UserError, match=r"found no checkpoint_gpu_1\.pt, expected those of all ranks from 0 to 2"):
        find_ranks(tmp_path)
    with pytest.raises(UserError, match=r"checkpoint_gpu_0\.pt: found no epoch, expected a checkpoint of"):
        ArcfaceTorchState(tmp_path, 1)
    assert find_ranks(tmp_path / "none") == 0
