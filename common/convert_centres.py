# SPDX-License-Identifier: Apache-2.0
"""Converts class centres W between the files that the MXNet recipes know, cut into any number of shards.

    python -m common.convert_centres models/r100-arcface-emore/model-0001.params whole-0001.params
    python -m common.convert_centres model-0001.params eight-0001.params --shards 8
    python -m common.convert_centres FOLDER model-0001.params with-centres-0001.params --classes 360232
    python -m common.convert_centres model-0001.params FOLDER --shards 8

An input is a checkpoint with fc7_weight or fc7_<i>_weight, a folder of Partial FC's <rank>_centers.param, or a training
state (the folder state/step-<n>); several of a kind are joined in the order in which they are named. What else the
checkpoints among them hold goes with a .params output: fc7_weight for one shard, fc7_<i>_weight for more. Any other
output is a new folder of <rank>_centers.param, with the momentum if the inputs have it.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.sets.output_folder import new_folder
from recognition.config.command_line import Parser
from recognition.errors import UserError, command
from recognition.head.shard import split_classes
from recognition.io.centres import SavedCentres, centres_in_file, centres_in_folder, is_of_centres, rows_between
from recognition.io.checksums import sum_beside
from recognition.io.files import require_new
from recognition.io.params import Pieces, read_arrays, write_arrays

PARTS = ("fc7_<i>_weight", "<i>_centers.param")  # forms of files and folders that may hold a part of the shards


def read_inputs(paths: Sequence[Path]) -> tuple[SavedCentres, dict[str, Pieces]]:
    """Open W of all inputs, joined, and the other arrays of their checkpoints by name.

    :raises UserError: if none of them holds W, or if they do not fit together.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError(f"{', '.join(map(str, paths))}: found an input twice, expected each once")
    found: list[SavedCentres] = []
    others: dict[str, Pieces] = {}
    for path in paths:
        if path.is_dir():
            centres = centres_in_folder(path)
            if centres is None:
                raise UserError(f"{path}: found no <rank>_centers.param and no training state")
        else:
            file = read_arrays(path)
            centres = centres_in_file(path, file)
            named = zip(file.names, file.arrays)
            others.update({name: [array] for name, array in named if not is_of_centres(name) and name not in others})
        found += [centres] if centres else []
    if not found:
        raise UserError(f"{', '.join(map(str, paths))}: found no class centres, expected arrays named fc7_weight or "
                        "fc7_<i>_weight; a checkpoint has them if ckpt_embedding was False")
    return _joined(found), others


def _joined(found: Sequence[SavedCentres]) -> SavedCentres:
    if len(found) == 1:
        return found[0]
    if {one.form for one in found} not in [{form} for form in PARTS]:
        raise UserError(f"{' and '.join(one.where for one in found)}: found W more than once, expected it in one "
                        f"input, or in shards to join, all {' or all '.join(PARTS)}")
    momentum = [m for one in found for m in one.momentum] if all(one.momentum for one in found) else []
    bias = [b for one in found for b in one.bias] if all(one.bias for one in found) else []
    return SavedCentres(", ".join(one.where for one in found), [c for one in found for c in one.centres], momentum,
                        bias, next((one.missing for one in found if one.missing), ""))


def convert(inputs: Sequence[Path], output: Path, shards: int = 1, num_classes: int = 0, sub_centres: int = 1,
            overwrite: bool = False) -> str:
    """Write W of ``inputs`` to ``output`` in ``shards`` shards, and return a line about it.

    :param num_classes: the number of classes; rows behind the last one are left out. 0: all rows belong to classes.
    :param overwrite: replace a ``.params`` output that exists.
    :raises UserError: if the inputs do not fit ``num_classes``, or if the output cannot be written.
    """
    if output.suffix == ".params":
        require_new([output, sum_beside(output)], [path for path in inputs if not path.is_dir()], overwrite)
    centres, others = read_inputs(inputs)
    if num_classes == 0 and centres.rows % sub_centres:
        raise UserError(f"{centres.where}: found {centres.rows} rows, expected a multiple of --sub-centres "
                        f"{sub_centres}")
    num_classes = num_classes or centres.rows // sub_centres
    if mismatch := centres.mismatch(num_classes, sub_centres):
        raise UserError(f"{centres.where}: {mismatch}")
    if not 1 <= shards <= num_classes:
        raise UserError(f"--shards: found {shards}, expected 1 to {num_classes}, the number of classes")
    ranges = [(a * sub_centres, b * sub_centres) for a, b in split_classes(num_classes, shards)]
    if output.suffix == ".params":
        form = _write_checkpoint(output, centres, ranges, others)
    else:
        form = _write_folder(output, centres, ranges)
    behind = centres.rows - num_classes * sub_centres
    return (f"{output}: {form}, {num_classes} classes, {sub_centres} x {centres.dim} numbers each, from "
            f"{centres.where}" + (f"; {behind} rows behind the last class left out" if behind else ""))


def _write_checkpoint(path: Path, centres: SavedCentres, ranges: list[tuple[int, int]],
                      others: dict[str, Pieces]) -> str:
    names = ["fc7_weight"] if len(ranges) == 1 else [f"fc7_{i}_weight" for i in range(len(ranges))]
    arrays = dict(others)
    for name, rows in zip(names, ranges):
        arrays[f"arg:{name}"] = rows_between(centres.centres, *rows)
    if any(np.any(bias) for bias in centres.bias):
        arrays["arg:fc7_bias"] = rows_between(centres.bias, 0, ranges[-1][1])
        names.append("fc7_bias")
    write_arrays(path, arrays)
    momentum = "; the momentum, which no checkpoint holds, left out" if centres.momentum else ""
    return f"{', '.join(names)} and {len(others)} other arrays{momentum}"


def _write_folder(path: Path, centres: SavedCentres, ranges: list[tuple[int, int]]) -> str:
    if any(np.any(bias) for bias in centres.bias):
        raise UserError(f"{path}: {centres.where} has a bias, which <rank>_centers.param cannot hold; expected an "
                        "output that ends in .params")
    kinds = {"centers": centres.centres, "centers_mom": centres.momentum}
    with new_folder(path) as folder:
        for kind, pieces in kinds.items():
            for i, rows in enumerate(ranges if pieces else []):
                write_arrays(folder / f"{i}_{kind}.param", [rows_between(pieces, *rows)])
    return f"{len(ranges)} x <rank>_centers.param" + (" with momentum" if centres.momentum else "")


@command
def main(argv: Sequence[str] | None = None) -> int:
    lines = (__doc__ or "").splitlines()
    parser = Parser(prog="python -m common.convert_centres", description=lines[0],
                    epilog="\n".join(lines[1:]))
    parser.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help=".params file or folder")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help=".params file or new folder")
    parser.add_argument("--shards", type=int, default=1, help="shards to cut W into (default: 1)")
    parser.add_argument("--classes", type=int, default=0, help="number of classes, where shards were made equally "
                        "large and the last rows are of no class (default: as many as there are rows)")
    parser.add_argument("--sub-centres", type=int, default=1, help="loss_K, so that a class stays in one shard")
    parser.add_argument("--overwrite", action="store_true", help="replace a .params file that is there already")
    options = parser.parse_args(argv)
    if options.sub_centres < 1 or options.classes < 0:
        raise UserError("--classes, --sub-centres: expected numbers above 0")
    if options.output.resolve() in [path.resolve() for path in options.inputs]:
        raise UserError(f"{options.output}: is an input, expected another name for the output")
    print(convert(options.inputs, options.output, options.shards, options.classes, options.sub_centres,
                  options.overwrite))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
