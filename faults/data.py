# SPDX-License-Identifier: Apache-2.0
"""Many trials with training sets that are damaged, or written to while they are read.

    python -m faults.data [--times 100] [--record]

Damage to a training set of 200 images is tried with both policies. With ``skip`` two epochs must end, with the same
bits for another number of threads, or in one line. With ``stop`` the only error may be the one line.
"""
from __future__ import annotations

import contextlib
import logging
import os
import struct
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np

from faults.reliability import Row, report
from recognition.config.command_line import Parser
from recognition.data.augment import Augmentation
from recognition.data.loader import BatchLoader
from recognition.data.order import EpochOrder
from recognition.data.records.recordio import RecordWriter, pack_record
from recognition.data.sets.dataset import open_dataset
from recognition.errors import UserError, command

IMAGES, CLASSES, BATCH = 200, 10, 20
SKIPPED = "two epochs with the same bits for any number of threads, or one line; no crash, no endless loop"
Random = np.random.RandomState


class Set:
    """The good set, in memory, and a folder for its damaged copies."""

    def __init__(self, folder: Path) -> None:
        random, self.folder = Random(0), folder
        self.image = cv2.resize(random.randint(0, 256, (8, 8, 3)).astype(np.uint8), (112, 112))
        self.write({}, {})
        self.records = (folder / "train.rec").read_bytes()
        self.index = (folder / "train.idx").read_bytes()
        self.offsets = [int(line.split(b"\t")[1]) for line in self.index.splitlines()]

    def jpeg(self, *options: int, image: np.ndarray | None = None, ending: str = ".jpg") -> bytes:
        return cv2.imencode(ending, self.image if image is None else image, list(options))[1].tobytes()

    def write(self, bodies: dict[int, bytes], labels: dict[int, float]) -> None:
        """Write a sequential set with some given images and labels."""
        for name in ("train.rec", "train.idx"):
            (self.folder / name).unlink(missing_ok=True)
        with RecordWriter(self.folder / "train.rec", self.folder / "train.idx") as writer:
            for i in range(IMAGES):
                body = bodies.get(i) or self.jpeg(image=np.roll(self.image, 3 * i, axis=1))
                writer.write(i, pack_record(labels.get(i, i * CLASSES // IMAGES), body, i))
        (self.folder / "property").write_text(f"{CLASSES},112,112\n")

    def damage(self, records: bytes | None = None, index: bytes | None = None) -> None:
        (self.folder / "train.rec").write_bytes(self.records if records is None else records)
        (self.folder / "train.idx").write_bytes(self.index if index is None else index)

    def epochs(self, policy: str, threads: int) -> list[Any]:
        """The content of two epochs, for comparison."""
        dataset = open_dataset(self.folder, on_bad_record=policy, bad_record_share=0.05)
        order, count = EpochOrder(len(dataset), 1), 2 * (len(dataset) // BATCH)
        dataset.check_labels()
        with BatchLoader(dataset, order, Augmentation(), BATCH, threads=threads) as loader:
            found = [(batch.images.tobytes(), batch.labels.tolist(), batch.records.tolist())
                     for batch in islice(loader, count)]
        dataset.close()
        return found


Damage = Callable[[Set, Random], None]


def _patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new):]


def flip_bits(data: Set, random: Random) -> None:
    records = bytearray(data.records)
    for at in random.randint(0, len(records), random.randint(1, 4)):
        records[at] ^= 1 << random.randint(8)
    data.damage(bytes(records))


def truncate(data: Set, random: Random) -> None:
    data.damage(data.records[: random.randint(len(data.records))])


def truncate_a_little(data: Set, random: Random) -> None:
    data.damage(data.records[: -random.randint(1, 20_000)])


def wrong_offsets(data: Set, random: Random) -> None:
    lines = data.index.splitlines()
    for i in random.randint(0, IMAGES, 3):
        lines[i] = b"%d\t%d" % (i, random.choice([0, 13, 1 << 40, len(data.records) - 3, random.randint(1 << 20)]))
    data.damage(index=b"\n".join(lines) + b"\n")


def keys_again(data: Set, random: Random) -> None:
    lines = data.index.splitlines()
    data.damage(index=b"\n".join([*lines, *(lines[i] for i in random.randint(0, IMAGES, 3))]) + b"\n")


def lengths(data: Set, random: Random) -> None:
    at = data.offsets[random.randint(IMAGES)]
    word = random.choice([0, 1, 23, 24, (1 << 29) - 1, 1 << 29, 2 << 29 | 99, 3 << 29, 0xFFFFFFFF])
    data.damage(_patched(data.records, at + 4, struct.pack("<I", int(word))))


def no_images(data: Set, random: Random) -> None:
    bodies = [random.bytes(500), b"", b"\xff\xd8\xff\xe0", b"GIF89a" + bytes(20), data.jpeg()[:200],
              data.jpeg(image=np.zeros((5000, 8), np.uint8)), data.jpeg(image=np.zeros((3, 400, 3), np.uint8))]
    data.write({i: bodies[random.randint(len(bodies))] or b"x" for i in random.randint(0, IMAGES, 3).tolist()}, {})


def lost_blocks(data: Set, random: Random) -> None:
    """Zero some blocks of train.rec, as if a disk or a copy lost them; decoders fill such an image with grey."""
    size = int(random.choice([512, 4096]))
    at = random.randint(len(data.records) // size) * size
    data.damage(_patched(data.records, at, bytes(size)))


def other_images(data: Set, random: Random) -> None:
    """Replace images by other ones, which can be used."""
    exif = b"\xff\xe1" + struct.pack(">H", 34) + b"Exif\0\0" + b"II*\0" + struct.pack(
        "<IHHHIHHI", 8, 1, 0x0112, 3, 1, random.randint(1, 9), 0, 0)
    big = cv2.resize(data.image, (random.randint(20, 800),) * 2)
    bodies = [data.jpeg(image=big), data.jpeg(cv2.IMWRITE_JPEG_PROGRESSIVE, 1), data.jpeg(image=data.image[..., 0]),
              data.jpeg()[:2] + exif + data.jpeg()[2:], data.jpeg(ending=".webp"),
              data.jpeg(ending=".png", image=data.image.astype(np.uint16) * 257),
              data.jpeg(ending=".png", image=np.dstack([data.image, data.image[..., :1]]))]
    data.write({i: bodies[random.randint(len(bodies))] for i in random.randint(0, IMAGES, 20).tolist()}, {})


def labels(data: Set, random: Random) -> None:
    values = [float("nan"), float("inf"), -1.0, -0.5, CLASSES, 1e9, 3.5, -float("inf")]
    data.write({}, {i: values[random.randint(len(values))] for i in random.randint(0, IMAGES, 3).tolist()})


DAMAGES: dict[str, Damage] = {
    "one to three bits of train.rec flipped": flip_bits, "train.rec cut short anywhere": truncate,
    "the last records cut off": truncate_a_little, "512 or 4,096 bytes of train.rec that are zeros": lost_blocks,
    "wrong offsets in train.idx": wrong_offsets,
    "keys that stand twice in train.idx": keys_again, "zero, short and huge lengths, parts out of order": lengths,
    "records that are no JPEG, cut, or of another shape": no_images,
    "other sizes, grey, progressive, EXIF-turned, 16-bit, transparent, WebP": other_images,
    "labels NaN, infinite, negative, fractional, too large": labels}


def try_damage(data: Set, name: str, damage: Damage, times: int) -> Row:
    kept = ended = refused = 0
    for n in range(times):
        damage(data, Random(n))
        try:
            ended += (same := data.epochs("skip", 1) == data.epochs("skip", 4))
            kept += same
        except UserError:
            refused += 1
            kept += 1
        with contextlib.suppress(UserError):
            data.epochs("stop", 2)
    return Row(name, times, SKIPPED, kept, f"{ended} went on with stand-ins or unharmed, {refused} ended in one line")


def written_to(data: Set, times: int) -> Row:
    """Cut the file short, or overwrite it, while a loader reads it."""
    kept = 0
    for n in range(times):
        data.damage()
        dataset, random = open_dataset(data.folder, on_bad_record="skip", bad_record_share=1), Random(n)
        with BatchLoader(dataset, EpochOrder(IMAGES, n), None, BATCH) as loader:
            try:
                for step, _ in enumerate(islice(loader, 40)):
                    if step == 3 and n % 2:
                        os.truncate(data.folder / "train.rec", random.randint(len(data.records)))
                    elif step == 3:
                        with open(data.folder / "train.rec", "r+b") as file:
                            file.write(random.bytes(len(data.records)))
            except UserError as error:
                kept += "written to while it is read" in str(error)
        dataset.close()
    return Row("train.rec cut short or written over while it is read", times,
               "one line that says so, at the next record that shows it or the next epoch; no SIGBUS", kept,
               f"{kept} ended with that line")


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m faults.data", description=__doc__)
    parser.add_argument("--times", type=int, default=100, help="each damage, each with another seed (default 100)")
    parser.add_argument("--record", action="store_true", help="write the table of docs/records/reliability.md")
    args = parser.parse_args(argv)
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as place:
        data = Set(Path(place))
        rows = [try_damage(data, name, damage, args.times) for name, damage in DAMAGES.items()]
        rows.append(written_to(data, args.times))
    return report("damaged-data", f"python -m faults.data --times {args.times} --record", rows,
                  args.record)


if __name__ == "__main__":
    raise SystemExit(main())
