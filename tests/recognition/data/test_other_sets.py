# SPDX-License-Identifier: Apache-2.0
"""Sets that are no records: a folder of folders read in place, what is made up, several sets as one."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from common.pack_folder import main as pack_folder
from recognition.data.augment import Augmentation
from recognition.data.loader import Batch, BatchLoader
from recognition.data.order import BEGINNING, Position
from recognition.data.records.bad_records import BadRecords
from recognition.data.sets import folder_set
from recognition.data.sets.dataset import open_dataset
from recognition.data.sets.folder_index import list_images, read_index, write_index
from recognition.data.sets.folder_set import FolderSet, open_folder
from recognition.data.sets.image_set import ImageSet
from recognition.data.sets.open_set import Opening, open_set, open_sets
from recognition.data.sets.synthetic_set import FEWEST_IMAGES
from recognition.data.triplets import Bags, TripletLoader
from recognition.errors import UserError

EVERYTHING = Augmentation(cutoff=40, color=2)


@pytest.fixture
def photos(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> Path:
    """Three people with 2, 3 and 4 pictures, one of them deeper and one of another size; and what is no picture."""
    root, number = tmp_path / "photos", 0
    for person, count in (("s2", 2), ("s10", 3), ("anna", 4)):
        (root / person / "more").mkdir(parents=True)
        for i in range(count):
            place = root / person / ("more" if i == 2 else "") / f"{i}.jpg"
            place.write_bytes(make_jpeg(number, (150, 100) if (person, i) == ("anna", 3) else (112, 112)))
            number += 1
    (root / "nobody").mkdir()
    (root / "s2" / "notes.txt").write_text("a note")
    (root / "beside.png").write_bytes(b"")
    settle(root)
    return root


def settle(root: Path) -> None:
    """Let the folders look as if they had not been touched for long."""
    for folder, _, _ in os.walk(root):
        os.utime(folder, (1, 1))


def opened(root: Path, **options: object) -> FolderSet:
    return open_set(str(root), Opening(on_bad_record="stop", **options))  # type: ignore[arg-type, return-value]


def batches(dataset: ImageSet, count: int, batch: int = 4, start: Position = BEGINNING, threads: int = 2,
            seed: int = 3) -> list[Batch]:
    with BatchLoader(dataset, dataset.order(seed), EVERYTHING, batch, start=start, threads=threads) as loader:
        return list(islice(loader, count))


def same(left: Iterable[Batch], right: Iterable[Batch]) -> bool:
    return all(np.array_equal(a.images, b.images) and np.array_equal(a.labels, b.labels)
               and np.array_equal(a.records, b.records) for a, b in zip(left, right))


def test_a_folder_has_the_images_and_labels_that_packing_gives(photos: Path, tmp_path: Path) -> None:
    """Aligned JPEGs have the same pixels; one of another size is not compressed again, as packing does, at quality 95:
    its mean difference stays below 4 of 255."""
    assert pack_folder([str(photos), str(tmp_path / "packed")]) == 0
    packed, here = open_dataset(tmp_path / "packed"), opened(photos)
    assert here.num_classes == packed.num_classes == 3 and here.image_shape == packed.image_shape
    assert here.labels().tolist() == packed.labels().tolist()
    for i in range(9):
        label, image, key = here.load(i)
        expected_label, expected, _ = packed.load(i)
        assert (label, key) == (expected_label, i)
        near = np.abs(image.astype(int) - expected).mean()
        assert near == 0 or (near < 4 and here.listing.path(i).parts[-2:] == ("anna", "3.jpg")), i


def test_what_is_said_about_a_folder(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    opened(photos)
    assert "left out: " in caplog.text
    for words in ("1 files that end in .txt", "1 images beside the folders of people", "1 people without images",
                  "9 images of 3 people, read in place; listed in", f"kept in {photos}.images.npz",
                  "1 of 9 images looked at are not 112 x 112 (the first: 150 x 100): such are scaled whole onto black"):
        assert words in caplog.text, words


def test_the_index_holds_until_a_folder_changes(photos: Path, caplog: pytest.LogCaptureFixture,
                                                make_jpeg: Callable[..., bytes]) -> None:
    caplog.set_level("INFO")
    first, index = opened(photos), photos.with_name("photos.images.npz")
    written = index.stat().st_mtime_ns
    caplog.clear()
    again = opened(photos)
    assert f"as listed in {index}" in caplog.text and index.stat().st_mtime_ns == written
    assert again.digest() == first.digest() and [again.listing.path(i) for i in range(9)] == [
        first.listing.path(i) for i in range(9)]
    (photos / "s10" / "more" / "new.jpg").write_bytes(make_jpeg(77))
    assert len(opened(photos)) == 10 and opened(photos).digest() != first.digest()
    (photos / "s10" / "more" / "new.jpg").unlink()
    assert opened(photos).digest() == first.digest()


def test_a_folder_that_changed_a_moment_ago_is_listed_again(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Within the grain of a clock a file may come after the walk and leave the folder's time as it was."""
    caplog.set_level("INFO")
    os.utime(photos / "s2")
    for _ in range(2):
        caplog.clear()
        opened(photos)
        assert "listed in " in caplog.text and "as listed" not in caplog.text


def test_an_index_elsewhere_where_there_is_no_place_beside(photos: Path, tmp_path: Path) -> None:
    """A link and a file that is not ours stay as they are; processes but the first write nothing."""
    other, index = tmp_path / "run", photos.with_name("photos.images.npz")
    opened(photos, index_folder=other, writes=False)
    assert not index.exists() and not other.exists()
    index.write_text("somebody's own")
    opened(photos, index_folder=other)
    assert index.read_text() == "somebody's own" and (other / "photos.images.npz").is_file()
    assert read_index(other / "photos.images.npz", photos).changed() == ""
    index.unlink()
    index.symlink_to(tmp_path / "nowhere")
    (other / "photos.images.npz").unlink()
    opened(photos, index_folder=other)
    assert not (tmp_path / "nowhere").exists() and (other / "photos.images.npz").is_file()


@pytest.mark.parametrize("field, value", [
    ("places", [9] * 9), ("places", [-1] * 9), ("labels", [3] * 9), ("labels", [0] * 8),
    ("files", "../../x"), ("folders", "../s2")])
def test_an_index_is_not_believed(photos: Path, field: str, value: object, tmp_path: Path) -> None:
    listing, path = list_images(photos), tmp_path / "bad.npz"
    write_index(path, listing)
    assert read_index(path, photos).digest() == listing.digest()
    with np.load(path) as file:
        arrays = dict(file)
    if isinstance(value, str):
        text = arrays[f"{field}_text"].copy()
        place = int(arrays[f"{field}_ends"][0])  # of the second name, where the first is the empty one of the root
        text[place : place + len(value)] = np.frombuffer(value.encode(), np.uint8)
        arrays[f"{field}_text"] = text
    else:
        arrays[field] = np.array(value, np.int32)
    np.savez(path, **arrays)
    with pytest.raises(ValueError):
        read_index(path, photos)


@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_folder_goes_on_from_any_position(photos: Path, done: int) -> None:
    dataset = opened(photos)
    whole = batches(dataset, 6)
    assert same(batches(opened(photos), 6 - done, start=whole[done - 1].next_position, threads=3), whole[done:])


def test_a_broken_image_is_replaced_or_ends_the_run(photos: Path) -> None:
    (photos / "s2" / "1.jpg").write_bytes(b"no image")
    settle(photos)
    with pytest.raises(UserError, match=r"s2/1.jpg: its 8 bytes are not an image"):
        opened(photos).usable(1 + 4)  # anna is first, then s2
    skipping = open_set(str(photos), Opening(bad_record_share=0.2))
    assert skipping.usable(5)[2] == 6 and len(skipping.bad) == 1


def test_an_image_that_goes_while_it_is_read_ends_the_run(photos: Path) -> None:
    skipping = open_set(str(photos), Opening(bad_record_share=1))
    (photos / "s2" / "1.jpg").unlink()
    with pytest.raises(UserError, match=r"s2/1.jpg: gone since .*photos was listed, expected a folder that stays"):
        skipping.usable(5)


def test_images_filter_of_a_folder(photos: Path) -> None:
    assert opened(photos, images_filter=3).labels().tolist() == [0] * 4 + [2] * 3
    with pytest.raises(UserError, match="data_images_filter 9 leaves none"):
        opened(photos, images_filter=9)


def test_an_order_of_its_own_is_for_records_alone(photos: Path) -> None:
    with pytest.raises(UserError, match=r"is_shuffled_rec: found True, but .*photos is no file of records"):
        opened(photos, shuffled=True)


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "empty" / "person").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no train.rec there, .* or a folder with a folder of images for each person"):
        opened(tmp_path / "empty")


def test_names_that_are_no_text(photos: Path, make_jpeg: Callable[..., bytes], tmp_path: Path) -> None:
    (photos / os.fsdecode(b"s1\xff")).mkdir()
    (photos / os.fsdecode(b"s1\xff") / os.fsdecode(b"\xfe.jpg")).write_bytes(make_jpeg(5))
    settle(photos)
    assert len(opened(photos)) == len(opened(photos)) == 10
    assert all(opened(photos).listing.path(i).is_file() for i in range(10))


def test_what_is_made_up_is_a_function_of_the_seed_and_the_image() -> None:
    one, again, other = (open_set("synthetic:7", Opening(seed=seed)) for seed in (1, 1, 2))
    assert len(one) == FEWEST_IMAGES and one.num_classes == 7
    assert one.labels()[:9].tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1] and len(one.labels()) == len(one)
    assert same(batches(one, 3), batches(again, 3, threads=3)) and not same(batches(one, 1), batches(other, 1))
    images = [one.load(i)[1] for i in range(50)]
    assert images[0].shape == (112, 112, 3) and len({image.tobytes() for image in images}) == 50
    assert abs(np.mean(images) - 127.5) < 1  # noise of all values: 1.9 million numbers, 0.05 is one standard error
    assert one.digest() != open_set("synthetic:8", Opening()).digest()


def test_ten_images_of_each_of_many_identities_that_are_made_up() -> None:
    assert len(open_set("synthetic:20000", Opening())) == 200000


@pytest.fixture
def pair(photos: Path, make_set: Callable[..., Path]) -> list[str]:
    """A folder of 9 images of 3 people, then records of 8 images of 3 identities."""
    return [str(photos), str(make_set(counts=(3, 1, 4)))]


def joined(places: list[str], *weights: float) -> ImageSet:
    return open_sets(places, weights, Opening())


def test_identities_of_several_sets_are_kept_apart(pair: list[str]) -> None:
    whole, parts = joined(pair), [open_set(place, Opening()) for place in pair]
    assert len(whole) == 17 and whole.num_classes == 6 and [len(part) for part in whole.parts] == [9, 8]
    assert whole.labels().tolist() == [*parts[0].labels(), *(parts[1].labels() + 3)]
    for i in range(17):
        label, image, key = whole.load(i)
        alone = parts[0].load(i) if i < 9 else parts[1].load(i - 9)
        assert (label, key) == (alone[0] + 3 * (i >= 9), i) and np.array_equal(image, alone[1])
    assert joined(pair).digest() == whole.digest() != joined(pair[::-1]).digest()
    assert whole.take(np.array([16, 0])).labels().tolist() == [whole.labels()[16], whole.labels()[0]]


@pytest.mark.parametrize("weights, counts", [((), (9, 8)), ((2, 1), (18, 8)), ((1, 0.5), (9, 4)),
                                             ((1.5, 0.25), (13, 2)), ((0.1, 3), (1, 24)), ((0.001, 1), (1, 8))])
def test_weights_say_how_often_an_epoch_visits_the_images_of_a_set(pair: list[str], weights: tuple[float, ...],
                                                                  counts: tuple[int, int]) -> None:
    """Whole copies of all images, and of a fraction a part that each epoch draws anew: over many epochs each image
    comes up equally often, within four standard deviations of a binomial."""
    dataset, epochs, seen = joined(pair, *weights), 300, np.zeros(17, int)
    order = dataset.order(5)
    assert order.num_images == sum(counts) and order.of == len(dataset)
    for epoch in range(epochs):
        found = dataset.keys[order.permutation(epoch)]
        assert (np.bincount(found >= 9, minlength=2) == counts).all()
        seen += np.bincount(found, minlength=17)
    for share, part in zip(np.array(counts) / (9, 8), (seen[:9], seen[9:])):
        rest = share % 1
        assert (np.abs(part - epochs * share) <= 4 * np.sqrt(epochs * rest * (1 - rest))).all()
    assert not np.array_equal(order.permutation(0), order.permutation(1))
    assert np.array_equal(order.permutation(3), joined(pair, *weights).order(5).permutation(3))


def test_copies_of_an_image_look_different(pair: list[str]) -> None:
    found = batches(joined(pair, 4, 1), 11)
    looks = [batch.images[row].tobytes() for batch in found for row in np.flatnonzero(batch.records == 0)]
    assert len(looks) == len(set(looks)) == 4


@pytest.mark.parametrize("done", [1, 5, 8])
def test_several_sets_go_on_from_any_position(pair: list[str], done: int) -> None:
    whole = batches(joined(pair, 1.5, 0.5), 10)
    assert [batch.epoch for batch in whole] == [0] * 4 + [1] * 4 + [2] * 2
    rest = batches(joined(pair, 1.5, 0.5), 10 - done, start=whole[done - 1].next_position, threads=1)
    assert same(rest, whole[done:])


def test_bad_images_of_several_sets(photos: Path, make_set: Callable[..., Path]) -> None:
    """The next image of all takes the place of one, and the share is of all."""
    places = [str(photos), str(make_set(counts=(3, 1, 4), bodies={7: b"no image"}))]
    with pytest.raises(UserError, match=r"record 8: its 8 bytes are not an image"):
        open_sets(places, (), Opening(on_bad_record="stop")).usable(16)
    skipping = open_sets(places, (), Opening())
    assert skipping.usable(16)[2] == 0 and skipping.bad.most == 1  # 0.01 of 17, rounded up
    (photos / "s2" / "1.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"2 of 17 records cannot be used .*, expected at most 1"):
        skipping.usable(5)


def test_sets_of_different_sizes_are_refused(pair: list[str]) -> None:
    Path(pair[1], "property").write_text("3,96,96\n")
    with pytest.raises(UserError, match=r"images of 96x96x3, but .*photos has 112x112x3, expected one size"):
        joined(pair)


def test_a_weight_changes_the_digest_by_which_a_run_goes_on(pair: list[str]) -> None:
    assert len({joined(pair, *weights).digest() for weights in ((), (2, 1), (1, 0.5), (1, 0.25))}) == 4


@pytest.mark.parametrize("num_classes, said, counted", [
    (0, "3 identities by the highest label", 3), (5, "5 identities by num_classes of the configuration", 5)])
def test_records_without_a_property_file(make_set: Callable[..., Path], caplog: pytest.LogCaptureFixture,
                                         num_classes: int, said: str, counted: int) -> None:
    caplog.set_level("INFO")
    folder = make_set("sequential")
    (folder / "property").unlink()
    dataset = open_set(str(folder), Opening(num_classes=num_classes))
    assert dataset.num_classes == counted
    assert f"{folder}: no property file there: {said}, images of 112 x 112" in caplog.text
    dataset.check_labels()
    assert dataset.labels().tolist() == [0] * 3 + [1] + [2] * 4 and len(batches(dataset, 2)) == 2


def test_a_set_of_mxnets_im2rec(photos: Path, tmp_path: Path, mx: object) -> None:
    """Written as im2rec does: numbers and labels of a shuffled list, IRHeader of one label, no property."""
    from recognition.engines.mxnet.imports import mx as mxnet

    images = sorted(path for path in photos.rglob("*.jpg") if "3.jpg" not in path.name)
    folder = tmp_path / "im2rec"
    folder.mkdir()
    writer = mxnet.recordio.MXIndexedRecordIO(str(folder / "train.idx"), str(folder / "train.rec"), "w")
    for number in (3, 1, 0, 2, 7, 5, 6, 4):
        header = mxnet.recordio.IRHeader(0, float(number % 3), number, 0)
        writer.write_idx(number, mxnet.recordio.pack(header, images[number].read_bytes()))
    writer.close()
    dataset = open_set(str(folder), Opening())
    assert dataset.num_classes == 3 and dataset.labels().tolist() == [n % 3 for n in range(8)]
    assert [dataset.load(i)[2] for i in range(8)] == list(range(8))


def test_a_label_that_cannot_be_in_a_set_without_property(make_set: Callable[..., Path]) -> None:
    folder = make_set("sequential", labels={2: float("nan")})
    (folder / "property").unlink()
    with pytest.raises(UserError, match=r"record 2: label nan, expected a whole number"):
        open_set(str(folder), Opening(on_bad_record="stop"))


def test_the_index_is_kept_nowhere_if_it_cannot_be(photos: Path, caplog: pytest.LogCaptureFixture,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise UserError("full")

    caplog.set_level("INFO")
    monkeypatch.setattr(folder_set, "write_index", full)
    dataset = open_folder(photos, 112, BadRecords(), [photos.with_name("photos.images.npz")], True)
    assert len(dataset) == 9 and "kept nowhere: no place for its index can be written" in caplog.text


def test_triplets_of_a_folder_and_of_several_sets(pair: list[str]) -> None:
    """Anchors and positives of one identity, negatives of another, across sets, too; the same again for the seed."""
    def triplets(dataset: ImageSet) -> list[np.ndarray]:
        def embed(images: np.ndarray) -> np.ndarray:
            return images.mean(axis=(2, 3)).astype(np.float32) - 127

        bags = Bags(dataset, 4, 7200, 1)
        with TripletLoader(dataset, bags, embed, EVERYTHING, 4.0, 0.0, 6, 6) as loader:
            return [batch.labels for batch in islice(loader, 4)]

    for dataset in (open_set(pair[0], Opening()), joined(pair)):
        found = triplets(dataset)
        for labels in found:
            anchors, positives, negatives = labels.reshape(3, 2)
            assert (anchors == positives).all() and (anchors != negatives).all()
        assert all(map(np.array_equal, found, triplets(dataset)))
