# SPDX-License-Identifier: Apache-2.0
"""MegaFace Challenge 1 from features in the devkit's .bin layout: identification with distractors, and verification.

    python -m common.megaface --probes FEATURES/facescrub --distractors FEATURES/megaface --suffix _r100_112x112.bin

The folder of a probe's feature is its person. Images in a noise list are left out. Prints a table; writes results.json
and curves.png (ROC and CMC) to the output folder.
"""
from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from common.embedding.model_flags import rates_flag
from common.evaluation.megaface_files import list_images, read_features, without_noises
from common.evaluation.rate_pictures import draw_rates
from common.evaluation.results import percent, print_rates, rate_cells, require_results, write_json
from common.evaluation.verification_pictures import NO_MATPLOTLIB
from recognition.config.command_line import Parser
from recognition.errors import UserError, command
from recognition.evaluation.distractors import search_distractors
from recognition.evaluation.identification import cmc
from recognition.progress import progress

FARS, RANKS, CURVE = (1e-6, 1e-5, 1e-4), (1, 5, 10, 100), 1000
DISTRACTORS = 1_000_000


def people_of(images: Sequence[str]) -> np.ndarray:
    """The number of each image's folder: int64 ``(n,)``.

    :raises UserError: if an image is in no folder.
    """
    for image in images:
        if "/" not in image:
            raise UserError(f"--probes: found {image!r}, expected PERSON/IMAGE")
    return np.unique([image.rsplit("/", 1)[0] for image in images], return_inverse=True)[1]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m common.megaface", description=__doc__)
    add = parser.add_argument
    for name, what in (("probes", "FaceScrub"), ("distractors", "MegaFace")):
        add(f"--{name}", type=Path, required=True, metavar="DIR", help=f"folder of the features of {what}")
        add(f"--{name[:-1]}-list", type=Path, metavar="FILE", help="images, a path a line, or the devkit's JSON "
            "(default: all features in the folder)")
        add(f"--{name[:-1]}-noises", type=Path, metavar="FILE", help="images to leave out")
    add("--suffix", default=".bin", help="what a feature's name has after its image's (default .bin)")
    add("--count", type=int, default=DISTRACTORS, help=f"distractors at most (default {DISTRACTORS})")
    add("--far", type=rates_flag, default=FARS, metavar="F,F", help="false accept rates (default 1e-6,1e-5,1e-4)")
    add("--output", type=Path, default=Path("megaface"), metavar="OUT", help="where results go (default: megaface)")
    parser.add_overwrite()
    args = parser.parse_args(argv)
    if args.count < 1 or not args.suffix:
        raise UserError("--count, --suffix: expected at least 1 and some text")
    lists = [args.probe_list, args.probe_noises, args.distractor_list, args.distractor_noises]
    require_results(args.output, ("results.json", "curves.png"), ("distractors", "searches", "cmc"), lists,
                    args.overwrite)
    return args


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    probes = without_noises(list_images(args.probes, args.suffix, args.probe_list), args.probe_noises, True)
    others = without_noises(list_images(args.distractors, args.suffix, args.distractor_list), args.distractor_noises,
                            False)[: args.count]
    people = people_of(probes)
    rows = np.concatenate(list(read_features(args.probes, probes, args.suffix)))
    blocks = read_features(args.distractors, others, args.suffix)
    first = next(blocks)
    if first.shape[1] != rows.shape[1]:
        raise UserError(f"{args.distractors}: found features of {first.shape[1]} numbers, expected {rows.shape[1]} as "
                        f"in {args.probes}")
    with progress(total=len(others), desc="searching", unit=" distractors") as bar:

        def counted() -> Iterator[np.ndarray]:
            for block in chain([first], blocks):
                yield block
                bar.update(len(block))

        found = search_distractors(rows, people, counted(), len(others), args.far, str(args.probes))
    curve = cmc(found.ranks, min(CURVE, len(others) + 1))
    shares = {rank: float(np.mean(found.ranks <= rank)) for rank in RANKS}
    write_json(args.output / "results.json", {
        "probes": len(probes), "people": int(people.max()) + 1, "distractors": len(others),
        "searches": len(found.ranks),
        "pairs_of_one_identity": found.same_pairs, "pairs_of_two": found.different_pairs,
        "rank": {str(rank): share for rank, share in shares.items()}, "cmc": curve.tolist(),
        "verification": [rate.as_json() for rate in found.rates]})
    print_rates(["distractors", *(f"rank {rank} %" for rank in RANKS), *(f"TAR % at {r.far:g}" for r in found.rates)],
                [[str(len(others)), *map(percent, shares.values()), *rate_cells(found.rates)]])
    drawn = draw_rates({"verification": found.curve}, args.output / "curves.png", {"identification": curve})
    print(f"results: {args.output}" + ("" if drawn else f"; {NO_MATPLOTLIB}"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
