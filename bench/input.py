# SPDX-License-Identifier: Apache-2.0
"""Compares images a second from records to batches: our loader, MXNet's ImageRecordIter, and the recipes' iterator.

    python -m bench.input [--data FOLDER] [--images 4096] [--batch 128] [--threads 2] [--repeats 8] [--networks y1 r50]

Without --data, JPEG records of about 7 KB are made up. The readers take turns, and each figure is the best of all
repeats; the processor's time for an image shows how far other programs slowed it down. With --networks it also measures
the wait for data as a share of a training step of 32 images.
"""
from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from bench.ratios import bench_parser, write_ratios
from recognition.config.devices import CPU, share_processors
from recognition.data.augment import Augmentation
from recognition.data.degrade import ARCFACE
from recognition.data.loader import BatchLoader
from recognition.data.records.recordio import RecordWriter, pack_record
from recognition.data.sets.dataset import FaceDataset, open_dataset
from recognition.data.sets.image_set import ImageSet
from recognition.data.sets.open_set import Opening, open_set

share_processors(CPU, os.environ)  # before MXNet is imported, which reads its number of threads then
from recognition.engines.mxnet.imports import mx  # noqa: E402


def made_up_jpeg(chance: np.random.RandomState) -> bytes:
    """A JPEG of smooth colours with grain, which takes as long to decode as a face of the same size in bytes."""
    colours = chance.randint(0, 256, (10, 10, 3)).astype(np.float32)
    image = cv2.resize(colours, (112, 112), interpolation=cv2.INTER_CUBIC) + chance.normal(0, 6, (112, 112, 3))
    encoded = cv2.imencode(".jpg", np.clip(image, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
    return encoded.tobytes()


def write_records(folder: Path, images: int, source: FaceDataset | None) -> FaceDataset:
    """Write a set without a header record, which all readers can read."""
    chance = np.random.RandomState(0)
    made_up = [made_up_jpeg(chance) for _ in range(200)]
    with RecordWriter(folder / "train.rec", folder / "train.idx") as writer:
        for n in range(images):
            body = source.read(n % len(source))[1] if source else made_up[n % len(made_up)]
            writer.write(n, pack_record(n % 10, body, n))
    (folder / "property").write_text("10,112,112\n")
    return open_dataset(folder)


def write_folder(folder: Path, dataset: FaceDataset) -> ImageSet:
    """The same images as files, a folder for each class."""
    for i in range(len(dataset)):
        label, body, _ = dataset.read(i)
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        (folder / str(label) / f"{i}.jpg").write_bytes(body)
    return open_set(str(folder), Opening())


def decode_only(dataset: FaceDataset, images: int, threads: int) -> None:
    """Run cv2.imdecode on bytes in memory and nothing else: an upper bound for the loader."""
    encoded = [np.frombuffer(dataset.read(i)[1], np.uint8) for i in range(min(images, len(dataset)))]

    def decode(part: list[np.ndarray]) -> None:
        for data in part:
            cv2.imdecode(data, cv2.IMREAD_COLOR)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode, [encoded[n::threads] for n in range(threads)]))


def decode_in_processes(dataset: FaceDataset, images: int, processes: int) -> None:
    """Run cv2.imdecode in forked processes, which return no pixels: an upper bound for processes instead of threads."""
    fork = multiprocessing.get_context("fork")
    share = -(-images // processes)
    workers = [fork.Process(target=decode_only, args=(dataset, share, 1)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def our_loader(dataset: ImageSet, images: int, batch: int, threads: int, augmentation: Augmentation | None) -> None:
    with BatchLoader(dataset, dataset.order(0), augmentation, batch, threads=threads) as loader:
        for _ in islice(loader, images // batch):
            pass


def image_record_iter(dataset: FaceDataset, images: int, batch: int, threads: int) -> None:
    """Read by MXNet's ImageRecordIter with the recipes' settings for shuffled sets."""
    iterator = mx.io.ImageRecordIter(
        path_imgrec=str(dataset.path / "train.rec"), data_shape=(3, 112, 112), batch_size=batch, rand_mirror=True,
        preprocess_threads=threads, shuffle=True, shuffle_chunk_size=1024, verbose=False)
    for data in islice(iterator, images // batch):
        data.data[0].wait_to_read()


def recipe_iterator(dataset: FaceDataset, images: int, batch: int) -> None:
    """Read like the recipes' FaceImageIter: for each image read_idx, mx.image.imdecode, flip, transpose, copy."""
    records = mx.recordio.MXIndexedRecordIO(str(dataset.path / "train.idx"), str(dataset.path / "train.rec"), "r")
    keys = list(records.keys)
    random.Random(0).shuffle(keys)
    for start in range(0, images // batch * batch, batch):
        data, labels = mx.nd.empty((batch, 3, 112, 112)), mx.nd.empty((batch,))
        for row, key in enumerate(keys[start:start + batch]):
            header, encoded = mx.recordio.unpack(records.read_idx(key))
            image = mx.image.imdecode(encoded)
            if row % 2:
                image = mx.nd.flip(image, axis=1)
            data[row][:] = mx.nd.transpose(image, axes=(2, 0, 1))
            labels[row][:] = header.label
        data.wait_to_read()


@dataclasses.dataclass
class Reader:
    """A method of reading images. Slow ones read one in ``part`` of them, so that all rounds are short."""

    run: Callable[[int], None]  # with a number of images
    part: int = 1
    rate: float = 0.0  # images a second, the best round
    cpu: float = float("inf")  # microseconds of all processors for an image, the least of the rounds


def measure(readers: dict[str, Reader], images: int, repeats: int) -> None:
    """Fill in ``rate`` and ``cpu`` in rounds, in which the readers take turns."""
    for _ in range(repeats):
        for reader in readers.values():
            count = images // reader.part
            start, busy = time.perf_counter(), sum(os.times()[:4])
            reader.run(count)
            reader.rate = max(reader.rate, count / (time.perf_counter() - start))
            reader.cpu = min(reader.cpu, (sum(os.times()[:4]) - busy) / count * 1e6)


def wait_for_data(network: str, dataset: FaceDataset, threads: int) -> tuple[float, float]:
    """The median seconds of a training step of 32 images, and of the wait for its batch."""
    from recognition.config.cli import parse_args
    from recognition.data.order import Position
    from recognition.engines.choose import choose_engine
    from recognition.networks import build_symbol
    from recognition.processes.communicator import SingleProcess
    from recognition.training.parts import make_backbone, make_head, make_loader

    config = dataclasses.replace(
        parse_args("train_parall", ["--network", network, "--per-batch-size", "32", "--devices", "cpu"], environ={}),
        dataset_path=str(dataset.path), num_classes=dataset.num_classes, decode_threads=threads, count_flops=False)
    engine, alone = choose_engine(), SingleProcess()
    backbone = make_backbone(config, build_symbol(config), engine, alone)
    head = make_head(config, dataset.num_classes, engine, alone)
    times, waits = [], []
    with make_loader(config, dataset, backbone, alone, Position(0, 0), {}) as batches:
        for _ in range(5):
            start = time.perf_counter()
            batch = next(batches)
            waits.append(time.perf_counter() - start)
            features = backbone.forward(batch.images)
            backbone.backward(head.forward_backward(features, batch.labels).d_features)
            head.step(0.1)
            backbone.step(0.1)
            times.append(time.perf_counter() - start)
    return float(np.median(times[1:])), float(np.median(waits[1:]))


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--data", type=Path, help="folder of a training set of 112 x 112 images to take them from")
    parser.add_argument("--images", type=int, default=4096, help="images that each reader reads in a round")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--networks", nargs="*", default=[], help="for the wait for data as a share of a step")
    args = parser.parse_args()
    images, batch, threads = args.images // args.batch * args.batch, args.batch, args.threads
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_records(Path(folder), images, open_dataset(args.data) if args.data else None)
        noise = np.random.RandomState(0).normal(0, 3, (images, 5, 2))
        landmarks = (ARCFACE + noise).astype(np.float16)
        augmentations = {
            "no augmentation": None, "mirror": Augmentation(), "mirror, cutoff 32": Augmentation(cutoff=32),
            "mirror, colour 1": Augmentation(color=1), "mirror, colour 2": Augmentation(color=2),
            "mirror, arcface_torch's dali_aug": Augmentation(resize=0.1, blur=0.2, hsv=0.2, grey=0.1),
            "mirror, dali_aug, each on all": Augmentation(resize=1, blur=1, hsv=1, grey=1),
            "mirror, masks on all": Augmentation(mask=1),
            "mirror, masks by landmarks on all": Augmentation(mask=1, landmarks=landmarks)}
        readers = {
            "recipe, mx.image": Reader(lambda count: recipe_iterator(dataset, count, batch), part=8),
            "ImageRecordIter": Reader(lambda count: image_record_iter(dataset, count, batch, threads), part=2),
            "cv2.imdecode only, 1 thread": Reader(lambda count: decode_only(dataset, count, 1), part=2),
            f"cv2.imdecode only, {threads} threads": Reader(lambda count: decode_only(dataset, count, threads)),
            f"cv2.imdecode only, {threads} processes": Reader(
                lambda count: decode_in_processes(dataset, count, threads)),
        }
        for name, augmentation in augmentations.items():
            readers[f"BatchLoader, {name}"] = Reader(
                partial(our_loader, dataset, batch=batch, threads=threads, augmentation=augmentation))
        others = {"a folder of images": write_folder(Path(folder, "files"), dataset),
                  "synthetic:1000": open_set("synthetic:1000", Opening())}
        for name, other in others.items():
            readers[f"BatchLoader, {name}, mirror"] = Reader(
                partial(our_loader, other, batch=batch, threads=threads, augmentation=Augmentation()))
        measure(readers, images, args.repeats)
        size = (dataset.path / "train.rec").stat().st_size / images
        print(f"{images} JPEG records of {size:.0f} bytes, batches of {batch}, {threads} threads, "
              f"OpenCV {cv2.__version__}")
        print(f"{'':40s}{'images/s':>10s}{'ratio':>8s}{'CPU us an image':>18s}")
        recipe = readers["recipe, mx.image"].rate
        for name, reader in readers.items():
            print(f"{name:40s}{reader.rate:10.0f}{reader.rate / recipe:8.1f}{reader.cpu:18.1f}")
        ratios = {name: reader.rate / recipe for name, reader in readers.items()}
        for network in args.networks:
            step, wait = wait_for_data(network, dataset, threads)
            print(f"{network}: {1000 * step:.0f} ms a step of 32 images, {1000 * wait:.2f} ms of them waiting for data "
                  f"({wait / step:.2%})", flush=True)
            ratios[f"{network}, step with the wait for data"] = step / (step - wait)
    write_ratios(args.json, ratios)


if __name__ == "__main__":
    main()
