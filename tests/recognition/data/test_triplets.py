# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recognition.data.augment import Augmentation
from recognition.data.images.image import decode_rgb
from recognition.data.loader import Batch
from recognition.data.order import Position
from recognition.data.sets.dataset import FaceDataset, open_dataset
from recognition.data.triplets import MAX_BAGS, Bags, TripletLoader, lay_out
from recognition.errors import UserError
from tests.recognition.threads import Thread, together

COUNTS = (6, 1, 4, 9, 5, 2, 7, 3)
ALPHA = 2.0  # wide: nearly every positive pair gives a triplet


@pytest.fixture
def dataset(make_set: Callable[..., Path]) -> FaceDataset:
    return open_dataset(make_set(counts=COUNTS))


def embed(images: np.ndarray) -> np.ndarray:
    """Some features of each image: its mean colours in four corners."""
    corners = images.reshape(len(images), 3, 2, 56, 2, 56).mean(axis=(3, 5))
    return (corners.reshape(len(images), -1) - 127.5).astype(np.float32)


def make_loader(dataset: FaceDataset, bag_size: int = 20, global_batch: int = 12, device_batch: int = 6,
                **options: Any) -> TripletLoader:
    options = {"embed": embed, "augmentation": None, "alpha": ALPHA, "max_ap": 0.0, **options}
    bags = Bags(dataset, 3, bag_size, 0)
    return TripletLoader(dataset, bags, global_batch=global_batch, device_batch=device_batch, **options)


def take(loader: TripletLoader, count: int) -> list[Batch]:
    with loader:
        return list(itertools.islice(loader, count))


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for ours, theirs in zip(left, right):
        assert (ours.epoch, ours.index, ours.next_position) == (theirs.epoch, theirs.index, theirs.next_position)
        assert np.array_equal(ours.records, theirs.records)
        assert np.array_equal(ours.images, theirs.images)


def test_a_round_of_bags_visits_every_identity_once(dataset: FaceDataset) -> None:
    bags = Bags(dataset, images_per_identity=3, bag_size=10, seed=0)
    labels = dataset.labels()
    in_round = sum(min(count, 3) for count in COUNTS) // 10
    for first in (0, in_round):
        seen: list[int] = []
        for bag in range(first, first + in_round):
            images = bags.images(bag)
            assert 10 - 3 < len(images) <= 10
            assert len(set(images.tolist())) == len(images)
            identities = [key for key, _ in itertools.groupby(labels[images].tolist())]
            assert len(set(identities)) == len(identities), "an identity's images are not side by side"
            whole = identities[:-1]
            assert [np.count_nonzero(labels[images] == i) for i in whole] == [min(COUNTS[i], 3) for i in whole]
            seen += identities
        assert len(set(seen)) == len(seen)
    again, other_seed = (Bags(dataset, 3, 10, seed) for seed in (0, 1))
    assert np.array_equal(again.images(1), bags.images(1))
    assert not np.array_equal(other_seed.images(1), bags.images(1))
    assert not np.array_equal(bags.images(in_round), bags.images(0)), "every round the same"


def test_all_images_of_an_identity_come_up(dataset: FaceDataset) -> None:
    bags = Bags(dataset, 3, 7200, 0)
    seen = set(np.concatenate([bags.images(bag) for bag in range(40)]).tolist())
    assert seen == set(range(len(dataset)))


def test_a_set_too_small_for_a_bag_has_smaller_ones(dataset: FaceDataset, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert len(Bags(dataset, 3, 7200, 0).images(5)) == sum(min(count, 3) for count in COUNTS) == 21
    assert "bags of 21 images, 3 of each identity at most, instead of triplet_bag_size 7200" in caplog.text


@pytest.mark.parametrize("counts, words", [((5,), "found 1 identities with at most 5 images"),
                                           ((1, 1, 1), "found 3 identities with at most 1 images")])
def test_a_set_without_a_triplet_is_refused(make_set: Callable[..., Path], counts: tuple[int, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Bags(open_dataset(make_set(counts=counts)), 5, 7200, 0)


def test_batches_are_thirds_per_device(dataset: FaceDataset) -> None:
    for batch in take(make_loader(dataset), 8):
        assert batch.images.shape == (12, 3, 112, 112) and batch.images.dtype == np.uint8
        for device in range(2):
            anchor, positive, negative = batch.labels[6 * device:6 * device + 6].reshape(3, 2)
            assert (anchor == positive).all() and (anchor != negative).all()
        for image, record, label in zip(batch.images, batch.records.tolist(), batch.labels):
            stored_label, encoded, _ = dataset.read(record - 1)
            assert stored_label == label and np.array_equal(image.transpose(1, 2, 0), decode_rgb(encoded))


def test_positions_count_bags_and_their_images(dataset: FaceDataset) -> None:
    batches = take(make_loader(dataset), 8)
    assert batches[0].epoch == batches[0].index == 0
    assert batches[-1].epoch > 0
    for before, after in zip(batches, batches[1:]):
        same_bag = after.epoch == before.epoch
        assert before.next_position == (Position(before.epoch, 12 * (before.index + 1)) if same_bag else
                                        Position(after.epoch, 0))
        assert after.index == (before.index + 1 if same_bag else 0)


def test_the_network_is_asked_when_a_bag_begins(dataset: FaceDataset) -> None:
    """No sooner, however many batches are decoded ahead: those of the bag before have changed it until then."""
    taken: list[Batch] = []
    asked_after = set()

    def spy(images: np.ndarray) -> np.ndarray:
        asked_after.add(len(taken))
        return embed(images)

    with make_loader(dataset, embed=spy) as loader:
        taken.extend(itertools.islice(loader, 8))
    assert asked_after == {i for i, batch in enumerate(taken) if batch.index == 0}


@pytest.mark.parametrize("done", range(1, 8))
def test_from_any_position_and_its_state_the_same_batches_follow(dataset: FaceDataset, done: int) -> None:
    options: dict[str, Any] = {"augmentation": Augmentation(mirror=True, cutoff=9)}
    whole = take(make_loader(dataset, **options), 10)
    with make_loader(dataset, **options) as loader:
        last = list(itertools.islice(loader, done))[-1]
        state = {name: array.copy() for name, array in loader.state().items()}
    assert bool(state) == (last.next_position.offset > 0)

    def changed(images: np.ndarray) -> np.ndarray:
        """The network that trained on: its embeddings give other triplets."""
        return embed(images)[:, ::-1] ** 2 if last.next_position.offset else embed(images)

    rest = take(make_loader(dataset, **options, start=last.next_position, saved=state), 10 - done)
    assert_same(rest, whole[done:])
    bag_left = [batch for batch in whole[done:] if batch.epoch == last.epoch]
    assert_same(take(make_loader(dataset, **options, start=last.next_position, saved=state, embed=changed),
                     len(bag_left)), bag_left)


def test_processes_embed_a_share_of_the_bag_and_agree_on_the_batches(dataset: FaceDataset) -> None:
    embedded = [0, 0]

    def process(communicator: Thread) -> list[Batch]:
        rank = communicator.rank

        def count(images: np.ndarray) -> np.ndarray:
            embedded[rank] += len(images)
            return embed(images)

        return take(make_loader(dataset, part=(6 * rank, 6 * rank + 6), embed=count,
                                gather=communicator.all_gather), 6)

    parts = together(process, 2)
    for whole, first, second in zip(take(make_loader(dataset), 6), *parts):
        assert np.array_equal(whole.records, np.concatenate([first.records, second.records]))
    assert embedded[0] == embedded[1] <= 12 * (parts[0][-1].epoch + 1)


def test_a_state_goes_on_with_other_devices_and_batches(dataset: FaceDataset) -> None:
    with make_loader(dataset, bag_size=7200) as loader:
        first = next(loader)
        state, triplets = loader.state(), loader.state()["triplets"]
    options: dict[str, Any] = {"bag_size": 7200, "start": first.next_position, "saved": state}
    (batch,) = take(make_loader(dataset, global_batch=9, device_batch=3, **options), 1)
    assert np.array_equal(batch.records - 1, triplets[4:7].ravel())
    assert batch.next_position == Position(0, 12 + 9)
    # Less is left than a batch of this size: the bag is over.
    large = 3 * (len(triplets) - 3)
    assert take(make_loader(dataset, global_batch=large, device_batch=large, **options), 1)[0].epoch > 0


def test_bags_of_less_than_a_batch_are_joined(dataset: FaceDataset) -> None:
    batches = take(make_loader(dataset, bag_size=7, global_batch=24, device_batch=12), 3)
    assert (np.diff([batch.epoch for batch in batches]) > 0).all()
    assert batches[0].epoch > 0 and all(batch.index == 0 for batch in batches)


def far_apart(images: np.ndarray) -> np.ndarray:
    """The embeddings of a network with nothing left to learn: of an image and of its copies the same, of others not."""
    seeds = images.reshape(len(images), -1)[:, :100].astype(np.int64) @ np.arange(1, 101)
    return np.stack([np.random.RandomState(seed).standard_normal(64) for seed in seeds])


def test_with_no_triplets_left_the_run_ends_with_a_line(dataset: FaceDataset, caplog: pytest.LogCaptureFixture) -> None:
    loader = make_loader(dataset, embed=far_apart, alpha=1e-9, start=Position(3, 0))
    with caplog.at_level(logging.INFO):
        assert take(loader, 1) == []
    line = f"0 triplets in bags 3 to {3 + MAX_BAGS - 1}, a batch takes 4: negatives farther than the positive by less "
    assert line in caplog.text and "the run ends" in caplog.text
    assert loader.state() == {}


def test_with_no_triplets_from_the_start_there_is_an_error(dataset: FaceDataset) -> None:
    with pytest.raises(UserError, match=r"0 triplets in bags 0 to 9, .* triplet_alpha 1e-09 are rare or gone"):
        take(make_loader(dataset, embed=far_apart, alpha=1e-9), 1)


def test_embeddings_that_are_not_finite_are_an_error(dataset: FaceDataset) -> None:
    with pytest.raises(UserError, match=r"bag 0: the embeddings of 20 of 20 images are not finite, .* record \d+; try"):
        take(make_loader(dataset, embed=lambda images: embed(images) * np.nan), 1)


def spoilt(dataset: FaceDataset, images: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """An embedding that is not finite for these images of the set."""
    keys = {dataset.load(i)[1].transpose(2, 0, 1).tobytes() for i in images.tolist()}

    def embed_spoilt(batch: np.ndarray) -> np.ndarray:
        bad = np.array([image.tobytes() in keys for image in batch])[:, None]
        return np.where(bad, np.float32(np.inf), embed(batch))

    return embed_spoilt


def test_images_whose_embeddings_are_not_finite_are_left_out_by_all_processes_alike(
        dataset: FaceDataset, caplog: pytest.LogCaptureFixture) -> None:
    bad, asked = Bags(dataset, 3, 20, 0).images(0)[[0, 7, 8]], []

    def judge(bag: int, records: np.ndarray, labels: np.ndarray, features: np.ndarray) -> str:
        asked.append((bag, records[~np.isfinite(features).all(axis=1)].tolist()))
        assert (dataset.labels()[records - 1] == labels).all()
        return f"left out of bag {bag}"

    def process(communicator: Thread) -> list[Batch]:
        rank = communicator.rank
        return take(make_loader(dataset, part=(6 * rank, 6 * rank + 6), embed=spoilt(dataset, bad), judge=judge,
                                gather=communicator.all_gather), 3)

    with caplog.at_level(logging.INFO):
        first, second = together(process, 2)
    assert asked.count((0, (bad + 1).tolist())) == 2 and len(first) == len(second) == 3
    used = np.concatenate([batch.records for batch in first + second])
    assert not set(used.tolist()) & set((bad + 1).tolist())
    assert "left out of bag 0" in caplog.text
    assert "bag 0: 20 images of 8 identities, 3 left out that have embeddings that are not finite, " in caplog.text


def test_too_few_images_left_end_the_run(dataset: FaceDataset) -> None:
    images = Bags(dataset, 3, 20, 0).images(0)
    for left in (0, 1, 2):
        with pytest.raises(UserError, match=rf"^the line; the {left} images left hold no triplet$"):
            take(make_loader(dataset, embed=spoilt(dataset, images[left:]), judge=lambda *_: "the line"), 1)


def test_embeddings_of_zeros_are_said_and_end_the_run(dataset: FaceDataset, caplog: pytest.LogCaptureFixture) -> None:
    loader = make_loader(dataset, embed=lambda images: embed(images) * 0, start=Position(3, 0))
    with caplog.at_level(logging.INFO), pytest.raises(
            UserError, match=r"^bags 3 to 12: no image has an embedding other than zero, so there are no triplets"):
        take(loader, 1)
    assert "bag 3: 20 images of 8 identities, 20 left out that have embeddings of nothing but zeros, 0" in caplog.text


def test_an_image_that_cannot_be_read_names_its_record(make_set: Callable[..., Path]) -> None:
    dataset = open_dataset(make_set(counts=(3, 3), bodies={4: b"not an image"}))
    with pytest.raises(UserError, match="record 5"):
        take(make_loader(dataset, global_batch=3, device_batch=3), 1)


def test_lay_out_drops_what_does_not_fill_a_batch() -> None:
    triplets = np.arange(15).reshape(5, 3)
    assert lay_out(triplets, 0, 12, 6).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert lay_out(triplets, 3, 6, 6).tolist() == [0, 1, 2, 3, 6, 4, 7, 5, 8, 9, 12, 10, 13, 11, 14]
