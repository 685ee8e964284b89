# SPDX-License-Identifier: Apache-2.0
"""Embeds aligned face images, compares two, or searches a gallery.

    python -m common.inference --model PREFIX,EPOCH --images DIR --output FILE.npz
    python -m common.inference --model PREFIX,EPOCH --images FACE.jpg
    python -m common.inference --model PREFIX,EPOCH --compare A.jpg B.jpg --threshold 1.25
    python -m common.inference --model PREFIX,EPOCH --gallery DIR_OR_FILE.npz --probes IMAGE_OR_DIR --json OUT.json
    python common/inference.py --weight FILE.pt --network r50 --img FACE.jpg      # as in arcface_torch: fc1 as it is

Images are aligned faces of the size that the network was trained on, or of that shape in another size. The embedding of
an image is added to that of its mirror and normalised, as in verification; --no-flip leaves the mirror out. Distances
are squared Euclidean ones, 2 - 2 cosine, from 0 to 4. FILE.npz holds embeddings float32 (N, dim) and paths (N,). Files
that cannot be used are named and counted; the exit status is 0 if there are others.
"""
from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from common.embedding.gallery import check_same_network, distances, embed_files, load_gallery, nearest, save_gallery
from common.embedding.model_flags import add_engine_flag, files_of
from common.embedding.weights import embed_weights, names_weights
from common.sets.image_sources import find_images
from recognition.config.cli import find_pretrained
from recognition.config.command_line import Parser, check_ranges
from recognition.errors import UserError, command, one_line
from recognition.evaluation.trained_backbone import TrainedBackbone, load_backbone
from recognition.io.files import require_new, write_whole

Found = dict[str, Any]


def parser() -> Parser:
    flags = Parser(prog="python -m common.inference", description=__doc__)
    flags.add_argument("--model", required=True, help="checkpoint: PREFIX,EPOCH, PREFIX, or its folder")
    what = flags.add_mutually_exclusive_group(required=True)
    what.add_argument("--images", type=Path, metavar="PATH", help="a folder of images, at any depth, or one image")
    what.add_argument("--compare", type=Path, nargs=2, metavar="IMAGE", help="two images: how far apart are they?")
    what.add_argument("--gallery", type=Path, metavar="PATH", help="a folder of images or a FILE.npz to search in")
    flags.add_argument("--output", type=Path, metavar="FILE.npz", help="with --images: where the embeddings go")
    flags.add_argument("--probes", type=Path, metavar="PATH", help="with --gallery: an image or a folder to search for")
    flags.add_argument("--top", type=int, default=5, help="with --gallery: how many of each search (default 5)")
    flags.add_argument("--threshold", type=float, help="a distance: below it two images are called the same person")
    flags.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    flags.add_argument("--no-flip", action="store_true", help="without mirrors: half of the time")
    flags.add_argument("--devices", default="cpu", help="cpu, gpu, gpu:0,1 (default cpu)")
    add_engine_flag(flags)
    flags.add_argument("--batch-size", type=int, default=32, help="images a device at a time (default 32)")
    flags.add_argument("--image-size", type=int, default=112, help="side of the network's images (default 112)")
    flags.add_overwrite()
    return flags


def embed(backbone: TrainedBackbone, options: argparse.Namespace) -> Found:
    start = time.perf_counter()
    gallery, bad = embed_files(backbone, options.images, not options.no_flip)
    seconds = time.perf_counter() - start
    _tell(bad)
    if options.output:
        save_gallery(options.output, gallery)
        print(f"{options.output}: embeddings of {len(gallery.paths)} images, {backbone.dim} numbers each; "
              f"{len(gallery.paths) / seconds:.1f} images/s")
    else:
        with np.printoptions(precision=5, suppress=True, linewidth=100, threshold=backbone.dim + 1):
            print(gallery.embeddings[0])
    found: Found = {"images": len(gallery.paths), "unusable": bad, "seconds": seconds}
    return found if options.output else {**found, "embedding": gallery.embeddings[0].tolist()}


def compare(backbone: TrainedBackbone, options: argparse.Namespace) -> Found:
    rows = [embed_files(backbone, path, not options.no_flip)[0].embeddings[0] for path in options.compare]
    cosine = float(rows[0] @ rows[1])
    found: Found = {"images": [str(path) for path in options.compare], "cosine": cosine,
                    "distance": float(distances([cosine])[0])}
    line = f"cosine {cosine:.4f}, distance {found['distance']:.4f}"
    if options.threshold is not None:
        found["same"] = found["distance"] < options.threshold
        line += f": {'the same person' if found['same'] else 'two people'} by the threshold {options.threshold}"
    print(line)
    return found


def search(backbone: TrainedBackbone, options: argparse.Namespace) -> Found:
    flip = not options.no_flip
    bad: list[str] = []
    if options.gallery.suffix == ".npz":
        gallery = load_gallery(options.gallery)
        check_same_network(gallery, options.gallery, backbone, flip)
    else:
        gallery, bad = embed_files(backbone, options.gallery, flip)
    probes, unusable = embed_files(backbone, options.probes, flip)
    _tell(bad + unusable)
    numbers, cosines = nearest(probes.embeddings, gallery.embeddings, options.top)
    results = []
    for probe, row, values in zip(probes.paths, numbers, cosines):
        apart = distances(values)
        keep = apart < options.threshold if options.threshold is not None else np.ones(len(apart), bool)
        results.append({"probe": probe, "found": [
            {"path": gallery.paths[number], "cosine": float(cosine), "distance": float(distance)}
            for number, cosine, distance, kept in zip(row, values, apart, keep) if kept]})
    _table(results)
    return {"gallery": len(gallery.paths), "unusable": bad + unusable, "results": results}


def _table(results: list[Found]) -> None:
    probes = [one_line(result["probe"]) for result in results]
    width = max(map(len, probes))
    print(f"{'probe':<{width}}  rank  cosine  distance  gallery")
    for probe, result in zip(probes, results):
        for rank, found in enumerate(result["found"], 1):
            name = probe if rank == 1 else ""
            print(f"{name:<{width}}  {rank:>4}  {found['cosine']:6.3f}  {found['distance']:8.4f}  "
                  f"{one_line(found['path'])}")
        if not result["found"]:
            print(f"{probe:<{width}}     -       -         -  none is below the threshold")


def _tell(bad: list[str]) -> None:
    for line in bad:
        print(f"left out: {one_line(line)}")
    if bad:
        print(f"{len(bad)} images left out")


def _check(options: argparse.Namespace) -> None:
    """Check flags and paths, before an engine is imported and hours of work begin.

    :raises UserError: if one is wrong.
    """
    for flag, goes_with in (("output", "images"), ("probes", "gallery")):
        if getattr(options, flag) is not None and getattr(options, goes_with) is None:
            raise UserError(f"--{flag}: goes with --{goes_with} only")
    if options.output and options.output.suffix != ".npz":
        raise UserError(f"--output: found {options.output}, expected a name that ends in .npz")
    if options.gallery and options.probes is None:
        raise UserError("--probes: not given, expected an image or a folder to search the gallery for")
    check_ranges(options, top=1)
    require_new([options.output, options.json], [
        options.images, options.gallery, options.probes, *(options.compare or ()),
        *files_of(find_pretrained(options.model, 1, "--model"))], options.overwrite)
    for place in (options.images, options.gallery, options.probes, *(options.compare or ())):
        if place and (place != options.gallery or place.suffix != ".npz"):
            find_images(place, quiet=True)
    for place in options.compare or ():
        if place.is_dir():
            raise UserError(f"--compare: found the folder {place}, expected two images")
    if options.gallery and options.gallery.suffix == ".npz":
        load_gallery(options.gallery)
    if options.images and options.images.is_dir() and not options.output:
        raise UserError("--output: not given, expected FILE.npz for the embeddings of a folder")


@command
def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    if names_weights(words):
        return embed_weights(words)
    options = parser().parse_args(words)
    _check(options)
    side = options.image_size
    backbone = load_backbone(options.model, options.devices, options.batch_size, (side, side), engine=options.engine)
    action = embed if options.images else compare if options.compare else search
    found = action(backbone, options)
    if options.json:
        write_whole(options.json, json.dumps({"model": backbone.model, **found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
