# SPDX-License-Identifier: Apache-2.0
"""Gradients that processes sum while a recorded backward pass goes on: order and bits, with a stand-in for CUDA."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recognition.engines.interface import Updating
from recognition.networks.initialise import initialise
from tests.recognition.engines.torch import fake_graphs
from tests.recognition.engines.torch.test_backbone import BATCH, CPU, SHAPE, batch, network, same_bits
from tests.recognition.engines.torch.test_communicator import launch

torch = pytest.importorskip("torch")
from recognition.engines.torch.backbone import ReplicatedBackbone  # noqa: E402
from recognition.engines.torch.graphs import graphed  # noqa: E402
from recognition.engines.torch.processes import summing  # noqa: E402
from recognition.engines.torch.processes.communicator import DistributedCommunicator  # noqa: E402
from recognition.engines.torch.processes.summing import Summing  # noqa: E402

Bucket = tuple[int, int]  # its numbers, and how many operators of the recorded pass were not yet computed
WORKER = """
from recognition.engines.torch.processes.choose import make_communicator
from tests.recognition.engines.torch.test_sums_beside import check_sums_beside
with make_communicator("device") as communicator:
    check_sums_beside(communicator)
"""


def four_steps(communicator: Any, patch: pytest.MonkeyPatch, late: bool,
               **options: Any) -> tuple[Any, list[list[Bucket]]]:
    """The state after four steps, and the buckets that each of them has sent.

    :param late: a recorded backward pass is computed no further than a stream waits for one of its events, and to its
        end only where the sums are awaited.
    """
    graph, sent, passes = network(0.4), list[list[Bucket]](), list[Any]()
    options = {"updating": Updating(), **options}
    made = ReplicatedBackbone(graph, *initialise(graph, SHAPE, 1), [CPU], BATCH, SHAPE, communicator,
                              **options)
    patch.setattr(summing, "BUCKET_BYTES", 600)
    all_reduce, finish, backward = torch.distributed.all_reduce, Summing.finish, graphed.GraphedPass.backward

    def summed(flat: torch.Tensor, async_op: bool = False) -> Any:
        sent[-1].append((flat.numel(), len(passes[-1].todo) if passes else 0))
        return all_reduce(flat, async_op=async_op)

    def begun(recorded: graphed.GraphedPass, d_features: Any) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(fake_graphs.Graph, "late", late)
            backward(recorded, d_features)
        passes.append(recorded._backward)

    def finished(sums: Summing) -> None:
        for graph in passes:
            graph.run()
        finish(sums)

    patch.setattr(torch.distributed, "all_reduce", summed)
    patch.setattr(graphed.GraphedPass, "backward", begun)
    patch.setattr(Summing, "finish", finished)
    for step in range(4):
        images, d_features = batch(step + 100 * communicator.rank)
        sent.append([])
        made.forward(images)
        made.backward(d_features)
        made.step(0.05)
    return made.state(), sent


def by_operators(communicator: Any, **options: Any) -> tuple[Any, list[list[Bucket]]]:
    with pytest.MonkeyPatch.context() as patch:
        return four_steps(communicator, patch, late=False, **options)


def check_sums_beside(communicator: Any, **options: Any) -> None:
    """The bits and buckets of the operators; all buckets but the last leave while the pass goes on."""
    wanted, buckets = by_operators(communicator, **options)
    with pytest.MonkeyPatch.context() as patch:
        graphs = fake_graphs.install(patch)
        patch.setattr(graphed, "MOMENT_BYTES", 100)
        found, sent = four_steps(communicator, patch, late=True, **options)
        assert graphs.replays == 3 * 2
    assert same_bits(found, wanted)
    sizes = [[size for size, _ in step] for step in sent]
    assert sizes == [[size for size, _ in step] for step in buckets] and len(sizes[0]) > 3
    for step in sent[1:]:
        left = [count for _, count in step]
        assert left == sorted(left, reverse=True) and left[-2] > 0 and left[-1] == 0


@pytest.fixture
def alone() -> Iterator[DistributedCommunicator]:
    """A communicator of one process."""
    with DistributedCommunicator(torch.distributed.HashStore(), 0, 1) as communicator:
        yield communicator


@pytest.mark.parametrize("options", [{}, {"low": torch.bfloat16, "updating": Updating(gradient_numbers="bfloat16")}],
                         ids=["float32", "16 bits"])
def test_buckets_are_sent_while_a_recorded_pass_goes_on(alone: DistributedCommunicator,
                                                        options: dict[str, Any]) -> None:
    check_sums_beside(alone, **options)


def test_two_processes_with_recorded_passes_have_the_bits_of_operators(tmp_path: Path) -> None:
    run = launch(tmp_path, 2, WORKER)
    assert run.returncode == 0, run.stdout + run.stderr


def test_without_external_events_gradients_are_summed_behind_the_pass(
        alone: DistributedCommunicator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """ROCm has none: PyTorch refuses them there."""
    wanted, _ = by_operators(alone)
    graphs = fake_graphs.install(monkeypatch)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    found, _ = four_steps(alone, monkeypatch, late=False)
    assert graphs.replays == 3 * 2 and same_bits(found, wanted) and not caplog.records


def test_gradients_that_are_copied_are_there_at_the_end_of_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_graphs.install(monkeypatch)
    monkeypatch.setattr(graphed, "MOMENT_BYTES", 12)
    own, turned, copied, unseen = torch.ones(3), torch.arange(6.0).reshape(3, 2).t(), torch.ones(3), torch.ones(1)
    moments = graphed.Moments(torch.cuda.Stream())
    kept = {name: moments.see(name, torch.empty(gradient.shape), gradient)
            for name, gradient in {"own": own, "turned": turned, "copied": copied}.items()}
    assert kept["own"] is own and kept["turned"].is_contiguous() and torch.equal(kept["turned"], turned)
    found = moments.of({**kept, "copied": copied.clone(), "unseen": unseen})
    assert len({id(event) for event in found.values()}) == 3
    assert found["copied"] is found["unseen"] and found["own"] is not found["turned"]
