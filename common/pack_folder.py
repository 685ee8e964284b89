# SPDX-License-Identifier: Apache-2.0
"""Packs images to a training set, and pairs of people held out to a verification set.

    python -m common.pack_folder photographs datasets/mine --held-out 0.1

The images are a folder of folders, one a person, or a list file. The new folder gets train.rec, train.idx, property
and identities.txt, whose lines name the classes 0, 1, ...; with --held-out also TARGET.bin and TARGET.txt, which names
the people held out and can be given to --held-out again. All images are checked first: a broken one stops the work,
one that repeats another of the same person pixel by pixel is left out. Landmarks of aligned images, which
common.face_align leaves in SOURCE.landmarks.txt, come along in landmarks.npz: masks of the training follow them.
"""
from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Callable

import cv2
import numpy as np

from common.faces.landmark_files import ALIGNED_LANDMARKS, read_landmarks
from common.sets.image_files import in_order, tell_scaled, usable_images
from common.sets.image_sources import Identity, read_identities
from common.sets.output_folder import new_folder
from common.sets.pairs import draw_pairs
from common.sets.training_set import NAMES, write_names, write_training_set
from recognition.config.command_line import Parser, check_ranges
from recognition.data.images.image import fit_square
from recognition.data.images.image_files import read_file, read_image
from recognition.data.images.jpeg_segments import is_jpeg
from recognition.data.sets.dataset import open_dataset
from recognition.data.sets.landmarks import write_landmarks_of
from recognition.data.verification_set import save_bin
from recognition.errors import UserError, command
from recognition.progress import progress

FITS = ("pad", "crop", "stretch")


def encode_image(path: Path, size: int = 112, fit: str = "pad", quality: int = 95,
                 scaled: list[Path] | None = None) -> bytes:
    """The image as a JPEG of ``size`` x ``size`` pixels; a JPEG of this size is copied byte for byte.

    :param scaled: gets the path of an image of another size
    :raises UserError: if the image cannot be read.
    """
    encoded, image = read_image(path)
    if image.shape[:2] != (size, size):
        if scaled is not None:
            scaled.append(path)
    elif is_jpeg(encoded):
        return encoded
    fitted = cv2.cvtColor(fit_square(image, size, fit), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", fitted, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def split_identities(identities: Sequence[Identity], held_out: str, seed: int) -> tuple[list[Identity], list[Identity]]:
    """Split identities into those to train on and those held out.

    :param held_out: a share below 1, a number of people, or a file with a name a line.
    :raises UserError: if it is none of these, or if none would be left to train on.
    """
    names = held_out_names([identity.name for identity in identities], held_out, seed)
    parts: tuple[list[Identity], list[Identity]] = ([], [])
    for identity in identities:
        parts[identity.name in names].append(identity)
    if not parts[0]:
        raise UserError(f"--held-out {held_out}: all {len(identities)} people are held out, none is left to train on")
    return parts


def held_out_names(names: Sequence[str], held_out: str, seed: int) -> set[str]:
    try:
        share = float(held_out)
    except ValueError:
        asked = set(filter(None, read_file(Path(held_out)).decode("utf-8-sig", "surrogateescape").splitlines()))
        for name in sorted(asked.difference(names))[:1]:
            raise UserError(f"{held_out}: {name!r} is none of the {len(names)} people") from None
        return asked
    count = max(1, round(share * len(names))) if 0 < share < 1 else share
    if not 0 <= count <= len(names) or count != int(count):
        raise UserError(f"--held-out: found {held_out}, expected a share below 1, a number of people up to "
                        f"{len(names)}, or a file of names")
    return {names[i] for i in np.random.default_rng(seed).permutation(len(names))[:int(count)]}


def pack(identities: Sequence[Identity], folder: Path, encode: Callable[[Path], bytes], size: int = 112) -> None:
    """Write the training set and ``identities.txt`` to ``folder``."""
    images = [image for identity in identities for image in identity.images]
    encoded = progress(in_order(encode, images), "packing", len(images), unit=" images")
    write_training_set(folder, [len(identity.images) for identity in identities], encoded, size)
    write_names(folder / NAMES, (identity.name for identity in identities))


def pack_landmarks(source: Path, identities: Sequence[Identity], folder: Path, scaled: Sequence[Path]) -> int:
    """Write the landmarks of a training set that :func:`pack` made, of images that were aligned to its size; returns
    their number, 0 without a file of them."""
    file = Path(os.path.abspath(source) + ALIGNED_LANDMARKS)
    if not source.is_dir() or not file.is_file():
        return 0
    known, dataset, other_sizes = read_landmarks(file).by_name(), open_dataset(folder), set(scaled)
    points = np.full((int(dataset.keys.max()) + 1, 5, 2), np.nan, np.float32)
    images = [image for identity in identities for image in identity.images]
    for key, image in zip(dataset.keys.tolist(), images):
        five = known.get(str(image.relative_to(source)))
        if five is not None and image not in other_sizes:
            points[key] = five
    write_landmarks_of(*dataset.landmarks_place, points)
    dataset.close()
    return int(np.isfinite(points[:, 0, 0]).sum())


def pack_pairs(identities: Sequence[Identity], target: Path, encode: Callable[[Path], bytes], folds: int = 10,
               pairs_per_fold: int | None = None, seed: int = 0) -> int:
    """Write ``target``, a ``.bin`` of pairs drawn from the identities, and their names beside it; returns P."""
    pairs = draw_pairs([len(identity.images) for identity in identities], folds, pairs_per_fold, seed)
    images = [image for identity in identities for image in identity.images]
    needed = np.unique(pairs.images).tolist()
    encoded = dict(zip(needed, in_order(encode, [images[i] for i in needed])))
    save_bin(target, [encoded[i] for i in pairs.images.ravel().tolist()], pairs.issame.tolist())
    write_names(target.with_suffix(".txt"), (identity.name for identity in identities))
    return len(pairs.issame)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m common.pack_folder", description=__doc__)
    add = parser.add_argument
    add("source", type=Path, help="a folder with a folder of images for each person, or a list file: path<TAB or space>"
        "label, or InsightFace's flag<TAB>path<TAB>label; its paths count from its folder")
    add("output", type=Path, help="a new folder")
    add("--held-out", default="0", metavar="SHARE|N|FILE", help="people kept out of the training set, to verify on: a "
        "share such as 0.1, a number, or a file with a name a line (default: none)")
    add("--target", help="name of the verification set (default: the output folder's)")
    add("--folds", type=int, default=10, help="folds of the verification set (default 10, which the protocol expects)")
    add("--pairs-per-fold", type=int, metavar="N", help="pairs of one person, and as many of two, in each fold "
        "(default: 300 as in LFW, or as many as the images allow)")
    add("--size", type=int, default=112, help="side of the packed images in pixels (default 112)")
    add("--fit", choices=FITS, default="pad", help="images of another shape: scaled whole onto black (pad, the "
        "default), the middle cut out (crop), or scaled out of shape (stretch)")
    add("--quality", type=int, default=95, help="of JPEGs written (default 95); JPEGs of the right size are copied")
    add("--skip-broken", action="store_true", help="leave broken images out, with a line each, instead of stopping at "
        "the first")
    add("--seed", type=int, default=0, help="of who is held out and of the pairs (default 0)")
    args = parser.parse_args(argv)
    check_ranges(args, folds=(1, 1000), size=(1, 4096), quality=(1, 100), seed=(0, 2**63), pairs_per_fold=(1, 10**6))
    args.target = args.target or args.output.resolve().name
    if Path(args.target).name != args.target:
        raise UserError(f"--target: found {args.target!r}, expected a name")
    return args


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    scaled: list[Path] = []
    encode = partial(encode_image, size=args.size, fit=args.fit, quality=args.quality, scaled=scaled)
    with new_folder(args.output) as folder:
        identities = usable_images(read_identities(args.source), args.skip_broken)
        trained, held_out = split_identities(identities, args.held_out, args.seed)
        pairs = pack_pairs(held_out, folder / f"{args.target}.bin", encode, args.folds, args.pairs_per_fold,
                           args.seed) if held_out else 0
        pack(trained, folder, encode, args.size)
        known = pack_landmarks(args.source, trained, folder, scaled)
    tell_scaled(scaled, args.size, args.size)
    images = sum(len(identity.images) for identity in trained)
    print(f"{args.output}: {images} images of {len(trained)} people to train on"
          + (f"; landmarks of {known} of them" if known else ""))
    if held_out:
        print(f"{args.output / args.target}.bin: {pairs} pairs of {len(held_out)} other people, half of them of the "
              f"same person, in {args.folds} folds")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
