# SPDX-License-Identifier: Apache-2.0
"""Scores a checkpoint on verification sets.

    python -m common.verification --model models/r100-arcface-emore/model,1 --data DIR --targets lfw,cfp_fp,agedb_30
    python -m common.verification --model 'models/r100-arcface-emore/model,1|2|3' --data DIR
    python common/verification.py --model models/r100-arcface-emore/model --data-dir DIR --target lfw --gpu 0

A prefix without a number stands for all checkpoints of that prefix, the newest first. The second and third command are
those of the recipes, whose flags --data-dir, --target, --nfolds, --gpu, --mode and --max are known, too. Sets of
--targets that are not there are left out, with a line, if others are.

Prints the legacy lines and a table, and of several checkpoints which is the best; writes to the output folder
results.json, roc.png (ROC curves), scores.png (histograms of the distances) and worst-<target>.png (the worst pairs of
both kinds, errors in red). With --mode 2 also temp.bin: the embeddings of the first set.
"""
from __future__ import annotations

import argparse
import pickle
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.embedding.model_flags import add_model_flags, as_text, beside, check_model_flags, open_model, rates_flag
from common.evaluation.results import percent, print_rates, require_results, write_json
from common.evaluation.verification_pictures import NO_MATPLOTLIB, draw_contact_sheet, draw_curves, draw_histograms
from recognition.config.command_line import Parser, check_ranges
from recognition.data.verification_set import VerificationSet, load_bin
from recognition.errors import UserError, command, one_line
from recognition.evaluation.embed_images import Embed, normalised
from recognition.evaluation.rates import allowed_accepts
from recognition.evaluation.roc import tar_at_far
from recognition.evaluation.verification import FOLDS, VerificationResult, check_pairs, embed_views, evaluate
from recognition.io.files import replacing
from recognition.progress import progress

FARS = (1e-4, 1e-3)
EMBEDDINGS = "temp.bin"  # of --mode 2, as the recipes' script names it


def score(embed: Embed, chosen: VerificationSet, batch_size: int, folds: int = FOLDS,
          pca: int = 0, save: Path | None = None) -> VerificationResult:
    """Score a network by the legacy protocol, as in the training loop; with ``pca`` above 0 after a PCA to so many
    numbers. The embeddings are written to ``save``, see :func:`save_embeddings`."""
    name, images, issame = chosen
    check_pairs(issame, folds, name)
    with progress(total=2 * len(images), desc=name, unit=" images") as bar:

        def embed_and_say(batch: np.ndarray) -> np.ndarray:
            bar.update(len(batch))
            return embed(batch)

        embeddings, xnorm = embed_views(embed_and_say, images, batch_size)
    if save:
        save_embeddings(save, embeddings, issame)
    if pca:
        from common.evaluation.verification_pca import evaluate_pca  # with scikit-learn, which nothing else needs

        result = evaluate_pca(embeddings, issame, pca, folds, name)
    else:
        result = evaluate(embeddings, issame, folds, name)
    return VerificationResult(**vars(result), name=name, xnorm=xnorm)


def save_embeddings(path: Path, embeddings: np.ndarray, issame: np.ndarray) -> None:
    """Write a pickle of (embeddings float32 ``(2 P, D)`` of unit length, a list of P booleans), which is what the
    recipes' script leaves with --mode 2; pair p is rows 2 p and 2 p + 1."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        pickle.dump((normalised(embeddings), issame.tolist()), file, protocol=4)


def as_json(result: VerificationResult, fars: Sequence[float]) -> dict[str, Any]:
    """The part of results.json about one set."""
    same = int(result.issame.sum())
    different = len(result.issame) - same
    rates = tar_at_far(result.distances, result.issame, fars, result.name)
    return {"pairs": len(result.issame), "pairs_of_one_identity": same, "accuracy": result.mean, "std": result.std,
            "accuracies": result.accuracies.tolist(), "thresholds": result.best_thresholds.tolist(),
            "xnorm": result.xnorm, "auc": result.auc,
            "tar_at_far": [{"far": far, "tar": float(tar), "false_accepts_allowed": allowed_accepts(far, different)}
                           for far, tar in zip(fars, rates)]}


def _targets(data: Path, text: str | None) -> list[Path]:
    """The files of the targets; by default all that DIR has."""
    if not data.is_dir():
        raise UserError(f"--data: found no folder {data}, expected one of verification sets, <target>.bin")
    paths = [data / f"{name.strip()}.bin" for name in text.split(",")] if text else sorted(data.glob("*.bin"))
    missing = ", ".join(path.name for path in paths if not path.is_file())
    found = [path for path in paths if path.is_file()]
    if not found:
        there = ", ".join(path.stem for path in sorted(data.glob("*.bin"))) or "none"
        raise UserError(f"{data}: found no {missing or '<target>.bin'}, expected verification sets; there are: {there}")
    if missing:
        print(one_line(f"{data}: no {missing} there: left out"))
    return found


def _arguments(argv: Sequence[str] | None) -> list[argparse.Namespace]:
    """The settings of each checkpoint that is asked for."""
    parser = Parser(prog="python -m common.verification", description=__doc__)
    add_model_flags(parser)
    add = parser.add_argument
    add("--data", "--data-dir", type=Path, required=True, metavar="DIR", help="the folder of the sets, <target>.bin")
    add("--targets", "--target", metavar="A,B", help="names of the sets (default: all in DIR)")
    add("--output", type=Path, metavar="DIR", help="where results go (default: beside the checkpoint, "
        "<prefix>-<epoch>-verification; of several checkpoints a folder each in DIR)")
    add("--folds", "--nfolds", type=int, default=FOLDS, help=f"folds of the protocol (default {FOLDS})")
    add("--pca", type=int, default=0, metavar="N", help="reduce embeddings to N numbers by a PCA that each fold's "
        "others are fitted with (default 0: do not)")
    add("--far", type=rates_flag, default=FARS, metavar="F,F", help="false accept rates of the table (default "
        "1e-4,1e-3)")
    add("--max", type=_slice, metavar="A,B", help="of a prefix without a number the checkpoints from place A to B - 1, "
        "if there are more than B")
    add("--mode", type=int, default=0, choices=(0, 1, 2), help="1: the first checkpoint alone, as the recipes' "
        "script does to show bad cases, which are drawn in any case; 2: as 1, and the embeddings of the first set are "
        f"written to {EMBEDDINGS}")
    parser.add_overwrite()
    args = parser.parse_args(argv)
    check_ranges(args, folds=2, pca=0)
    args.paths = _targets(args.data, args.targets)
    models = _models(args.model, args.max)[: 1 if args.mode else None]
    runs = [argparse.Namespace(**{**vars(args), "model": model}) for model in models]
    others = [*dict.fromkeys(f"worst-{path.stem}.png" for path in args.paths), *([EMBEDDINGS] * (args.mode == 2))]
    for run in runs:
        check_model_flags(run)
        several = args.output / f"{run.model[1]:04d}" if args.output and len(runs) > 1 else args.output
        run.output = several or beside(run.model, "verification")
        require_results(run.output, ("results.json", "roc.png", "scores.png", *others), ("folds", "pca", "targets"),
                        overwrite=args.overwrite)
    return runs


def _slice(text: str) -> tuple[int, int]:
    try:
        low, high = map(int, text.split(","))
    except ValueError:
        low, high = 0, 0
    if not 0 <= low < high:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected two numbers with a comma, the second the larger")
    return low, high


def _models(text: str, part: tuple[int, int] | None = None) -> list[str]:
    """The checkpoints in ``PREFIX,1|2|3``; of a prefix without a number all, the newest first, or ``part`` of them if
    they are more; else the only one."""
    prefix, _, numbers = text.rpartition(",")
    if "|" in numbers:
        return [f"{prefix},{number.strip()}" for number in dict.fromkeys(numbers.split("|"))]
    folder, name = Path(text).parent, re.escape(Path(text).name)
    matches = [re.fullmatch(rf"{name}-([0-9]{{4,9}})\.params", path.name) for path in folder.glob("*.params")]
    found = [f"{text},{number}" for number in sorted((int(match[1]) for match in matches if match), reverse=True)]
    return (found[slice(*part)] if part and len(found) > part[1] else found) or [text]


@command
def main(argv: Sequence[str] | None = None) -> int:
    status = 0
    runs, found = _arguments(argv), []  # all are checked before the first is run
    for args in runs:
        if len(runs) > 1:
            print(f"{as_text(args.model)}:", flush=True)
        results, refused = _verify(args)
        found.append(results)
        status = max(status, UserError.status if refused else 0)
    for path in runs[0].paths if len(runs) > 1 else ():
        accuracies = [results[path.stem].mean if path.stem in results else -1.0 for results in found]
        if max(accuracies) >= 0:
            print(f"Max of [{path.stem}] is {max(accuracies):1.5f}\nbest of [{path.stem}]: "
                  f"{as_text(runs[accuracies.index(max(accuracies))].model)}")
    return status


def _verify(args: argparse.Namespace) -> tuple[dict[str, VerificationResult], list[str]]:
    """Score one checkpoint; returns the results by set, and the sets that cannot be scored."""
    embed, batch_size = open_model(args)
    results: dict[str, VerificationResult] = {}
    refused = []
    for path in args.paths:  # one set at a time in memory; the others go on if one cannot be scored
        try:
            chosen = load_bin(path, (args.image_size, args.image_size))
            save = args.output / EMBEDDINGS if args.mode == 2 and path == args.paths[0] else None
            result = results[chosen.name] = score(embed, chosen, batch_size, args.folds, args.pca, save)
        except UserError as error:
            refused.append(path.stem)
            print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
            continue
        draw_contact_sheet(chosen, result, args.output / f"worst-{chosen.name}.png")
        print(f"[{chosen.name}]XNorm: {result.xnorm:f}\n[{chosen.name}]Accuracy-Flip: {result.mean:1.5f}+-"
              f"{result.std:1.5f}", flush=True)
    if not results:
        return results, refused
    content = {name: as_json(result, args.far) for name, result in results.items()}
    write_json(args.output / "results.json", {"model": as_text(args.model), "data": str(args.data), "folds": args.folds,
                                              "pca": args.pca, "targets": content, "refused": refused})
    _print_table(content, args.far)
    drawn = draw_curves({**results}, args.output / "roc.png")
    drawn = drawn and draw_histograms({**results}, args.output / "scores.png")
    print(f"results and pictures: {args.output}" if drawn else f"results: {args.output}; {NO_MATPLOTLIB}")
    return results, refused


def _print_table(content: dict[str, dict[str, Any]], fars: Sequence[float]) -> None:
    rows = [[name, str(part["pairs"]), percent(part["accuracy"]), percent(part["std"]), f"{part['auc']:.5f}",
             *(percent(rate["tar"]) + ("" if rate["false_accepts_allowed"] else "*") for rate in part["tar_at_far"])]
            for name, part in content.items()]
    print_rates(["set", "pairs", "accuracy %", "std", "AUC", *(f"TAR % at {far:g}" for far in fars)], rows)


if __name__ == "__main__":
    raise SystemExit(main())
