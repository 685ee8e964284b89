# SPDX-License-Identifier: Apache-2.0
"""Images that travel to a device beside the step before: order, memory and bits, with a stand-in for CUDA."""
from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest

from tests.recognition.engines.torch import fake_graphs
from tests.recognition.engines.torch.test_backbone import CPU, batch, network, same_bits, steps, torch_backbone

torch = pytest.importorskip("torch")
from recognition.engines.torch.graphs.uploads import Uploads  # noqa: E402

SIZE = (2, 3, 4, 5)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> type[fake_graphs.Graph]:
    return fake_graphs.install(monkeypatch)


@pytest.mark.parametrize("early", [True, False])
def test_no_memory_is_overwritten_before_it_is_read(graphs: Any, early: bool) -> None:
    """The step computes as late as it may, and copies are as early or as late as they may be; the host's memory goes to
    another batch as soon as nobody holds it."""
    uploads, compute = Uploads(CPU), torch.cuda.Stream()
    uploads._stream.at_once = early  # type: ignore[attr-defined]
    kept = [np.full(SIZE, step, np.uint8) for step in range(6)]
    places = [torch.full(SIZE, 77, dtype=torch.uint8) for _ in range(6)]

    def made(step: int) -> np.ndarray:
        images = kept[step].view()
        weakref.finalize(images, kept[step].fill, 255)
        return images

    images = made(0)
    with torch.cuda.stream(compute):
        for step in range(6):
            uploads.into(places[step], images)
            if step < 5:
                images = made(step + 1)
                if step != 2:  # which is not decoded yet
                    uploads.begin(images)
    assert (kept[3] == 255).all() and (places[5] == 77).all()
    compute.run()
    assert all((place == step).all() for step, place in enumerate(places))


@pytest.mark.parametrize("devices", [1, 2])
def test_steps_whose_images_come_ahead_have_the_same_bits(
        graphs: Any, monkeypatch: pytest.MonkeyPatch, devices: int) -> None:
    """The images of step 4 are not those that were told; a verification lies between steps 2 and 3."""
    ahead, plain = (torch_backbone(network(0.4), devices) for _ in range(2))
    copies: list[Any] = []
    batches: dict[int, np.ndarray] = {}
    begin = Uploads.begin
    monkeypatch.setattr(Uploads, "begin", lambda uploads, images: copies.append(images) or begin(uploads, images))
    for step in range(6):
        images, d_features = batch(step)
        ahead.forward(batches.get(step, images))
        ahead.coming(batches.setdefault(step + 1, batch(step + 1)[0]) if step != 3 else batch(9)[0])
        ahead.backward(d_features)
        ahead.step(0.05)
        if step == 2:
            ahead.embed(batch(7)[0])
    assert len(copies) == (1 + 6 + 1) * devices
    assert same_bits(ahead.state(), steps(plain, 0, 6))


def test_a_gpu_gets_pinned_memory_and_a_cpu_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, asked = torch_backbone(), []
    plain = backbone.buffer(SIZE)
    monkeypatch.setattr(backbone.replicas[0], "device", torch.device("cuda", 0))
    made = torch.empty
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, pin_memory: asked.append(pin_memory) or made(
        shape, dtype=dtype))
    pinned = backbone.buffer(SIZE)
    assert asked == [True] and pinned.shape == plain.shape == SIZE and pinned.dtype == plain.dtype == np.uint8
