# SPDX-License-Identifier: Apache-2.0
"""Finds the landmarks of the images of a training set of aligned faces: masks (data_mask_prob) follow them.

    python -m common.find_landmarks datasets/faces_emore --detector face_detection_yunet_2023mar.onnx
    python -m common.find_landmarks aligned --landmarks aligned.landmarks.txt

The set is a folder of records, or a folder of folders of images that training reads in place. The landmarks go to
landmarks.npz in the folder of records, or to <folder>.landmarks.npz beside the folder of folders, where training looks
for them. --landmarks is for folders of images: what common.face_align wrote beside them. Images without a face, or that
cannot be used, are counted; on these a mask lies as on a face that fits the template.
"""
from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

import numpy as np

from common.faces.aligner import add_alignment_flags, open_detector
from common.faces.face_detector import FaceDetector, choose_face
from common.faces.landmark_files import read_landmarks
from common.faces.upright import why_no_face, why_not_in
from common.sets.image_files import in_order
from recognition.config.command_line import Parser
from recognition.data.sets.folder_set import FolderSet
from recognition.data.sets.image_set import ImageSet
from recognition.data.sets.landmarks import write_landmarks_of
from recognition.data.sets.open_set import Opening, open_set
from recognition.errors import UserError, command
from recognition.io.files import require_new
from recognition.progress import progress

Find = Callable[[int], "np.ndarray | None"]  # from an image's number to float (5, 2)


def by_detector(dataset: ImageSet, detector: FaceDetector, rule: str) -> Find:
    """The landmarks that a detector finds in the images."""

    def find(i: int) -> np.ndarray | None:
        try:
            image = dataset.load(i)[1]
        except UserError:  # training says more about it
            return None
        found = detector(image)
        chosen = choose_face(found, image.shape[0], image.shape[1], rule)
        return None if chosen is None else found.landmarks[chosen]

    return find


def by_name(dataset: FolderSet, file: Path) -> Find:
    """The landmarks that a file has for the images, by their paths below the folder.

    :raises UserError: if it cannot be read, or names none of them
    """
    points = {os.path.normpath(name): five for name, five in read_landmarks(file).by_name().items()}
    names = [str(dataset.listing.path(key).relative_to(dataset.listing.root)) for key in dataset.keys.tolist()]
    if points.keys().isdisjoint(names):
        raise UserError(f"{file}: found none of the images of {dataset.path}, the first of which is {names[0]}, "
                        "expected landmarks of aligned images, as common.face_align writes them beside its folder")
    return lambda i: points.get(names[i])


def find_landmarks(dataset: ImageSet, find: Find) -> np.ndarray:
    """The landmarks by key, float32 ``(largest key + 1, 5, 2)``, NaN where none are found that form a face."""
    side = dataset.image_shape[0]
    points = np.full((int(dataset.keys.max()) + 1, 5, 2), np.nan, np.float32)
    images = range(len(dataset))
    for i, five in zip(images, progress(in_order(find, images), "landmarks", len(images), unit=" images")):
        if five is not None and not why_no_face(five) and not why_not_in(five, side, side):
            points[dataset.keys[i]] = five
    return points


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m common.find_landmarks", description=__doc__)
    parser.add_argument("set", help="a folder of records, or of folders of aligned images")
    add_alignment_flags(parser)
    parser.add_overwrite()
    args = parser.parse_args(argv)
    if (args.landmarks is None) == (args.detector is None):
        raise UserError("--landmarks, --detector: expected one of them, a file of landmarks or a YuNet model")
    return args


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    detector = open_detector(args)
    dataset = open_set(args.set, Opening(writes=False))
    if dataset.landmarks_place is None:
        raise UserError(f"{args.set}: found no images of people, expected a folder of records or of folders of images")
    place, of = dataset.landmarks_place
    require_new([place], [args.landmarks, args.detector], args.overwrite)
    if detector:
        find = by_detector(dataset, detector, args.face)
    elif isinstance(dataset, FolderSet):
        find = by_name(dataset, args.landmarks)
    else:
        raise UserError(f"--landmarks: {args.set} holds records, which have no names, expected --detector")
    points = find_landmarks(dataset, find)
    found = int(np.isfinite(points[dataset.keys, 0, 0]).sum())
    if not found:
        raise UserError(f"{args.set}: found no face in its {len(dataset)} images, expected aligned faces")
    write_landmarks_of(place, of, points)
    dataset.close()
    print(f"{place}: landmarks of {found} of {len(dataset)} images")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
