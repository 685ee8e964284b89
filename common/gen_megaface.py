# SPDX-License-Identifier: Apache-2.0
"""Makes the features of FaceScrub's and MegaFace's images, in the devkit's .bin layout, which common.megaface reads.

    python -m common.gen_megaface --model PREFIX,EPOCH --facescrub-root DIR --megaface-root DIR --output features \\
        [--facescrub-lst FILE] [--megaface-lst FILE] --algo insightface

The feature of DIR/a/b.jpg is features/facescrub/a/b.jpg_insightface.bin, or features/megaface/...: the embedding of the
aligned image plus that of its mirror, normalised. With 'PREFIX,EPOCH|PREFIX,EPOCH' it is that of all networks, one
behind the other, normalised again. Noise lists are for common.megaface: here all images get a feature. Images that
cannot be used are named and counted, and have none; features.json says what was done. Without roots the
recipes' places count: data/facescrub_images with data/facescrub_lst, data/megaface_images with data/megaface_lst.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.embedding.model_flags import add_model_flags, as_text, check_model_flags, open_model
from common.evaluation.megaface_files import encode_feature, read_paths
from common.evaluation.results import write_json
from common.sets.image_files import read_fitted, tell_scaled, tried_in_order
from common.sets.image_sources import find_images
from common.sets.left_out import tell
from common.sets.named_images import with_other_endings
from common.sets.output_folder import new_folder
from recognition.config.command_line import Parser
from recognition.errors import UserError, command
from recognition.evaluation.embed_images import Embed, embed_batches, normalised, with_mirrors
from recognition.progress import progress

SETS = ("facescrub", "megaface")
RECIPES_PLACE = Path("data")  # where the recipes' script looks for the images and lists of both


def image_names(root: Path, listed: Path | None) -> list[str]:
    """The images of a set as paths below ``root``: those of a list, or all.

    :raises UserError: if there are none, or if the list is malformed
    """
    if listed is None:
        if not root.is_dir():
            raise UserError(f"{root}: not found, expected a folder of images")
        return [str(path.relative_to(root)) for path in find_images(root)]
    return list(dict.fromkeys(read_paths(listed, root)))


def write_features(embeds: Sequence[Embed], batch_size: int, root: Path, names: Sequence[str],
                   target: Callable[[str], Path], size: int = 112) -> list[str]:
    """Write the feature of each image ``root/name`` to ``target(name)``; only a batch is in memory. Returns a line
    about each image that could not be used.

    :raises UserError: if none can be used, or if a feature has no direction
    """
    there = with_other_endings(root, names)
    kept: list[str] = []
    left_out: list[str] = []
    scaled: list[Path] = []

    def images() -> Iterator[np.ndarray]:
        found = tried_in_order(lambda name: read_fitted(root / there.get(name, name), size, size, scaled), names)
        for name, image in progress(found, f"embedding {root.name}", len(names), unit=" images"):
            if isinstance(image, UserError):
                left_out.append(str(image))
            else:
                kept.append(name)
                yield image

    def all_networks(planes: np.ndarray) -> np.ndarray:
        first = len(kept) - len(planes)
        return np.concatenate([
            normalised(with_mirrors(embed)(planes), lambda row: f"{root / kept[first + row]}: its embedding")
            for embed in embeds], axis=1)

    done = 0
    for rows in embed_batches(all_networks, images(), batch_size, flip=False):
        batch = kept[done : done + len(rows)]
        for name, row in zip(batch, normalised(rows)):
            target(name).parent.mkdir(parents=True, exist_ok=True)
            target(name).write_bytes(encode_feature(row))
        done += len(rows)
    if not done:
        raise UserError(f"{root}: none of its {len(names)} images can be used; the first: {left_out[0]}")
    tell_scaled(scaled, size, size)
    return left_out


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m common.gen_megaface", description=__doc__)
    add_model_flags(parser)
    add = parser.add_argument
    for name in SETS:
        add(f"--{name}-root", type=Path, metavar="DIR", help=f"the folder of {name}'s aligned images")
        add(f"--{name}-lst", type=Path, metavar="FILE", help="images in it, a path a line, or the devkit's JSON "
            "(default: all in the folder)")
    add("--algo", default="insightface", help="names of features end in _ALGO.bin (default insightface)")
    add("--output", type=Path, default=Path("feature_out"), metavar="OUT", help="a new folder (default feature_out)")
    add("--batch_size", type=int, default=argparse.SUPPRESS, help="the recipes' name of --batch-size")
    add("--image_size", type=_side, default=argparse.SUPPRESS, metavar="3,112,112", help="that of --image-size")
    args = parser.parse_args(argv)
    if not any(getattr(args, f"{name}_root") for name in SETS):
        _look_in_recipes_place(args)
    args.roots = {name: root for name in SETS if (root := getattr(args, f"{name}_root"))}
    if not args.roots:
        raise UserError("--facescrub-root, --megaface-root: found neither, expected a folder of images")
    for name in SETS:
        if name not in args.roots and getattr(args, f"{name}_lst"):
            raise UserError(f"--{name}-lst: goes with --{name}-root only")
    if not args.algo or "/" in args.algo or "\0" in args.algo:
        raise UserError(f"--algo: found {args.algo!r}, expected a part of a file's name")
    args.networks = [argparse.Namespace(**{**vars(args), "model": model}) for model in args.model.split("|")]
    for network in args.networks:
        check_model_flags(network)
    return args


def _side(text: str) -> int:
    """The side in the recipes' form of a size, such as 3,112,112."""
    parts = text.split(",")
    if len(parts) != 3 or parts[0] != "3" or parts[1] != parts[2] or parts[1] not in ("112", "224"):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected 3,112,112 or 3,224,224")
    return int(parts[1])


def _look_in_recipes_place(args: argparse.Namespace) -> None:
    """Set roots, and lists that are not given, to what lies where the recipes' script looks."""
    for name in SETS:
        root, listed = RECIPES_PLACE / f"{name}_images", RECIPES_PLACE / f"{name}_lst"
        if root.is_dir():
            setattr(args, f"{name}_root", root)
            if not getattr(args, f"{name}_lst") and listed.is_file():
                setattr(args, f"{name}_lst", listed)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    names = {name: image_names(root, getattr(args, f"{name}_lst")) for name, root in args.roots.items()}
    report: dict[str, Any] = {"models": [as_text(network.model) for network in args.networks], "algo": args.algo}
    with new_folder(args.output) as folder:
        opened = [open_model(network) for network in args.networks]
        for name, root in args.roots.items():
            place = folder / name
            left_out = write_features([embed for embed, _ in opened], opened[0][1], root, names[name],
                                      lambda image, place=place: place / f"{image}_{args.algo}.bin",  # type: ignore
                                      args.image_size)
            report[name] = {"root": str(root), "images": len(names[name]) - len(left_out), "left_out": left_out}
            tell(left_out)
        write_json(folder / "features.json", report)
    for name in args.roots:
        print(f"{args.output / name}: features of {report[name]['images']} images"
              + (f"; {len(report[name]['left_out'])} left out" if report[name]["left_out"] else ""))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
