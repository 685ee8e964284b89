# SPDX-License-Identifier: Apache-2.0
"""Merges training sets to one, without repeats and without what belongs to a verification set.

    python -m common.merge_sets datasets/a datasets/b --output datasets/ab
    python -m common.merge_sets datasets/a --output datasets/clean --exclude lfw.bin,agedb_30.bin --model PREFIX,EPOCH

The identities of each set follow those of the set before. Of images that are the same, byte for byte, only the first is
kept; images of the --exclude sets are left out. With --model embeddings are compared, too: identities whose mean
embedding is near an image of the verification sets are left out, as they are likely the same person, and so are single
images that are still nearer; with --join identities of different sets that are one person become one. A single set can
be cleaned this way. The new set also gets the sets' own .bin; if two with the same name differ, the name of its set is
added to that of the second.

The new folder also has merge.json and merge.tsv (a line an identity: its origin, what was left out and why). With
--model it has merge.png (the distances between the sets) and nearest.png (the nearest images, side by side). The limits
depend on the network: look at these pictures before training.
"""
from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from common.embedding.model_flags import add_model_flags, as_text, check_model_flags, open_model
from common.evaluation.results import table, write_json
from common.sets.image_files import in_order
from common.sets.leaks import Likeness, check_sizes, compare, joined
from common.sets.merge_report import Merged, draw_nearest, draw_spread, write_identities
from common.sets.output_folder import new_folder
from common.sets.record_checks import digest_of, repeats
from common.sets.training_set import NAMES, identity_names, link_bins, write_names, write_set
from recognition.config.command_line import Parser
from recognition.data.images.image import decode_rgb, fit
from recognition.data.sets.dataset import FaceDataset, open_dataset
from recognition.data.verification_set import read_bin
from recognition.errors import UserError, command, naming
from recognition.evaluation.embed_images import Embed, embed_images, normalised
from recognition.io.files import writing
from recognition.progress import progress

KEPT, REPEAT, COPY, IMAGE, IDENTITY = range(5)  # the fates of images, indices of REASONS
REASONS = ("kept", "repeats", "copies of verification images", "near a verification image", "of an identity near one")


def digests_of(dataset: FaceDataset) -> np.ndarray:
    """A digest, of 64 bits, of the encoded bytes of every image, uint64 ``(N,)``."""
    read = in_order(lambda i: digest_of(dataset.read(i)[1]), range(len(dataset)))
    return np.fromiter(progress(read, f"reading {dataset.path.name}", len(dataset), unit=" images"),
                       np.uint64, len(dataset))


def find_copies(datasets: Sequence[FaceDataset], apart: Sequence[bytes]) -> list[np.ndarray]:
    """The fates of images by their bytes alone: KEPT, REPEAT or COPY."""
    digests = [digests_of(dataset) for dataset in datasets]
    everything = np.concatenate(digests)
    fates = np.zeros(len(everything), np.int8)
    for group in repeats(everything, np.arange(len(everything))):
        fates[group[1:]] = REPEAT
    fates[np.isin(everything, np.array([digest_of(image) for image in apart], np.uint64))] = COPY
    return np.split(fates, np.cumsum([len(part) for part in digests])[:-1])


def choose(datasets: Sequence[FaceDataset], labels: Sequence[np.ndarray], fates: Sequence[np.ndarray],
           alike: Sequence[Likeness] | None, image_limit: float, identity_limit: float,
           join: float | None) -> Merged:
    """Decide the fates of all images, and the new numbers of identities.

    :param fates: the fates so far; those of images near the verification sets are changed in place.
    :param join: the cosine from which on identities of different sets become one; None: never.
    """
    for i, part in enumerate(alike or ()):
        fate = fates[i]
        fate[(fate == KEPT) & (part.mean_cosines[labels[i]] >= identity_limit)] = IDENTITY
        fate[(fate == KEPT) & (part.cosines >= image_limit)] = IMAGE
    kept = [np.bincount(of[fate == KEPT], minlength=dataset.num_classes)
            for of, fate, dataset in zip(labels, fates, datasets)]
    if alike and join is not None:
        numbers = joined([part.means for part in alike], [count > 0 for count in kept], join)
    else:
        numbers, total = [], 0
        for count in kept:
            numbers.append(np.where(count > 0, total + np.cumsum(count > 0) - 1, -1))
            total += int((count > 0).sum())
    new = np.concatenate([number[of] for number, of in zip(numbers, labels)])
    source = np.repeat(np.arange(len(labels)), [len(of) for of in labels])
    place = np.concatenate([np.arange(len(of)) for of in labels])
    used = np.concatenate(list(fates)) == KEPT
    order = np.flatnonzero(used)[np.argsort(new[used], kind="stable")]
    return Merged(list(fates), numbers, np.stack([source[order], place[order]], axis=1),
                  np.bincount(new[used]).tolist() if used.any() else [])


def write_merged(folder: Path, datasets: Sequence[FaceDataset], merged: Merged) -> None:
    """Write the new set, byte for byte, with the verification sets and the names of identities."""
    def bodies() -> Iterator[bytes]:
        for source, i in progress(merged.images.tolist(), "writing", unit=" images"):
            yield datasets[source].read(i)[1]

    write_set(folder, merged.counts, bodies(), datasets[0].image_shape[:2])
    link_bins([dataset.path for dataset in datasets], folder)
    if all(names := [identity_names(dataset) for dataset in datasets]):
        new = [""] * len(merged.counts)
        for number, of in reversed(list(zip(merged.numbers, names))):
            for i in np.flatnonzero(number >= 0).tolist():
                new[number[i]] = of[i]
        write_names(folder / NAMES, new)


def embed_apart(embed: Embed, images: Sequence[bytes], names: Sequence[str], shape: tuple[int, ...],
                batch_size: int) -> np.ndarray:
    """Unit embeddings of the verification sets' images, float32 ``(V, D)``."""
    def one(i: int) -> np.ndarray:
        with naming(names[i]):
            return fit(decode_rgb(images[i]), shape[0], shape[1])

    rows = embed_images(embed, in_order(one, range(len(images))), len(images), batch_size, name="verification sets")
    return normalised(rows, lambda row: f"{names[row]}: its embedding")


def read_apart(paths: Sequence[Path]) -> tuple[list[bytes], list[str]]:
    """The distinct images of verification sets, encoded, and a name of each for messages."""
    found: dict[bytes, str] = {}
    for path in paths:
        for i, image in enumerate(read_bin(path)[0]):
            found.setdefault(image, f"{path.name}: image {i}")
    return list(found), list(found.values())


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m common.merge_sets", description=__doc__)
    add = parser.add_argument
    add("data", type=Path, nargs="+", metavar="DIR", help="training sets, in any form")
    add("--output", type=Path, required=True, metavar="NEW", help="a new folder")
    add("--exclude", default="", metavar="BIN,BIN", help="verification sets that nothing of may be in the new set: "
        "files, or names of files in the first DIR")
    add_model_flags(parser, required=False, image_size=False)
    add("--identity-limit", type=float, default=0.5, metavar="COSINE", help="identities go whose mean embedding has "
        "this cosine or a larger one with an image of --exclude (default 0.5)")
    add("--image-limit", type=float, default=0.7, metavar="COSINE", help="images go that have this cosine or a larger "
        "one with an image of --exclude (default 0.7)")
    add("--join", type=float, metavar="COSINE", help="identities of different sets whose mean embeddings have this "
        "cosine or a larger one become one (0.6, say; default: never)")
    args = parser.parse_args(argv)
    for name in ("identity_limit", "image_limit", "join"):
        value = getattr(args, name)
        if value is not None and not -1 <= value <= 2:
            raise UserError(f"--{name.replace('_', '-')}: found {value:g}, expected a cosine")
    if args.join is not None and not args.model:
        raise UserError("--join: found no --model, expected the network that says which identities are alike")
    if args.model:
        check_model_flags(args)
    args.exclude = [_verification_set(name, args.data[0]) for name in args.exclude.split(",") if name]
    return args


def _verification_set(name: str, folder: Path) -> Path:
    for path in (Path(name), folder / name, folder / f"{name}.bin"):
        if path.is_file():
            return path
    raise UserError(f"--exclude: found no file {name}, nor one in {folder}, expected a verification set")


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    with new_folder(args.output) as folder, writing(args.output):
        apart, names = read_apart(args.exclude)
        datasets = [open_dataset(path) for path in args.data]
        check_sizes(datasets)
        labels = [dataset.labels() for dataset in datasets]
        fates = find_copies(datasets, apart)
        alike = None
        if args.model:
            args.image_size = datasets[0].image_shape[0]
            embed, batch_size = open_model(args)
            rows = embed_apart(embed, apart, names, datasets[0].image_shape, batch_size) if apart else np.empty(
                (0, embed.dim), np.float32)
            alike = [compare(dataset, of, embed, rows, batch_size) for dataset, of in zip(datasets, labels)]
        merged = choose(datasets, labels, fates, alike, args.image_limit, args.identity_limit, args.join)
        if not merged.counts:
            raise UserError(f"{args.output}: none of the images would be left; expected higher limits")
        write_merged(folder, datasets, merged)
        write_identities(folder / "merge.tsv", datasets, labels, merged, REASONS, alike, names)
        if alike and apart:
            draw_spread(folder / "merge.png", alike, labels, args.image_limit, args.identity_limit)
            draw_nearest(folder / "nearest.png", datasets, alike, apart)
        parts = [[int((fate == reason).sum()) for reason in range(len(REASONS))] for fate in merged.fates]
        write_json(folder / "merge.json", {
            "sets": [str(path) for path in args.data], "exclude": [str(path) for path in args.exclude],
            "model": as_text(args.model) if args.model else None, "image_limit": args.image_limit,
            "identity_limit": args.identity_limit, "join": args.join, "images": sum(merged.counts),
            "identities": len(merged.counts), "of_each_set": [dict(zip(REASONS, part)) for part in parts]})
    print(table(["set", *REASONS], [[path.name, *map(str, part)] for path, part in zip(args.data, parts)]))
    print(f"{args.output}: {sum(merged.counts)} images of {len(merged.counts)} identities; "
          "merge.json, merge.tsv" + (", merge.png and nearest.png" if alike and apart else "") + " there say more")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
