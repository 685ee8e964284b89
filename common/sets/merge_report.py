# SPDX-License-Identifier: Apache-2.0
"""The report of :mod:`common.merge_sets`: a table of identities, and pictures."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.drawing.contact_sheet import draw_sheet
from common.drawing.plots import COLOURS, INK, new_figure, save, style
from common.sets.leaks import Likeness
from recognition.data.images.image import decode_rgb
from recognition.data.sets.dataset import FaceDataset

SHOWN_IMAGES = 32  # in the sheet of the nearest


class Merged(NamedTuple):
    """The content of the merged set."""

    fates: list[np.ndarray]  # int8 (N,) for each set: the fate of its images
    numbers: list[np.ndarray]  # int64 (C,) for each set: the new numbers of its identities, -1 for none
    images: np.ndarray  # int64 (M, 2): set and image, in the order of the new set
    counts: list[int]  # images of each new identity


def write_identities(path: Path, datasets: Sequence[FaceDataset], labels: Sequence[np.ndarray], merged: Merged,
                     reasons: Sequence[str], alike: Sequence[Likeness] | None, names: Sequence[str]) -> None:
    """Write a line for each identity of each set: its new number (empty if it has none), the numbers of its images by
    their fate, and, with embeddings, the verification image nearest to its mean."""
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        columns = ["set", "identity", "new_identity", *reasons, *(["cosine", "nearest"] if alike else [])]
        file.write("\t".join(columns) + "\n")
        for i, (dataset, of, fate) in enumerate(zip(datasets, labels, merged.fates)):
            counts = np.bincount(of * len(reasons) + fate, minlength=dataset.num_classes * len(reasons))
            for identity, row in enumerate(counts.reshape(-1, len(reasons)).tolist()):
                number = int(merged.numbers[i][identity])
                cells = [dataset.path.name, identity, number if number >= 0 else "", *row]
                if alike:
                    near = int(alike[i].mean_nearest[identity])
                    cells += [f"{alike[i].mean_cosines[identity]:.4f}", names[near] if near >= 0 else ""]
                file.write("\t".join(map(str, cells)) + "\n")


def draw_spread(path: Path, alike: Sequence[Likeness], labels: Sequence[np.ndarray], image_limit: float,
                identity_limit: float) -> bool:
    """Draw histograms of the largest cosines of images and of identities with the verification sets; returns False
    without matplotlib."""
    if not (figure := new_figure(9.2, 3.4)):
        return False
    present = [np.unique(of) for of in labels]
    of_images = np.concatenate([part.cosines for part in alike])
    of_identities = np.concatenate([part.mean_cosines[of] for part, of in zip(alike, present)])
    charts = (("images", of_images, image_limit), ("identities", of_identities, identity_limit))
    for axes, (name, cosines, limit), colour in zip(figure.subplots(1, 2), charts, COLOURS):
        style(axes, f"{name}: {int((cosines >= limit).sum())} of {len(cosines)} at the limit or above",
              "largest cosine with a verification image")
        axes.hist(cosines, np.linspace(min(-0.1, float(cosines.min())), 1, 81), color=colour)
        axes.set_xlim(None, max(1.02, limit))
        axes.axvline(limit, color=INK, linewidth=1, linestyle=(0, (3, 3)))
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(0)
        axes.set_ylabel(name, color=INK, fontsize=9)
    save(figure, path)
    return True


def draw_nearest(path: Path, datasets: Sequence[FaceDataset], alike: Sequence[Likeness],
                 apart: Sequence[bytes]) -> None:
    """Draw the training images nearest to the verification sets, nearest first, each beside the image it is near to."""
    found = [(-float(part.cosines[i]), which, int(i)) for which, part in enumerate(alike)
             for i in np.argsort(-part.cosines, kind="stable")[: SHOWN_IMAGES // 2]]
    images, captions = [], []
    for cosine, which, i in sorted(found)[: SHOWN_IMAGES // 2]:
        label, body, key = datasets[which].read(i)
        images += [decode_rgb(body), decode_rgb(apart[alike[which].nearest[i]])]
        captions += [f"{key}: label {label}", f"cosine {-cosine:.3f}"]
    draw_sheet(path, images, captions, title="nearest to the verification sets: record and verification image")
