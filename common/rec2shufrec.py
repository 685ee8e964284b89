# SPDX-License-Identifier: Apache-2.0
"""Shuffles a training set once and for all, so that it can be read in the order of its file.

    python -m common.rec2shufrec datasets/emore datasets/emore-shuffled
    python common/rec2shufrec.py --input datasets/emore --output datasets/emore-shuffled     # as in the recipes

It is for slow disks and network file systems, where training waits for reads at random places. The new set has the
images byte for byte, without a header and identity records. Its ``property`` has two further lines, the number of
images and ``shuffled``, and training reads it from front to end. The order is a function of --seed.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.sets.image_files import in_order
from common.sets.output_folder import new_folder
from common.sets.training_set import NAMES, identity_names, link_bins, write_names, write_property
from recognition.config.command_line import Parser, check_ranges
from recognition.data.order import EpochOrder
from recognition.data.records.recordio import RecordWriter, pack_record
from recognition.data.sets.dataset import open_dataset
from recognition.errors import UserError, command
from recognition.io.files import writing
from recognition.progress import progress


def shuffle_set(source: Path, folder: Path, seed: int = 0) -> tuple[int, int]:
    """Write ``source`` in a random order to ``folder``; returns the numbers of images and identities."""
    dataset = open_dataset(source)
    order = EpochOrder(len(dataset), seed).permutation(0).tolist()
    with RecordWriter(folder / "train.rec", folder / "train.idx") as writer:
        read = progress(in_order(dataset.read, order), "shuffling", len(order), unit=" images")
        for key, (label, body, _) in enumerate(read):
            writer.write(key, pack_record(float(label), body, id=key))
    write_property(folder, dataset.num_classes, dataset.image_shape[:2])
    with open(folder / "property", "a", encoding="ascii") as file:
        file.write(f"{len(order)}\nshuffled\n")
    if names := identity_names(dataset):
        write_names(folder / NAMES, names)
    link_bins([source], folder)
    dataset.close()
    return len(order), dataset.num_classes


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m common.rec2shufrec", description=__doc__)
    parser.add_argument("places", type=Path, nargs="*", metavar="PLACE", help="a training set, in any form, and a new "
                        "folder")
    parser.add_argument("--input", type=Path, metavar="DIR", help="the training set, in place of the first")
    parser.add_argument("--output", type=Path, metavar="DIR", help="the new folder, in place of the second")
    parser.add_argument("--copy-vers", action="store_true", help="verification sets come along in any case")
    parser.add_argument("--seed", type=int, default=0, help="of the order (default 0)")
    args = parser.parse_args(argv)
    check_ranges(args, seed=0)
    places = [*args.places, *(place for place in (args.input, args.output) if place)]
    if len(places) != 2 or (args.places and (args.input or args.output)):
        raise UserError(f"found {', '.join(map(str, places)) or 'nothing'}, expected a training set and a new folder, "
                        "or --input and --output")
    source, output = places
    with new_folder(output) as folder, writing(output):
        images, classes = shuffle_set(source, folder, args.seed)
    print(f"{output}: {images} images of {classes} identities, shuffled by the seed {args.seed}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
