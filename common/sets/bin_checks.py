# SPDX-License-Identifier: Apache-2.0
"""The checks of :mod:`common.doctor` on verification sets."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from common.sets.doctor_checks import ERROR, NOTE, WARNING, Finding
from common.sets.record_checks import Survey, look_at
from recognition.data.verification_set import read_bin
from recognition.errors import UserError
from recognition.evaluation.verification import FOLDS, folds_of_one_kind

USUAL_TARGETS = ("lfw", "cfp_fp", "agedb_30")  # the presets' verification sets


def check_bin(path: Path, training: Survey | None, size: tuple[int, int]) -> tuple[dict[str, int], list[Finding]]:
    """Check a verification set, also for images that are in the training set, byte for byte. Returns facts and
    findings."""
    advice = "get it again, or make it: python -m common.build_eval_pack"
    try:
        images, issame = read_bin(path)
    except UserError as error:
        return {}, [Finding(ERROR, path.name, str(error).split(": ", 1)[-1], advice)]
    looked = [look_at(image, *size) for image in images]
    found = [Finding(ERROR, f"{path.name}, image {i}", image.problem, advice)
             for i, image in enumerate(looked) if image.problem][:3]
    same = int(issame.sum())
    if same in (0, len(issame)):
        which = "of one identity" if same else "of two identities"
        found.append(Finding(WARNING, path.name, f"all {len(issame)} pairs are {which}, which measures little", advice))
    elif one_sided := folds_of_one_kind(issame):
        found.append(Finding(WARNING, path.name, f"{one_sided} of the protocol's {FOLDS} folds, which follow the order "
                             "of the pairs, hold pairs of one kind only", f"{advice}, with both kinds mixed"))
    if len(issame) < FOLDS:
        found.append(Finding(ERROR, path.name, f"{len(issame)} pairs for {FOLDS} folds", advice))
    if training is not None:
        shared = np.isin(np.array([image.digest for image in looked], np.uint64), training.digests).sum()
        if shared:
            found.append(Finding(WARNING, path.name, f"{shared} of its {len(images)} images are in train.rec, byte for "
                                 "byte: its accuracy says less than it seems to", "python -m common.merge_sets DIR "
                                 f"--output NEW --exclude {path.name} leaves them out"))
    return {"pairs": len(issame), "pairs_of_one_identity": same, "images": len(images)}, found


def check_targets(folder: Path) -> list[Finding]:
    missing = [name for name in USUAL_TARGETS if not (folder / f"{name}.bin").exists()]
    if not missing:
        return []
    names = ", ".join(f"{name}.bin" for name in missing)
    return [Finding(NOTE, folder.name, f"has no {names}, which presets verify on",
                    "put them there, or name others with --val-targets")]
