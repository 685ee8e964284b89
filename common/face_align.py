# SPDX-License-Identifier: Apache-2.0
"""Aligns a folder of images by five landmarks.

    python -m common.face_align photographs aligned --landmarks landmarks.txt
    python -m common.face_align photographs aligned --detector face_detection_yunet_2023mar.onnx

The new folder has the same folders and names as the old one, as JPEGs (or PNGs). Beside it: <output>.txt, the landmarks
that were used, which --landmarks reads again; <output>.landmarks.txt, the landmarks in the aligned images, which
common.pack_folder and common.find_landmarks read; <output>.json, what was done and which images were left out and why;
and <output>.png, some of the faces and the mean of all, which is a sharp face if the alignment is right.
"""
from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from common.drawing.contact_sheet import draw_sheet
from common.evaluation.results import write_json
from common.faces.aligner import Aligned, Aligner, add_alignment_flags, open_aligner
from common.faces.alignment import BASE, MODES
from common.faces.alignment import align as align  # names that people import from here
from common.faces.alignment import estimate_norm as estimate_norm
from common.faces.alignment import norm_crop as norm_crop
from common.faces.landmark_files import ALIGNED_LANDMARKS, write_landmarks
from common.sets.image_files import tried_in_order
from common.sets.image_sources import find_images
from common.sets.left_out import MOST_LINES, tell
from common.sets.named_images import below, leads_out, with_other_endings
from common.sets.output_folder import new_folder
from recognition.config.command_line import Parser
from recognition.data.images.folder_walk import LeftOut, images_below
from recognition.errors import UserError, command
from recognition.io.files import replacing, require_new
from recognition.progress import progress

SHOWN_FACES = 31  # in the picture, beside the mean of all


class Written:
    """The results of :func:`align_folder`: names, landmarks, images for the picture, and lines about the rest."""

    def __init__(self, size: int) -> None:
        self.names: list[str] = []
        self.landmarks: list[np.ndarray] = []
        self.aligned_names: list[str] = []
        self.aligned_landmarks: list[np.ndarray] = []
        self.left_out: list[str] = []
        self.shown: list[tuple[str, np.ndarray]] = []
        self._sum = np.zeros((size, size, 3))

    def add(self, name: str, aligned_name: str, aligned: Aligned, show: bool) -> None:
        self.names.append(name)
        self.landmarks.append(aligned.landmarks)
        self.aligned_names.append(aligned_name)
        self.aligned_landmarks.append(aligned.inside)
        self._sum += aligned.image
        if show:
            self.shown.append((name, aligned.image))

    def mean(self) -> np.ndarray:
        return np.rint(self._sum / max(1, len(self.names))).astype(np.uint8)


def align_folder(source: Path, names: Sequence[str], aligner: Aligner, folder: Path, suffix: str = ".jpg",
                 quality: int = 95) -> Written:
    """Align ``source/name`` for each of ``names`` to ``folder``; an image that cannot be aligned is left out, with a
    line in the result.

    :raises UserError: if no image can be aligned.
    """
    written = Written(aligner.size)
    step = max(1, len(names) // SHOWN_FACES)
    aligned = tried_in_order(lambda name: aligner(name, source / name), names)
    bar = progress(aligned, "aligning", len(names), unit=" images")
    for i, (name, found) in enumerate(bar):
        if isinstance(found, UserError):
            written.left_out.append(str(found))
            continue
        path = folder / Path(name).with_suffix(suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = cv2.cvtColor(found.image, cv2.COLOR_RGB2BGR)
        path.write_bytes(cv2.imencode(suffix, pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())
        written.add(name, str(path.relative_to(folder)), found, i % step == 0 and len(written.shown) < SHOWN_FACES)
    if not written.names:
        raise UserError(f"{source}: none of its {len(names)} images could be aligned: {written.left_out[0]}")
    return written


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m common.face_align", description=__doc__)
    add = parser.add_argument
    add("source", type=Path, help="a folder of images, at any depth")
    add("output", type=Path, help="a new folder")
    add_alignment_flags(parser)
    add("--size", type=int, choices=(112, 224), default=BASE, help="side of the aligned images (default 112)")
    add("--mode", choices=list(MODES), default="arcface", help="the template of ArcFace's and Glint360K's sets "
        "(arcface, the default), or that of five which fits best, from profile to profile (five)")
    add("--format", choices=("jpg", "png"), default="jpg", help="of the aligned images (default jpg)")
    add("--quality", type=int, default=95, help="of JPEGs (default 95)")
    parser.add_overwrite()
    args = parser.parse_args(argv)
    if args.landmarks is None and args.detector is None:
        raise UserError("--landmarks or --detector: found neither, expected a file of landmarks or a YuNet model")
    if not 1 <= args.quality <= 100:
        raise UserError(f"--quality: found {args.quality}, expected 1 to 100")
    require_new(beside(args.output), [args.source, args.landmarks, args.detector], args.overwrite)
    return args


def beside(output: Path) -> list[Path]:
    """The files that go with the folder: landmarks, those in the aligned images, report, picture."""
    output = output.resolve()
    return [output.with_name(output.name + ending) for ending in (".txt", ALIGNED_LANDMARKS, ".json", ".png")]


def image_names(source: Path, aligner: Aligner, detects: bool) -> tuple[list[str], int]:
    """The images to align, as paths below ``source``, and the number of those that are left out since no landmarks name
    them: with a detector all are aligned, else those that have landmarks.

    :raises UserError: if there is no such folder, or if a name leads out of it
    """
    if not source.is_dir():
        raise UserError(f"{source}: not found, expected a folder of images")
    if detects:
        return [str(path.relative_to(source)) for path in find_images(source)], 0
    left_out = LeftOut()
    there = [str(path.relative_to(source)) for path in images_below(source, left_out)]
    left_out.tell(source)
    names = [below(source, name) for name in aligner.landmarks]
    for name in names:
        if leads_out(name):
            raise UserError(f"--landmarks: found {name!r}, expected a path inside {source}")
    others = with_other_endings(source, names)
    names = [others.get(name, name) for name in names]
    return names, len(set(there) - {os.path.normpath(name) for name in names})


def require_own_names(source: Path, names: Sequence[str], suffix: str) -> None:
    """Refuse images, paths below ``source``, of which two would have one name with ``suffix``, also where a file system
    takes capital letters for small ones."""
    taken: dict[str, str] = {}
    for name in names:
        target = Path(name).with_suffix(suffix)
        if (other := taken.setdefault(os.path.normpath(target).lower(), name)) != name:
            raise UserError(f"{source}: {other} and {name} would both become {target}: rename one of them")


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    aligner = open_aligner(args, args.size, args.mode)
    names, not_named = image_names(args.source, aligner, args.detector is not None)
    require_own_names(args.source, names, "." + args.format)
    with new_folder(args.output) as folder:
        written = align_folder(args.source, names, aligner, folder, "." + args.format, args.quality)
        landmarks, aligned_landmarks, described, picture = beside(args.output)
        report = {"source": str(args.source), "size": args.size, "mode": args.mode,
                  "detector": str(args.detector) if args.detector else None,
                  "landmarks": str(args.landmarks) if args.landmarks else None, "images": len(names),
                  "aligned": len(written.names), "left_out": written.left_out,
                  "without_landmarks": not_named}
        with replacing(landmarks) as temporary:
            write_landmarks(temporary, written.names, written.landmarks)
        with replacing(aligned_landmarks) as temporary:
            write_landmarks(temporary, written.aligned_names, written.aligned_landmarks)
        write_json(described, report)
        draw_sheet(picture, [written.mean(), *(image for _, image in written.shown)],
                   [f"mean of {len(written.names)}", *(name for name, _ in written.shown)])
    tell(written.left_out)
    if len(written.left_out) > MOST_LINES:
        print(f"left out: {len(written.left_out) - MOST_LINES} more, see {args.output}.json")
    if not_named:
        print(f"left out: {not_named} images that the file of landmarks does not name")
    print(f"{args.output}: {len(written.names)} of {len(names)} images aligned; mean face and examples: "
          f"{args.output}.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
