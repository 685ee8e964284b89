# SPDX-License-Identifier: Apache-2.0
"""Takes the images out of a training set, or of a verification set, as files.

    python -m common.rec2image --include datasets/emore --output images
    python -m common.rec2image --include datasets/emore/lfw.bin --output pairs

A training set becomes <label>/<record>.jpg, byte for byte, with train.lst, whose lines (1<TAB>path<TAB>label)
common.pack_folder and common.rec_builder read. A verification set becomes <pair>_0.jpg and <pair>_1.jpg with
pairs_label.txt, which common.build_eval_pack reads. Images that training cannot use are left out and counted.
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.sets.left_out import tell
from common.sets.output_folder import new_folder
from common.sets.text_columns import whole_number
from common.sets.usable_records import usable
from recognition.config.command_line import Parser, check_ranges
from recognition.data.sets.dataset import open_dataset
from recognition.data.verification_set import read_bin
from recognition.errors import UserError, command
from recognition.io.files import writing
from recognition.progress import progress

_SUFFIXES = ((b"\xff\xd8", ".jpg"), (b"\x89PNG", ".png"), (b"RIFF", ".webp"), (b"BM", ".bmp"))


def suffix_of(encoded: bytes) -> str:
    """The suffix for an image, by its first bytes; ``.jpg`` for an unknown format, as records hold JPEGs."""
    return next((suffix for start, suffix in _SUFFIXES if encoded.startswith(start)), ".jpg")


def unpack_set(source: Path, folder: Path, labels: Sequence[int] | None = None,
               limit: int | None = None) -> tuple[int, list[str]]:
    """Write the images of a training set as files; returns their number, and a line for each broken record.

    :param labels: only these identities; ``limit``: at most so many images of an identity
    :raises UserError: if no image is written
    """
    dataset = open_dataset(source)
    chosen = np.arange(len(dataset))
    if labels is not None or limit is not None:
        of = dataset.labels()
        chosen = chosen[np.isin(of, labels)] if labels is not None else chosen
        chosen = chosen[_rank_within(of[chosen]) < limit] if limit is not None else chosen
    written = 0
    with open(folder / "train.lst", "w", encoding="ascii") as listed:
        chosen, broken = usable(dataset, chosen)
        for i in progress(chosen.tolist(), "writing", unit=" images"):
            label, body, key = dataset.read(i)
            path = folder / str(label) / f"{key}{suffix_of(body)}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(body)
            listed.write(f"1\t{path.relative_to(folder)}\t{label}\n")
            written += 1
    dataset.close()
    if not written:
        raise UserError(f"{source}: none of the images asked for is there" if not broken else broken[0])
    return written, broken


def _rank_within(labels: np.ndarray) -> np.ndarray:
    """The number of equal elements before each element: int64 (N,)."""
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(starts, counts)
    return rank


def unpack_bin(source: Path, folder: Path) -> int:
    """Write the images of a verification set as files; returns the number of pairs."""
    images, issame = read_bin(source)
    digits = len(str(len(issame) - 1))
    with open(folder / "pairs_label.txt", "w", encoding="ascii") as listed:
        for pair, same in enumerate(progress(issame.tolist(), "writing", unit=" pairs")):
            names = [f"{pair:0{digits}d}_{side}{suffix_of(images[2 * pair + side])}" for side in (0, 1)]
            for side, name in enumerate(names):
                (folder / name).write_bytes(images[2 * pair + side])
            listed.write(f"{names[0]} {names[1]} {int(same)}\n")
    return len(issame)


def _labels(text: str) -> list[int]:
    """The numbers in a text like ``0,5,10-19``.

    :raises argparse.ArgumentTypeError: if it is something else.
    """
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        low, high = whole_number(first), whole_number(last or first)
        if low is None or high is None or high < low:
            raise argparse.ArgumentTypeError(f"found {text[:80]!r}, expected numbers and ranges such as 0,5,10-19")
        found.extend(range(low, min(high, 1 << 24) + 1))
    return found


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m common.rec2image", description=__doc__)
    add = parser.add_argument
    add("--include", type=Path, required=True, metavar="DIR|FILE.bin", help="a training set, or a verification set")
    add("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    add("--identities", type=_labels, metavar="0,5,10-19", help="of a training set: these alone (default: all)")
    add("--limit", type=int, metavar="N", help="of a training set: at most so many images an identity")
    args = parser.parse_args(argv)
    check_ranges(args, limit=1)
    if args.include.is_file() and (args.limit or args.identities):
        raise UserError("--identities, --limit: a verification set has no identities, expected a training set")
    return args


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    broken: list[str] = []
    with new_folder(args.output) as folder, writing(args.output):
        if args.include.is_file():
            done = f"{unpack_bin(args.include, folder)} pairs of images"
        else:
            images, broken = unpack_set(args.include, folder, args.identities, args.limit)
            done = f"{images} images"
    tell(broken)
    print(f"{args.output}: {done}" + (f"; {len(broken)} broken records left out" if broken else ""))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
