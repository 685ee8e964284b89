# SPDX-License-Identifier: Apache-2.0
"""Scores a checkpoint on IJB-B or IJB-C: 1:1 verification and 1:N identification of templates.

    python -m common.ijb --model PREFIX,EPOCH --data IJBC

DIR holds loose_crop/ and meta/ as they are distributed. Every image is aligned by its five landmarks. Its embedding is
added to that of its mirror and multiplied by the detector's score. A template is the sum over its media of the mean
over each medium. Prints tables; writes results.json and roc.png to the output folder.
"""
from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.embedding.model_flags import add_model_flags, as_text, check_model_flags, open_model, rates_flag
from common.evaluation.ijb_meta import Faces, Subjects, find, read_faces, read_identification, read_pairs
from common.evaluation.rate_pictures import draw_rates
from common.evaluation.results import percent, print_rates, rate_cells, require_results, table, write_json
from common.evaluation.verification_pictures import NO_MATPLOTLIB
from common.faces.alignment import align
from common.sets.image_files import in_order
from recognition.config.command_line import Parser
from recognition.data.images.image_files import read_image
from recognition.errors import UserError, command
from recognition.evaluation.embed_images import Embed, embed_images, normalised
from recognition.evaluation.identification import cmc, search, tpir_at
from recognition.evaluation.rates import Rate, tar_at, thin_curve
from recognition.evaluation.templates import Templates, aggregate

FARS, FPIRS, RANKS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1), (0.01, 0.1), (1, 5, 10)


class Scores(NamedTuple):
    """Inner products of pairs of templates, float32."""

    same: np.ndarray
    different: np.ndarray


def aligned_faces(folder: Path, faces: Faces, size: int) -> Iterator[np.ndarray]:
    """Yield the images of ``folder``, aligned by their landmarks: uint8 ``(size, size, 3)`` RGB each, in order."""

    def one(i: int) -> np.ndarray:
        path = folder / faces.names[i]
        _, image = read_image(path)
        try:
            return align(image, faces.landmarks[i], size)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from error

    return in_order(one, range(len(faces.names)))


def embed_templates(embed: Embed, data: Path, faces: Faces, batch_size: int, size: int = 112, flip: bool = True,
                    detector_scores: bool = True, unit_images: bool = False) -> Templates:
    """The embeddings of all templates.

    :param detector_scores: weight images by the detector's score
    :param unit_images: normalise each image's embedding first; else it counts by its norm, as in the recipes
    """
    rows = embed_images(embed, aligned_faces(data / "loose_crop", faces, size), len(faces.names), batch_size, flip)
    if unit_images:
        rows = normalised(rows, lambda row: f"{faces.names[row]}: its embedding")
    return aggregate(rows, faces.templates, faces.media, faces.scores if detector_scores else None)


def pair_scores(templates: Templates, pairs: np.ndarray, where: str, block: int = 1 << 14) -> Scores:
    """The scores of pairs, int64 ``(P, 3)`` from :func:`common.evaluation.ijb_meta.read_pairs`."""
    scores = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), block):
        rows = [templates.rows(pairs[start : start + block, column], where) for column in (0, 1)]
        first, second = (templates.embeddings[chosen] for chosen in rows)
        scores[start : start + block] = np.einsum("pd,pd->p", first, second)
    same = pairs[:, 2] == 1
    return Scores(scores[same], scores[~same])


def identify(templates: Templates, galleries: dict[str, Subjects], probes: Subjects) -> dict[str, dict[str, Any]]:
    """1:N: the ranks in each gallery and in both as one, and TPIR at FPIR in each gallery, which lacks the probes of
    the other. ``mean`` is the mean of the two galleries, as in the papers' tables."""
    embedded = templates.embeddings
    rows = templates.rows(probes.templates, "probes")
    found: dict[str, dict[str, Any]] = {}
    both = Subjects(*(np.concatenate(columns) for columns in zip(*galleries.values())))
    for name, gallery in (*galleries.items(), ("both as one", both)):
        result = search(embedded[rows], probes.subjects, embedded[templates.rows(gallery.templates, name)],
                        gallery.subjects)
        mated = result.rank[result.mated]
        curve = cmc(mated, max(RANKS))
        found[name] = {"templates": len(gallery.templates), "probes_in_it": len(mated),
                       "probes_not_in_it": len(result.rank) - len(mated),
                       "rank": {str(rank): float(curve[rank - 1]) for rank in RANKS} if len(mated) else {}}
        if gallery is not both:
            found[name]["tpir"] = {str(one.fpir): one.tpir for one in tpir_at(FPIRS, result, name)}
    of_each = [found[name] for name in galleries]
    found["mean"] = {kind: {key: float(np.mean([one[kind][key] for one in of_each])) for key in of_each[0][kind]}
                     for kind in ("rank", "tpir")}
    return found


def evaluate_ijb(embed: Embed, data: Path, batch_size: int, size: int = 112, fars: Sequence[float] = FARS,
                 **options: bool) -> tuple[list[Rate], Scores, dict[str, dict[str, Any]] | None]:
    """The 1:1 table, its scores, and the 1:N results; None if ``meta`` lacks that protocol.

    :param options: those of :func:`embed_templates`
    """
    meta = data / "meta"
    faces, pairs, searches = read_faces(meta), read_pairs(meta), read_identification(meta)  # now, before hours
    templates = embed_templates(embed, data, faces, batch_size, size, **options)
    scores = pair_scores(templates, pairs, str(find(meta, "_template_pair_label.txt")))
    found = identify(templates, *searches) if searches else None
    return tar_at(fars, scores.same, scores.different, data.name), scores, found


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m common.ijb", description=__doc__)
    add_model_flags(parser)
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="the folder with loose_crop and meta")
    add("--output", type=Path, metavar="OUT", help="where results go (default: beside the checkpoint, "
        "<prefix>-<epoch>-<name of DIR>)")
    add("--far", type=rates_flag, default=FARS, metavar="F,F", help="false accept rates (default 1e-6 to 1e-1)")
    add("--no-flip", action="store_true", help="leave mirrored images out")
    add("--no-detector-score", action="store_true", help="weight all images alike")
    add("--unit-images", action="store_true", help="normalise each image's embedding before the mean")
    parser.add_overwrite()
    args = parser.parse_args(argv)
    check_model_flags(args)
    for name in ("loose_crop", "meta"):
        if not (args.data / name).is_dir():
            raise UserError(f"--data: found no folder {args.data / name}, expected loose_crop and meta of IJB-B or "
                            "IJB-C")
    args.output = args.output or Path(f"{args.model[0]}-{args.model[1]:04d}-{args.data.resolve().name}")
    require_results(args.output, ("results.json", "roc.png"), ("verification", "identification", "unit_images"),
                    overwrite=args.overwrite)
    return args


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    embed, batch_size = open_model(args)
    options = {"flip": not args.no_flip, "detector_scores": not args.no_detector_score,
               "unit_images": args.unit_images}
    rates, scores, found = evaluate_ijb(embed, args.data, batch_size, args.image_size, args.far, **options)
    write_json(args.output / "results.json", {
        "model": as_text(args.model), "data": str(args.data), **options, "pairs_of_one_subject": len(scores.same),
        "pairs_of_two": len(scores.different), "verification": [rate.as_json() for rate in rates],
        "identification": found})
    name = args.data.resolve().name
    print_rates(["1:1", *(f"TAR % at {rate.far:g}" for rate in rates)], [[name, *rate_cells(rates)]])
    if found:
        print(_identification_table(found))
    drawn = draw_rates({name: thin_curve(*scores)}, args.output / "roc.png")
    print(f"results: {args.output}" + ("" if drawn else f"; {NO_MATPLOTLIB}"))
    return 0


def _identification_table(found: dict[str, dict[str, Any]]) -> str:
    nothing = float("nan")
    rows = [[name, *(percent(part["rank"].get(str(rank), nothing)) for rank in RANKS),
             *(percent(part.get("tpir", {}).get(str(fpir), nothing)) for fpir in FPIRS)]
            for name, part in found.items()]
    return table(["1:N", *(f"rank {rank} %" for rank in RANKS), *(f"TPIR % at FPIR {fpir:g}" for fpir in FPIRS)], rows)


if __name__ == "__main__":
    raise SystemExit(main())
