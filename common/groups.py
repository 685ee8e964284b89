# SPDX-License-Identifier: Apache-2.0
"""1:1 verification of all pairs within groups of people, and of all pairs at all, as in the tables of IFRT.

    python -m common.groups --model PREFIX,EPOCH --list FILE

FILE has a line 'IMAGE IDENTITY GROUP' for each aligned image, with tabs or spaces; images are paths from FILE's folder.
Every two images of a group are a pair; in the row ALL every two images are. Prints a table of TAR at FARs; writes
results.json and roc.png to the output folder.
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.embedding.model_flags import add_model_flags, as_text, beside, check_model_flags, open_model, rates_flag
from common.evaluation.rate_pictures import draw_rates
from common.evaluation.results import print_rates, rate_cells, require_results, write_json
from common.evaluation.verification_pictures import NO_MATPLOTLIB
from common.sets.image_files import in_order, read_fitted, tell_scaled
from recognition.config.command_line import Parser
from recognition.errors import UserError, command
from recognition.evaluation.all_pairs import AllPairs, check_pairs, evaluate_all_pairs
from recognition.evaluation.embed_images import Embed, embed_images, normalised
from recognition.io.text import read_text

FARS = (1e-6, 1e-5, 1e-4)
ALL = "ALL"
_EXPECTED = "expected 'IMAGE IDENTITY GROUP'"


class Listed(NamedTuple):
    """The N images of a list."""

    images: list[Path]
    identities: np.ndarray  # int64 (N,)
    groups: np.ndarray  # int64 (N,), indices of names
    names: list[str]  # of the groups, in the order of the list


def read_list(path: Path) -> Listed:
    """Read a list of images, identities and groups.

    :raises UserError: with its number, at the first malformed line; if the file cannot be read or has no lines.
    """
    lines = read_text(path).splitlines()
    images: list[Path] = []
    people: dict[str, tuple[int, int, str, int]] = {}  # number, first line, group, number of the group
    groups: dict[str, int] = {}
    rows: list[tuple[int, int]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        fields = line.split("\t") if "\t" in line else line.rsplit(None, 2)
        if len(fields) != 3 or not all(map(str.strip, fields)):
            raise UserError(f"{path}: line {number}: found {line[:80]!r}, {_EXPECTED}")
        image, person, group = map(str.strip, fields)
        if group == ALL:
            raise UserError(f"{path}: line {number}: found a group {ALL!r}, expected another name: it is that of all")
        known = people.setdefault(person, (len(people), number, group, groups.setdefault(group, len(groups))))
        if known[2] != group:
            raise UserError(f"{path}: line {number}: found identity {person!r} in group {group!r}, expected "
                            f"{known[2]!r} as on line {known[1]}")
        images.append(path.parent / image)
        rows.append((known[0], known[3]))
    if not rows:
        raise UserError(f"{path}: found no lines, {_EXPECTED}")
    numbers = np.array(rows, np.int64)
    return Listed(images, numbers[:, 0], numbers[:, 1], list(groups))


def members(listed: Listed) -> dict[str, np.ndarray]:
    """The indices of the images of each group, by name, and of all: int64."""
    found = {name: np.flatnonzero(listed.groups == i) for i, name in enumerate(listed.names)}
    return {**found, ALL: np.arange(len(listed.images))}


def evaluate_groups(embed: Embed, listed: Listed, batch_size: int, size: int = 112, flip: bool = True,
                    fars: Sequence[float] = FARS, name: str = "list") -> dict[str, AllPairs]:
    """Embed all images, and score every group and all images together."""
    for group, chosen in members(listed).items():  # now, before hours are spent
        check_pairs(listed.identities[chosen], fars, f"{name}: {group}")

    scaled: list[Path] = []
    images = in_order(lambda path: read_fitted(path, size, size, scaled), listed.images)
    rows = normalised(embed_images(embed, images, len(listed.images), batch_size, flip),
                      lambda row: f"{listed.images[row]}: its embedding")
    tell_scaled(scaled, size, size)
    return {group: evaluate_all_pairs(rows[chosen], listed.identities[chosen], fars, group)
            for group, chosen in members(listed).items()}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m common.groups", description=__doc__)
    add_model_flags(parser)
    add = parser.add_argument
    add("--list", type=Path, required=True, metavar="FILE", help="image, identity and group, a line each")
    add("--output", type=Path, metavar="OUT", help="where results go (default: beside the checkpoint, "
        "<prefix>-<epoch>-<name of FILE>)")
    add("--far", type=rates_flag, default=FARS, metavar="F,F", help="false accept rates (default 1e-6,1e-5,1e-4)")
    add("--no-flip", action="store_true", help="leave mirrored images out")
    parser.add_overwrite()
    args = parser.parse_args(argv)
    check_model_flags(args)
    args.output = args.output or beside(args.model, args.list.stem)
    require_results(args.output, ("results.json", "roc.png"), ("list", "flip", "groups"), [args.list], args.overwrite)
    return args


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    listed = read_list(args.list)
    embed, batch_size = open_model(args)
    found = evaluate_groups(embed, listed, batch_size, args.image_size, not args.no_flip, args.far, str(args.list))
    images = {group: len(chosen) for group, chosen in members(listed).items()}
    write_json(args.output / "results.json", {
        "model": as_text(args.model), "list": str(args.list), "flip": not args.no_flip, "groups": {
            group: {"images": images[group], "pairs_of_one_identity": one.same_pairs,
                    "pairs_of_two": one.different_pairs, "verification": [rate.as_json() for rate in one.rates]}
            for group, one in found.items()}})
    print_rates(["group", "images", "same", "different", *(f"TAR % at {far:g}" for far in sorted(args.far))],
                [[group, str(images[group]), str(one.same_pairs), str(one.different_pairs), *rate_cells(one.rates)]
                 for group, one in found.items()])
    drawn = draw_rates({group: one.curve for group, one in found.items()}, args.output / "roc.png")
    print(f"results: {args.output}" + ("" if drawn else f"; {NO_MATPLOTLIB}"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
