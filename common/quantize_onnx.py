# SPDX-License-Identifier: Apache-2.0
"""Makes an INT8 network of an ONNX file, calibrated on images, and says what it loses.

    python -m common.quantize_onnx --model r50.onnx --calibrate datasets/faces_emore --output r50-int8.onnx
    python -m common.quantize_onnx --model r50.onnx --calibrate datasets/faces_emore --output r50-int8.onnx \\
        --verify datasets/faces_emore/lfw.bin

FILE.onnx is of float32: of common.export_onnx, or of others, as arcface_torch's. --calibrate is a folder with
train.rec, a folder of aligned images, or a verification set; the ranges of the layers' values are those of --images of
its images. Convolutions and matrix products get INT8 weights with a scale a channel, and symmetric INT8 inputs, which
onnxruntime, OpenVINO and TensorRT take.

Prints size, accuracy with --verify, and how far embeddings moved, of both files; of the images of --verify, else those
of the calibration.
"""
from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.embedding.foreign_models import OnnxNetwork
from common.export.int8 import calibration_images, quantise, require_float
from recognition.config.command_line import Parser, check_ranges
from recognition.config.devices import CPU
from recognition.data.verification_set import load_bin
from recognition.errors import UserError, command, naming
from recognition.evaluation.embed_images import with_mirrors
from recognition.evaluation.trained_backbone import unit_rows
from recognition.evaluation.verification import check_pairs, evaluate
from recognition.io.files import replacing, require_new, write_whole
from recognition.progress import progress

AT_A_TIME = 32  # images


def _embed(network: OnnxNetwork, images: np.ndarray, with_mirror: bool, output: Path) -> np.ndarray:
    """The embeddings, float32 (N, D) of length 1, of images, uint8 (N, 3, H, W), or of these plus their mirrors."""
    parts = [images[low : low + AT_A_TIME] for low in range(0, len(images), AT_A_TIME)]
    embed = with_mirrors(network) if with_mirror else network
    rows = [embed(part) for part in progress(parts, "embedding", len(parts), unit=" batches")]
    with naming(f"{output}: not written"):
        return unit_rows(np.concatenate(rows))


def _run(args: argparse.Namespace) -> dict[str, Any]:
    shape = (3, args.image_size, args.image_size)
    before = OnnxNetwork(args.model, CPU, shape)
    require_float(args.model)
    pairs = load_bin(args.verify, shape[1:]) if args.verify else None
    if pairs:
        check_pairs(pairs.issame, name=pairs.name)
    images = calibration_images(args.calibrate, args.images, args.image_size)
    found: dict[str, Any] = {"model": str(args.model), "output": str(args.output), "calibration_images": len(images),
                             "reduce_range": args.reduce_range}
    embeddings = []
    with replacing(args.output) as temporary:
        quantise(args.model, before, images, temporary, args.reduce_range)
        files = {"float32": (before, args.model), "int8": (OnnxNetwork(temporary, CPU, shape), temporary)}
        for name, (network, path) in files.items():
            embeddings.append(_embed(network, pairs.images if pairs else images, bool(pairs), args.output))
            found[name] = {"bytes": path.stat().st_size}
            text = f"{name}: {found[name]['bytes'] / 1e6:.2f} MB"
            if pairs:
                result = evaluate(embeddings[-1], pairs.issame, name=pairs.name)
                found[name].update(accuracy=result.mean, std=result.std, set=pairs.name)
                text += f", [{pairs.name}]Accuracy-Flip: {result.mean:1.5f}+-{result.std:1.5f}"
            print(text, flush=True)
    moved = 1 - np.einsum("nd,nd->n", *(rows.astype(np.float64) for rows in embeddings))
    found["moved"] = {"images": len(moved), "mean": float(moved.mean()), "largest": float(moved.max())}
    print(f"embeddings moved by 1 - cosine {max(moved.mean(), 0):.1e} on average, {max(moved.max(), 0):.1e} at most, "
          f"of {len(moved)} images of {args.verify or args.calibrate}")
    print(f"{args.output}: INT8, calibrated on {len(images)} images")
    return found


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m common.quantize_onnx", description=__doc__)
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="FILE.onnx", help="a network of float32")
    add("--calibrate", type=Path, required=True, metavar="SET", help="a folder with train.rec, a folder of images, or "
        "FILE.bin: aligned faces like those that the network will see")
    add("--output", type=Path, required=True, metavar="FILE.onnx", help="the INT8 network")
    add("--images", type=int, default=256, metavar="N", help="images of the calibration, spread over the set (default "
        "256)")
    add("--reduce-range", action="store_true", help="weights of 7 bits: for processors without VNNI, where sums of two "
        "products of 8 bits saturate")
    add("--verify", type=Path, metavar="FILE.bin", help="a verification set: the accuracy of both files")
    add("--image-size", type=int, default=112, help="side of the network's images (default 112)")
    add("--json", type=Path, metavar="FILE", help="write what was measured there")
    parser.add_overwrite()
    args = parser.parse_args(argv)
    check_ranges(args, images=1)
    if not args.model.is_file():
        raise UserError(f"--model: found no file {args.model}")
    require_new([args.output, args.json], [args.model, args.calibrate, args.verify], args.overwrite)
    found = _run(args)
    if args.json:
        write_whole(args.json, json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
