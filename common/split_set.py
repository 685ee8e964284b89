# SPDX-License-Identifier: Apache-2.0
"""Splits a training set: people held out, images held out of every person, or equal parts.

    python -m common.split_set datasets/mine --output datasets/split --held-out 0.1
    python -m common.split_set datasets/mine --output datasets/split --held-out 0.1 --by images
    python -m common.split_set datasets/mine --output datasets/split --parts 4

--held-out makes NEW/train and NEW/held-out. By identities (the default) both number their people anew, and pairs drawn
from those held out are NEW/train/held-out.bin, to verify on; by images both keep all identities, and no identity loses
its last image. --parts makes NEW/0, NEW/1, ... of whole identities, about equally many images in each. Images stay as
they are, byte for byte, and the set's own verification sets go with each part; identities.tsv says where each identity
went.
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.evaluation.results import table, write_json
from common.pack_folder import held_out_names
from common.sets.output_folder import new_folder
from common.sets.pairs import draw_pairs
from common.sets.training_set import NAMES, identity_names, link_bins, write_names, write_set
from recognition.config.command_line import Parser, check_ranges
from recognition.data.sets.dataset import FaceDataset, open_dataset
from recognition.data.verification_set import save_bin
from recognition.errors import UserError, command
from recognition.io.files import writing
from recognition.progress import progress

TRAIN, HELD_OUT = "train", "held-out"


def parts_of_identities(counts: np.ndarray, parts: int, seed: int) -> np.ndarray:
    """The part of each identity, int64 ``(C,)``. The largest identities come first; each goes to the part with the
    fewest images so far."""
    chosen = np.zeros(len(counts), np.int64)
    filled = np.zeros(parts, np.int64)
    shuffled = np.random.default_rng(seed).permutation(len(counts))
    for identity in shuffled[np.argsort(-counts[shuffled], kind="stable")].tolist():
        chosen[identity] = filled.argmin()
        filled[chosen[identity]] += counts[identity]
    return chosen


def held_out_images(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """A random mask of the images held out, bool ``(N,)``: ``round(share n)`` of the n images of each identity, but
    never all."""
    rng = np.random.default_rng(seed)
    order = np.lexsort([rng.random(len(labels)), labels])
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(starts, counts)
    most = np.minimum(np.rint(share * counts).astype(np.int64), counts - 1)
    held = np.zeros(len(labels), bool)
    held[order] = rank < np.repeat(most, counts)
    return held


def write_part(folder: Path, dataset: FaceDataset, labels: np.ndarray, images: np.ndarray, renumber: bool,
               names: Sequence[str], taken: Sequence[str] = ()) -> list[int]:
    """Write some of a set's images as a new set; returns the number of images of each of its identities.

    :param taken: names in the new folder that the set's own verification sets must not have
    """
    images = images[np.argsort(labels[images], kind="stable")]
    counts = np.bincount(labels[images], minlength=dataset.num_classes)
    kept = np.flatnonzero(counts) if renumber else np.arange(len(counts))
    folder.mkdir()
    bodies = (dataset.read(i)[1] for i in progress(images.tolist(), f"writing {folder.name}", unit=" images"))
    write_set(folder, counts[kept].tolist(), bodies, dataset.image_shape[:2])
    link_bins([dataset.path], folder, taken)
    if names:
        write_names(folder / NAMES, (names[i] for i in kept.tolist()))
    return counts[kept].tolist()


def write_pairs(path: Path, part: Path, counts: Sequence[int], folds: int, seed: int) -> int:
    """Write a verification set of pairs drawn from a part; returns their number."""
    dataset = open_dataset(part)
    pairs = draw_pairs(counts, folds, None, seed)
    encoded = {i: dataset.read(i)[1] for i in np.unique(pairs.images).tolist()}
    save_bin(path, [encoded[i] for i in pairs.images.ravel().tolist()], pairs.issame.tolist())
    dataset.close()
    return len(pairs.issame)


def split(dataset: FaceDataset, folder: Path, args: argparse.Namespace) -> tuple[list[tuple[str, list[int]]], int]:
    """Write all parts; returns the name and the images per identity of each, and the number of pairs."""
    labels, names = dataset.labels(), identity_names(dataset)
    counts = np.bincount(labels, minlength=dataset.num_classes)
    if args.parts:
        of_identity = parts_of_identities(counts, args.parts, args.seed)
        of_image, part_names = of_identity[labels], [str(i) for i in range(args.parts)]
    elif args.by == "images":
        of_image, part_names = held_out_images(labels, args.held_out, args.seed).astype(np.int64), [TRAIN, HELD_OUT]
        of_identity = np.zeros(dataset.num_classes, np.int64)
    else:
        present = [str(i) for i in np.flatnonzero(counts).tolist()]
        held = {int(name) for name in held_out_names(present, str(args.held_out), args.seed)}
        of_identity = np.array([i in held for i in range(dataset.num_classes)], np.int64)
        of_image, part_names = of_identity[labels], [TRAIN, HELD_OUT]
    paired = args.by == "identities" and not args.parts
    taken = [f"{HELD_OUT}.bin"] if paired else []
    written = []
    for number, name in enumerate(part_names):
        images = np.flatnonzero(of_image == number)
        if not images.size:
            raise UserError(f"{dataset.path}: no image is left for the part {name!r}")
        by_identity = args.by == "identities" or bool(args.parts)
        written.append((name, write_part(folder / name, dataset, labels, images, by_identity, names, taken)))
    _write_identities(folder / "identities.tsv", of_image, labels, part_names, dataset.num_classes, names)
    pairs = 0
    if paired:
        pairs = write_pairs(folder / TRAIN / f"{HELD_OUT}.bin", folder / HELD_OUT, written[1][1], args.folds, args.seed)
    return written, pairs


def _write_identities(path: Path, of_image: np.ndarray, labels: np.ndarray, parts: Sequence[str], classes: int,
                      names: Sequence[str]) -> None:
    """Write a line for each identity: its number, its images in each part, its name."""
    counts = np.bincount(labels * len(parts) + of_image, minlength=classes * len(parts)).reshape(-1, len(parts))
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write("\t".join(["identity", *parts, *(["name"] if names else [])]) + "\n")
        for i, row in enumerate(counts.tolist()):
            file.write("\t".join([str(i), *map(str, row), *names[i : i + 1]]) + "\n")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m common.split_set", description=__doc__)
    add = parser.add_argument
    add("data", type=Path, metavar="DIR", help="a training set, in any form")
    add("--output", type=Path, required=True, metavar="NEW", help="a new folder")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--held-out", type=float, metavar="SHARE|N", help="a share below 1, or by identities a number")
    how.add_argument("--parts", type=int, metavar="N", help="so many sets of whole identities")
    add("--by", choices=("identities", "images"), default="identities", help="what is held out (default identities)")
    add("--folds", type=int, default=10, help="folds of the pairs drawn from those held out (default 10)")
    add("--seed", type=int, default=0, help="of what goes where (default 0)")
    args = parser.parse_args(argv)
    if args.parts is not None and not 2 <= args.parts <= 1 << 16:
        raise UserError(f"--parts: found {args.parts}, expected 2 or more")
    if args.held_out is not None and not (0 < args.held_out < 1 or (
            args.by == "identities" and args.held_out > 0 and args.held_out.is_integer())):
        raise UserError(f"--held-out: found {args.held_out:g}, expected a share between 0 and 1"
                        + (", or a number of identities" if args.by == "identities" else ""))
    check_ranges(args, folds=(1, 1000), seed=(0, 2 ** 63))
    return args


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    with new_folder(args.output) as folder, writing(args.output):
        dataset = open_dataset(args.data)
        written, pairs = split(dataset, folder, args)
        dataset.close()
        write_json(folder / "split.json", {
            "data": str(args.data), "held_out": args.held_out, "parts": args.parts, "by": args.by, "seed": args.seed,
            "pairs": pairs, "sets": {name: {"images": sum(counts), "identities": int(np.count_nonzero(counts))}
                                     for name, counts in written}})
    print(table(["set", "images", "identities"], [[str(args.output / name), str(sum(counts)),
                                                   str(np.count_nonzero(counts))] for name, counts in written]))
    if pairs:
        print(f"{args.output / TRAIN / HELD_OUT}.bin: {pairs} pairs of the people held out")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
