# SPDX-License-Identifier: Apache-2.0
"""Statistics of a training set: images per identity, sizes, broken records; as a table, JSON and pictures.

    python -m common.data_stats datasets/emore

Every image is decoded (--no-decode looks at its bytes alone). Beside the folder, or where --output says: stats.json,
stats.png (images per identity, bytes an image), faces.png (a few identities, a row each) and identities.tsv (a line an
identity: images, mean bytes). Records that cannot be used are counted and named; common.doctor says what to do.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.drawing.contact_sheet import draw_sheet
from common.drawing.plots import COLOURS, INK, new_figure, save, style
from common.evaluation.results import require_results, table, write_json
from common.evaluation.verification_pictures import NO_MATPLOTLIB
from common.sets.left_out import tell
from common.sets.record_checks import Survey, survey
from common.sets.training_set import identity_names
from recognition.config.command_line import Parser, check_ranges
from recognition.data.images.image import MOST_RECORD_PIXELS, decode_rgb
from recognition.data.sets.dataset import FaceDataset, open_dataset
from recognition.errors import command
from recognition.io.files import replacing

POINTS = (0, 5, 25, 50, 75, 95, 100)  # percentiles in the table
ROWS, COLUMNS = 6, 8  # identities in the picture, and images of each
FILES = ("stats.json", "identities.tsv", "stats.png", "faces.png")


def summary(dataset: FaceDataset, looked: Survey) -> dict[str, Any]:
    """The numbers of a set for its JSON file."""
    good = looked.good
    counts = images_per_identity(dataset, looked)
    present = counts[counts > 0]
    sizes = Counter(map(tuple, looked.sides[good].tolist()))
    return {
        "form": dataset.form, "images": len(good), "broken": int((~good).sum()), "grey": int(looked.grey.sum()),
        "identities": dataset.num_classes, "identities_with_images": len(present),
        "images_per_identity": percentiles(present), "bytes_per_image": percentiles(looked.bytes[good]),
        "sizes": [{"height": h, "width": w, "images": n} for (h, w), n in sizes.most_common(20) if h],
        "broken_records": [{"record": key, "problem": text} for key, text in broken(dataset, looked)]}


def broken(dataset: FaceDataset, looked: Survey) -> list[tuple[int, str]]:
    """Keys and problems of the first thousand broken records."""
    keys = dataset.records[1]
    return [(int(keys[i]), text) for i, text in looked.problems]


def percentiles(values: np.ndarray) -> dict[str, float]:
    """Mean and percentiles, which are elements of the values: ``{"mean": .., "0": .., "50": ..}``; empty if there are
    no values."""
    if not len(values):
        return {}
    found = np.percentile(values, POINTS, method="lower")
    return {"mean": float(values.mean()), **{str(point): float(value) for point, value in zip(POINTS, found)}}


def images_per_identity(dataset: FaceDataset, looked: Survey) -> np.ndarray:
    """The number of usable images of each identity, int64 ``(C,)``."""
    labels = looked.labels[looked.good]
    inside = (labels >= 0) & (labels < dataset.num_classes)
    return np.bincount(labels[inside].astype(np.int64), minlength=dataset.num_classes)


def write_identities(path: Path, dataset: FaceDataset, looked: Survey) -> None:
    counts, names = images_per_identity(dataset, looked), identity_names(dataset)
    inside = looked.good & (looked.labels >= 0) & (looked.labels < dataset.num_classes)
    sums = np.bincount(looked.labels[inside].astype(np.int64), looked.bytes[inside], dataset.num_classes)
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write("\t".join(["identity", "images", "mean_bytes", *(["name"] if names else [])]) + "\n")
        for i, (count, total) in enumerate(zip(counts.tolist(), sums.tolist())):
            file.write("\t".join([str(i), str(count), f"{total / max(count, 1):.0f}", *names[i : i + 1]]) + "\n")


def draw_stats(path: Path, dataset: FaceDataset, looked: Survey) -> bool:
    """Draw histograms of the images of an identity and of the bytes of an image; returns False without matplotlib."""
    if not (figure := new_figure(9.2, 3.4)):
        return False
    counts = images_per_identity(dataset, looked)
    present, sizes = counts[counts > 0], looked.bytes[looked.good]
    for axes, values, title, label, unit, colour in zip(
            figure.subplots(1, 2), (present, sizes / 1000), (f"{len(present)} identities", f"{len(sizes)} images"),
            ("images of an identity", "kB an image"), ("identities", "images"), COLOURS):
        style(axes, title, label)
        whole = values.dtype.kind == "i" and values.max() - values.min() < 60
        axes.hist(values, np.arange(values.min(), values.max() + 2) - 0.5 if whole else 60, color=colour)
        if whole:
            axes.set_xlim(max(values.min() - 5, 0), values.max() + 5)
        axes.axvline(float(np.median(values)), color=INK, linewidth=1, linestyle=(0, (3, 3)), label="median")
        axes.set_ylabel(unit, color=INK, fontsize=9)
        axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    save(figure, path)
    return True


def draw_faces(path: Path, dataset: FaceDataset, looked: Survey, seed: int = 0) -> None:
    """Draw a row of images for each of a few random identities; with two images or more, if there are such."""
    rng = np.random.default_rng(seed)
    counts = images_per_identity(dataset, looked)
    several = np.flatnonzero(counts > 1) if (counts > 1).any() else np.flatnonzero(counts)
    names, images, captions = identity_names(dataset), [], []
    for identity in np.sort(rng.permutation(several)[:ROWS]).tolist():
        places = np.flatnonzero((looked.labels == identity) & looked.good)
        chosen = np.sort(rng.permutation(places)[:COLUMNS]).tolist()
        for i in chosen:
            _, body, key = dataset.read(i)
            images.append(decode_rgb(body, MOST_RECORD_PIXELS))
            captions.append(f"{names[identity] if names else identity}: {key}")
        images += [np.full((112, 112, 3), 255, np.uint8)] * (COLUMNS - len(chosen))
        captions += [""] * (COLUMNS - len(chosen))
    draw_sheet(path, images, captions, COLUMNS, title="identities, a row each: identity and record")


def report(found: dict[str, Any]) -> str:
    """The table on the screen."""
    columns = ["mean", *map(str, POINTS)]
    rows = [[name.replace("_", " "), *(f"{found[name][column]:.{int(column == 'mean')}f}" for column in columns)]
            for name in ("images_per_identity", "bytes_per_image") if found[name]]
    sizes = ", ".join(f"{size['height']} x {size['width']}: {size['images']}" for size in found["sizes"][:5])
    head = (f"{found['images']} images of {found['identities_with_images']} identities ({found['identities']} in "
            f"property), {found['form']}; {found['broken']} broken, {found['grey']} grey")
    head += f"; sizes {sizes}" if sizes else ""
    return head + "\n" + table(["", "mean", *(f"{point} %" for point in POINTS)], rows)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m common.data_stats", description=__doc__)
    add = parser.add_argument
    add("data", type=Path, metavar="DIR", help="a training set, in any form")
    add("--output", type=Path, metavar="OUT", help="where results go (default: <DIR>-stats)")
    add("--no-decode", action="store_true", help="look at the images' bytes alone, without decoding")
    add("--seed", type=int, default=0, help="of the identities in the picture (default 0)")
    parser.add_overwrite()
    args = parser.parse_args(argv)
    check_ranges(args, seed=0)
    folder = args.data.resolve()
    output = args.output or folder.with_name(folder.name + "-stats")
    require_results(output, FILES, ("images_per_identity", "bytes_per_image"), overwrite=args.overwrite)
    dataset = open_dataset(args.data)
    reader, _, offsets = dataset.records
    looked = survey(reader, offsets, dataset.image_shape[0], dataset.image_shape[1], not args.no_decode)
    found = summary(dataset, looked)
    print(report(found))
    tell([f"record {key}: {text}" for key, text in broken(dataset, looked)], "broken")
    write_json(output / "stats.json", {"data": str(args.data), **found})
    write_identities(output / "identities.tsv", dataset, looked)
    drawn = draw_stats(output / "stats.png", dataset, looked) if looked.good.any() else True
    draw_faces(output / "faces.png", dataset, looked, args.seed)
    print(f"results: {output}" + ("" if drawn else f"; {NO_MATPLOTLIB}"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
