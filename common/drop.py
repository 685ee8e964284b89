# SPDX-License-Identifier: Apache-2.0
"""Drops images with wrong labels from a training set, by a model trained with sub-centres.

    python -m common.drop --data DIR --model PREFIX,EPOCH --threshold 75 --k 3 --output NEW_DIR

Train with config.loss_K = 3 and config.ckpt_embedding = False first: the right images of an identity gather at one of
its sub-centres, the dominant one, and wrong ones at others or far away (sub-center ArcFace, Deng et al., 2020). The
dominant sub-centre of an identity is the one that is nearest to most of its images. An image is kept if its embedding
is less than --threshold degrees from it. NEW_DIR gets a training set of the kept images, byte for byte, whose
identities are numbered anew, without those that lost all images; DIR's verification sets; and a report: drop.json,
drop-identities.tsv, drop-images.npz, drop.png.
"""
from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.embedding.model_flags import add_model_flags, as_text, check_model_flags, files_of
from common.sets.dominant_model import same_file, save_dominant_model
from common.sets.drop_report import write_report
from common.sets.output_folder import new_folder
from common.sets.sub_centres import Choice, choose
from common.sets.training_set import NAMES, identity_names, link_bins, write_names, write_set
from recognition.config.cli import split_pretrained
from recognition.config.command_line import Parser, check_ranges
from recognition.config.devices import Device, decode_threads, share_processors
from recognition.data.sets.dataset import FaceDataset, open_dataset
from recognition.engines.choose import choose_engine
from recognition.errors import UserError, command
from recognition.io.centres import SavedCentres, centres_in_file, centres_in_folder, find_centres, shard_file
from recognition.io.checksums import sum_beside
from recognition.io.files import writing
from recognition.io.params import read_arrays
from recognition.progress import progress


def write_kept(folder: Path, dataset: FaceDataset, choice: Choice) -> None:
    """Write the kept images as a training set, identity after identity, with the verification sets and the names."""
    images = np.flatnonzero(choice.kept)
    images = images[np.argsort(choice.labels[images], kind="stable")]
    counts = choice.kept_counts[choice.kept_counts > 0].tolist()
    bodies = (dataset.read(i)[1] for i in progress(images, "writing", unit=" images"))
    write_set(folder, counts, bodies, dataset.image_shape[:2])
    link_bins([dataset.path], folder)
    if names := identity_names(dataset):
        write_names(folder / NAMES, (name for name, count in zip(names, choice.kept_counts) if count))


def open_centres(checkpoint: Path, given: Path | None, num_classes: int, k: int, data: Path) -> SavedCentres:
    """Open W with k sub-centres a class, from ``given``, a file or folder, or else from the checkpoint or its folder.

    :raises UserError: if there is none, or if it has another number of classes or of sub-centres.
    """
    if given is None:
        centres = find_centres(checkpoint)
    else:
        centres = centres_in_folder(given) if given.is_dir() else centres_in_file(given, read_arrays(given))
    if centres is None:
        states = [path.parent for path in checkpoint.parent.glob(f"state/step-*/{shard_file('centres', 0)}")]
        newest = max(states, key=lambda path: path.stat().st_mtime_ns, default=None)
        hint = f", or a training state: --centres {newest}" if newest else ""
        raise UserError(f"{given or checkpoint}: found no class centres there, expected fc7_weight or fc7_<i>_weight, "
                        f"as config.ckpt_embedding = False saves them, or <rank>_centers.param{hint}")
    if mismatch := centres.mismatch(num_classes, k):
        other = centres.rows // num_classes
        fits = "" if other in (0, k) or centres.mismatch(num_classes, other) else f"; --k {other} would fit"
        raise UserError(f"{centres.where}: {mismatch}, as {data / 'property'} and --k say{fits}")
    return centres


def drop(data: Path, model: tuple[str, int], output: Path, threshold: float = 75, k: int = 3, batch_size: int = 16,
         devices: Sequence[Device] = (("cpu", 0),), centres: Path | None = None, threads: int = 2,
         output_model: tuple[str, int] | None = None, bfloat16: bool = False, engine: str = "auto") -> dict[str, Any]:
    """Run the command; returns the report, the content of ``drop.json``.

    :param batch_size: images a device at a time.
    """
    with new_folder(output) as folder:
        dataset = open_dataset(data)
        checkpoint = Path(as_text(model))
        saved = open_centres(checkpoint, centres, dataset.num_classes, k, data)
        height, width, channels = dataset.image_shape
        embed = choose_engine(engine, devices).embedder(model, devices, batch_size, (channels, height, width), bfloat16)
        if embed.dim != saved.dim:
            raise UserError(f"{saved.where}: found centres of {saved.dim} numbers, but {checkpoint} embeds in "
                            f"{embed.dim}")
        choice = choose(dataset, embed, saved, k, threshold, batch_size * len(devices), threads)
        if not choice.kept.any():
            raise UserError(f"--threshold: found {threshold:g}, but the nearest of all {len(choice.labels)} images is "
                            f"{choice.angles.min():.1f} degrees from its dominant sub-centre")
        with writing(output):
            write_kept(folder, dataset, choice)
        origin = {"data": str(data), "model": str(checkpoint), "centres": saved.where}
        report = write_report(folder, choice, origin, identity_names(dataset))
        if output_model:
            identities = np.flatnonzero(choice.kept_counts)
            save_dominant_model(checkpoint, Path(f"{model[0]}-symbol.json"), saved,
                                identities * k + choice.dominant[identities], output_model)
        dataset.close()
    return report


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m common.drop", description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="the training set: train.rec, train.idx, property")
    add_model_flags(parser, batch_size=16, image_size=False)
    add("--output", type=Path, required=True, metavar="NEW_DIR", help="a new folder for the images kept")
    add("--threshold", type=float, default=75, metavar="DEGREES", help="images at this angle or a larger one from the "
        "dominant sub-centre are dropped (default 75)")
    add("--k", type=int, default=3, help="sub-centres an identity, the loss_K of the training (default 3)")
    add("--centres", type=Path, metavar="FILE|DIR", help="class centres that are not in the checkpoint or its folder: "
        "another .params, a folder of <rank>_centers.param, or a training state")
    add("--output-model", metavar="PREFIX,EPOCH", help="also save the model with the dominant sub-centres alone, of "
        "the identities kept: to go on from with --pretrained and loss_K 1")
    add("--decode-threads", type=int, default=decode_threads(), help="threads that decode images")
    args = parser.parse_args(argv)
    check_model_flags(args)
    check_ranges(args, k=1, decode_threads=1)
    if not 0 < args.threshold <= 180:  # NaN fails too
        raise UserError(f"--threshold: found {args.threshold:g}, expected degrees above 0, at most 180")
    args.output_model = _output_model(args.output_model, args.model) if args.output_model else None
    return args


def _output_model(text: str, model: tuple[str, int]) -> tuple[str, int]:
    """The checkpoint to write, none of whose files is there; but its symbol, which is that of ``model``, may be."""
    output = split_pretrained(text, 1)
    written = files_of(output)
    if same_file(written[0], files_of(model)[0]):
        del written[0]
    for path in (*written, *map(sum_beside, written)):
        if os.path.lexists(path):
            raise UserError(f"--output-model: {path} exists already, expected a new name")
    return output


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    share_processors(args.devices, os.environ)
    report = drop(args.data, args.model, args.output, threshold=args.threshold, k=args.k, batch_size=args.batch_size,
                  devices=args.devices, centres=args.centres, threads=args.decode_threads,
                  output_model=args.output_model, bfloat16=args.bfloat16, engine=args.engine)
    images, identities = report["images"], report["identities"]
    print(f"{args.output}: {images['kept']} of {images['all']} images kept, of {identities['kept']} of "
          f"{identities['all']} identities; {images['dropped']} dropped, {images['dropped_of_other_sub_centres']} of "
          "them nearer to another sub-centre")
    print(f"{'threshold':>9s} {'kept':>9s} {'share':>7s}")
    for row in report["thresholds"]:
        mark = " *" if math.isclose(row["degrees"], args.threshold) else ""
        print(f"{row['degrees']:9g} {row['kept']:9d} {row['kept'] / images['all']:7.3f}{mark}")
    print(f"picture: {args.output / 'drop.png'}" if (args.output / "drop.png").exists() else
          "no picture: matplotlib is not installed: pip install 'matplotlib>=3.8'")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
