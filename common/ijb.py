# SPDX-License-Identifier: Apache-2.0
"""Scores a checkpoint on IJB-B or IJB-C: 1:1 verification and 1:N identification of templates.

    python -m common.ijb --model PREFIX,EPOCH --data IJBC
    python -m common.ijb --model backbone.onnx --data IJBC --save-embeddings rows.npy --save-scores scores.npy
    python -m common.ijb --embeddings rows.npy --data IJBC --output other --unit-images
    python -m common.ijb --scores scores.npy --data IJBC --output pictures

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

from common.embedding.model_flags import add_model_flags, as_text, beside, check_model_flags, open_model, rates_flag
from common.evaluation.ijb_meta import Faces, Subjects, find, read_faces, read_identification, read_pairs
from common.evaluation.rate_pictures import draw_rates
from common.evaluation.results import percent, print_rates, rate_cells, require_results, table, write_json
from common.evaluation.verification_pictures import NO_MATPLOTLIB
from common.faces.alignment import align
from common.sets.image_files import in_order
from recognition.config.command_line import Parser
from recognition.data.images.image_files import read_image
from recognition.errors import UserError, command, naming
from recognition.evaluation.embed_images import embed_images, normalised
from recognition.evaluation.identification import cmc, search, tpir_at
from recognition.evaluation.rates import tar_at, thin_curve
from recognition.evaluation.templates import Templates, aggregate
from recognition.io.files import replacing, require_new
from recognition.io.stored_array import open_npy

FARS, FPIRS, RANKS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1), (0.01, 0.1), (1, 5, 10)
_PAIRS_AT_ONCE = 1 << 14


class Scores(NamedTuple):
    """Inner products of pairs of templates, float32."""

    same: np.ndarray
    different: np.ndarray


def aligned_faces(folder: Path, faces: Faces, size: int) -> Iterator[np.ndarray]:
    """Yield the images of ``folder``, aligned by their landmarks: uint8 ``(size, size, 3)`` RGB each, in order."""

    def one(i: int) -> np.ndarray:
        path = folder / faces.names[i]
        _, image = read_image(path)
        with naming(path):
            return align(image, faces.landmarks[i], size)

    return in_order(one, range(len(faces.names)))


def make_templates(rows: np.ndarray, faces: Faces, detector_scores: bool = True,
                   unit_images: bool = False) -> Templates:
    """All templates from the embeddings of the images, float32 (images, D).

    :param detector_scores: weight images by the detector's score
    :param unit_images: normalise each image's embedding first; else it counts by its norm, as in the recipes
    """
    if unit_images:
        rows = normalised(rows, lambda row: f"{faces.names[row]}: its embedding")
    return aggregate(rows, faces.templates, faces.media, faces.scores if detector_scores else None)


def pair_scores(templates: Templates, pairs: np.ndarray, where: str) -> np.ndarray:
    """The scores of pairs, int64 ``(P, 3)`` from :func:`common.evaluation.ijb_meta.read_pairs`: float32 (P,)."""
    scores = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        rows = [templates.rows(pairs[start : start + _PAIRS_AT_ONCE, column], where) for column in (0, 1)]
        first, second = (templates.embeddings[chosen] for chosen in rows)
        scores[start : start + _PAIRS_AT_ONCE] = np.einsum("pd,pd->p", first, second)
    return scores


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


def split_scores(scores: np.ndarray, pairs: np.ndarray) -> Scores:
    """The scores of pairs of one subject and of two."""
    return Scores(scores[pairs[:, 2] == 1], scores[pairs[:, 2] == 0])


def read_saved(path: Path, count: int, of: str, ndim: int) -> np.ndarray:
    """A saved array of a row for each of ``count`` images or pairs, float32.

    :raises UserError: if it is none, or has another number of rows, or numbers that are not finite.
    """
    try:
        found = np.asarray(open_npy(path)[:], np.float32)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not an .npy of numbers: {error}") from None
    if found.ndim != ndim or len(found) != count:
        raise UserError(f"{path}: found the shape {found.shape}, expected {count} {of}"
                        + (", a row each" if ndim > 1 else ""))
    if not np.isfinite(found).all():
        raise UserError(f"{path}: found numbers that are not finite")
    return found


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m common.ijb", description=__doc__)
    add_model_flags(parser, required=False)
    add = parser.add_argument
    add("--embeddings", type=Path, metavar="FILE.npy", help="in place of --model: the embeddings of the images, a row "
        "each in the order of the list of faces")
    add("--scores", type=Path, metavar="FILE.npy", help="in place of --model: scores of the listed pairs, for 1:1")
    add("--save-embeddings", type=Path, metavar="FILE.npy", help="write such a file of embeddings")
    add("--save-scores", type=Path, metavar="FILE.npy", help="write such a file of scores")
    add("--data", type=Path, required=True, metavar="DIR", help="the folder with loose_crop and meta")
    add("--output", type=Path, metavar="OUT", help="where results go (default: beside the checkpoint, "
        "<prefix>-<epoch>-<name of DIR>)")
    add("--far", type=rates_flag, default=FARS, metavar="F,F", help="false accept rates (default 1e-6 to 1e-1)")
    add("--no-flip", action="store_true", help="leave mirrored images out")
    add("--no-detector-score", action="store_true", help="weight all images alike")
    add("--unit-images", action="store_true", help="normalise each image's embedding before the mean")
    parser.add_overwrite()
    args = parser.parse_args(argv)
    if sum(bool(source) for source in (args.model, args.embeddings, args.scores)) != 1:
        raise UserError("found none or several of --model, --embeddings and --scores, expected one")
    if args.model:
        check_model_flags(args)
    elif not args.output:
        raise UserError("--output: not given, expected a folder for the results: there is no checkpoint beside which "
                        "they could go")
    for name in ("loose_crop", "meta"):
        if not (args.data / name).is_dir():
            raise UserError(f"--data: found no folder {args.data / name}, expected loose_crop and meta of IJB-B or "
                            "IJB-C")
    args.output = args.output or beside(args.model, args.data.resolve().name)
    require_new([args.save_embeddings, args.save_scores], [args.embeddings, args.scores], args.overwrite)
    require_results(args.output, ("results.json", "roc.png"), ("verification", "identification", "unit_images"),
                    overwrite=args.overwrite)
    return args


def _image_rows(args: argparse.Namespace, faces: Faces) -> np.ndarray:
    """The embeddings of all images, from the network or from a file: float32 (images, D)."""
    if args.embeddings:
        return read_saved(args.embeddings, len(faces.names), "embeddings", 2)
    embed, batch_size = open_model(args)
    images = aligned_faces(args.data / "loose_crop", faces, args.image_size)
    rows = embed_images(embed, images, len(faces.names), batch_size, not args.no_flip)
    if args.save_embeddings:
        _save(args.save_embeddings, rows)
    return rows


def _save(path: Path, array: np.ndarray) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args, found = _arguments(argv), None
    meta, options = args.data / "meta", {"detector_scores": not args.no_detector_score, "unit_images": args.unit_images}
    if args.scores:
        pairs = read_pairs(meta)
        scores = read_saved(args.scores, len(pairs), "scores of pairs", 1)
    else:
        faces, pairs, searches = read_faces(meta), read_pairs(meta), read_identification(meta)  # now, before hours
        templates = make_templates(_image_rows(args, faces), faces, **options)
        scores = pair_scores(templates, pairs, str(find(meta, "_template_pair_label.txt")))
        found = identify(templates, *searches) if searches else None
    if args.save_scores:
        _save(args.save_scores, scores)
    both, name = split_scores(scores, pairs), args.data.resolve().name
    rates = tar_at(args.far, both.same, both.different, args.data.name)
    write_json(args.output / "results.json", {
        "model": as_text(args.model) if args.model else str(args.embeddings or args.scores), "data": str(args.data),
        "flip": not args.no_flip, **options, "pairs_of_one_subject": len(both.same),
        "pairs_of_two": len(both.different), "verification": [rate.as_json() for rate in rates],
        "identification": found})
    print_rates(["1:1", *(f"TAR % at {rate.far:g}" for rate in rates)], [[name, *rate_cells(rates)]])
    if found:
        print(_identification_table(found))
    drawn = draw_rates({name: thin_curve(*both)}, args.output / "roc.png")
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
