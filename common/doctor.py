# SPDX-License-Identifier: Apache-2.0
"""Examines a data set's folder, and tells for everything that is wrong with it what to do.

    python -m common.doctor datasets/emore

Looks at train.rec (framing, header, identity records, labels, every image), train.idx (keys, offsets), property, and
every <target>.bin beside them. The exit status is 0 if nothing needs doing, 1 if training runs but something is worth
mending, 2 if training would stop or learn wrong things, or if there is no such folder. Results go beside the folder, or
to --output: doctor.json with all findings, and doubtful.png with images that cannot be used or are there twice.
"""
from __future__ import annotations

import contextlib
import filecmp
import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from common.drawing.contact_sheet import draw_sheet
from common.evaluation.results import require_results, table, write_json
from common.sets import doctor_checks as checks
from common.sets.bin_checks import check_bin, check_targets
from common.sets.doctor_checks import ERROR, WARNING, Finding, Records
from common.sets.record_checks import Survey, framing, repeats, survey
from common.sets.training_set import link_or_copy
from recognition.config.command_line import Parser
from recognition.data.images.image import MOST_RECORD_PIXELS, decode_rgb
from recognition.data.records.recordio import RecordReader, unpack_record
from recognition.errors import UserError, command, one_line
from recognition.io.files import replacing

DOUBTFUL_IMAGES = 32  # in the picture


class Examined:
    """The results of an examination: facts, findings, and the records for the picture."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.findings: list[Finding] = []
        self.records: Records | None = None
        self.survey: Survey | None = None

    @property
    def status(self) -> int:
        levels = {finding.level for finding in self.findings}
        return 2 if ERROR in levels else 1 if WARNING in levels else 0


def examine(folder: Path, decode: bool = True) -> Examined:
    """Examine a folder. Without ``decode`` only the bytes of images are examined."""
    if not folder.is_dir():
        raise UserError(f"{folder}: not found, expected the folder of a data set")
    found = Examined()
    prop, found.findings = checks.check_property(folder)
    size = (prop.height, prop.width) if prop else (112, 112)
    records, of_files = checks.check_files(folder)
    found.findings += of_files
    if records is not None:
        found.records = records
        found.survey = survey(records.reader, records.offsets, *size, decode)
        found.findings += checks.check_identities(records, found.survey.labels)
        if prop is not None:
            found.findings += checks.check_images(records, found.survey, prop)
            found.findings += checks.check_shuffled(prop, folder, len(records.keys))
            found.findings += checks.check_open(folder, found.findings)
        form = "identities" if records.header else "shuffled" if prop and prop.shuffled else "sequential"
        found.facts = {"form": form, "records": len(records.framing.offsets), "images": len(records.keys),
                       "images_that_can_be_used": int(found.survey.good.sum()), "bytes": records.reader.size}
    if prop is not None:
        found.facts.update(identities=prop.num_classes, height=prop.height, width=prop.width)
    found.facts["verification"] = {}
    for path in sorted(folder.glob("*.bin")):
        found.facts["verification"][path.stem], of_bin = check_bin(path, found.survey, size)
        found.findings += of_bin
    found.findings += check_targets(folder)
    return found


def write_index(folder: Path) -> int:
    """Write ``train.idx`` anew from the records; returns their number. Keys are the records' own ids if these are
    distinct, else 0, 1, ... A different older index is kept as ``train.idx.1``, or with the next free number.

    A record whose header cannot be read gets its number as its id, so that all others keep their keys; the examination
    reports it under that key.
    """
    reader = RecordReader(folder / "train.rec")
    frames = framing(reader)
    ids = np.arange(len(frames.offsets), dtype=np.uint64)
    for i, offset in enumerate(frames.offsets.tolist()):
        with contextlib.suppress(ValueError):
            ids[i] = unpack_record(reader.read(offset)).id
    distinct = len(np.unique(ids)) == len(ids) and (not len(ids) or ids.max() < 1 << 62)
    keys = ids.tolist() if distinct else range(len(ids))
    index = folder / "train.idx"
    with replacing(index) as temporary:
        with open(temporary, "w", encoding="ascii") as file:
            file.writelines(f"{key}\t{offset}\n" for key, offset in zip(keys, frames.offsets.tolist()))
        if index.exists() and not filecmp.cmp(index, temporary, shallow=False):
            kept = next(name for i in count(1) if not os.path.lexists(name := index.with_name(f"train.idx.{i}")))
            link_or_copy(index, kept)
            print(f"{kept}: the index before")
    return len(ids)


def draw_doubtful(found: Examined, path: Path) -> bool:
    """Draw images that cannot be used, as far as OpenCV decodes them, and some with two labels; returns False if there
    are none."""
    if found.records is None or found.survey is None:
        return False
    labels, keys = found.survey.labels, found.records.keys
    groups = (group for group in repeats(found.survey.digests, np.flatnonzero(found.survey.bytes > 0))
              if (labels[group] != labels[group[0]]).any())
    places = [i for i, _ in (*found.survey.problems, *found.survey.damages)][: DOUBTFUL_IMAGES // 2]
    places += [i for group, _ in zip(groups, range(DOUBTFUL_IMAGES // 4)) for i in group[:2].tolist()]
    images, captions = [], []
    for i in places:
        images.append(_shown(found.records.reader, int(found.records.offsets[i])))
        captions.append(f"{keys[i]}: label {labels[i]:g}")
    if images:
        draw_sheet(path, images, captions, title="cannot be used or damaged, then pairs under two labels")
    return bool(images)


def _shown(reader: RecordReader, offset: int) -> np.ndarray:
    """The image as far as OpenCV decodes it, uint8 (H, W, 3); a grey square if it does not."""
    try:
        body = unpack_record(reader.read(offset)).body
        return decode_rgb(body, MOST_RECORD_PIXELS)
    except (ValueError, UserError):
        return np.full((112, 112, 3), 200, np.uint8)


def report(found: Examined) -> str:
    """Facts and findings as text for the screen."""
    facts = [[name.replace("_", " "), str(value)] for name, value in found.facts.items() if name != "verification"]
    sets = found.facts["verification"].items()
    facts += [[f"{name}.bin", f"{parts['pairs']} pairs"] for name, parts in sets if parts]
    lines = [table(["", ""], facts).strip("\n")]
    for level in (checks.ERROR, checks.WARNING, checks.NOTE):
        for finding in found.findings:
            if finding.level == level:
                lines += [one_line(f"{level}: {finding.where}: {finding.what}"), f"    to do: {finding.advice}"]
    return "\n".join(lines)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m common.doctor", description=__doc__)
    add = parser.add_argument
    add("data", type=Path, metavar="DIR", help="the folder: train.rec, train.idx, property, <target>.bin")
    add("--output", type=Path, metavar="OUT", help="where results go (default: <DIR>-doctor)")
    add("--no-decode", action="store_true", help="look at the bytes of train.rec's images alone, without decoding")
    add("--write-index", action="store_true", help="first write train.idx anew, from train.rec")
    parser.add_overwrite()
    args = parser.parse_args(argv)
    output = args.output or args.data.resolve().with_name(args.data.resolve().name + "-doctor")
    require_results(output, ("doctor.json", "doubtful.png"), ("status", "findings"), overwrite=args.overwrite)
    if args.write_index:
        print(f"{args.data / 'train.idx'}: written anew, {write_index(args.data)} records")
    found = examine(args.data, not args.no_decode)
    print(report(found))
    write_json(output / "doctor.json", {"data": str(args.data), "status": found.status, **found.facts,
                                        "findings": [finding._asdict() for finding in found.findings]})
    drawn = draw_doubtful(found, output / "doubtful.png")
    said = {0: "healthy", 1: "can be trained on; see the warnings", 2: "has errors"}[found.status]
    print(f"{args.data}: {said}; results: {output}" + (", with a picture of doubtful images" if drawn else ""))
    return found.status


if __name__ == "__main__":
    raise SystemExit(main())
