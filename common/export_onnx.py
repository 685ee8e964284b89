# SPDX-License-Identifier: Apache-2.0
"""Exports a checkpoint's network to ONNX, and checks the file with onnxruntime against the engine.

    python -m common.export_onnx --model PREFIX,EPOCH --output FILE.onnx
    python -m common.export_onnx --model PREFIX,EPOCH --output FILE.onnx --float16 --check-images DIR

The graph (opset 13) maps data, float32 (batch, 3, H, W), aligned faces as RGB pixels 0 to 255, which it scales itself,
to fc1, float32 (batch, dim), embeddings that are not normalised. The batch may have any size. Batch norms behind
convolutions and fully connected layers are folded into them. --float16 halves the file; input and output stay float32.
The check runs random images and those of DIR through both; a file that fails it is not written.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.embedding.gallery import find_images
from common.embedding.model_flags import add_engine_flag, files_of
from recognition.config.cli import find_pretrained
from recognition.config.command_line import Parser
from recognition.data.images.image import fit
from recognition.data.images.image_files import read_image
from recognition.errors import UserError, command, naming
from recognition.evaluation.trained_backbone import TrainedBackbone, load_backbone, unit_rows
from recognition.io.files import replacing, require_new, write_whole
from recognition.io.names import params_file
from recognition.networks.onnx_graph import IR_VERSION, OPSET, to_onnx
from recognition.networks.symbol_file import read_network
from recognition.training.checkpoints.pretrained import read_params

MOST_IMAGES = 256  # of DIR, in the check
# By float16: the largest 1 - cosine, and the largest difference of a number of an embedding. If the embeddings' root
# mean square is above 1, the latter is in units of it. float16 has 11 bits, and roundings add up over the layers.
LIMITS = {False: (1e-4, 1e-4), True: (1e-3, 0.05)}


class Agreement(NamedTuple):
    """The differences of the file's embeddings from the engine's for one set of images."""

    images: str
    number: int  # of images
    cosine: float  # the largest 1 - cosine
    absolute: float  # the largest difference
    rms: float  # root mean square of the engine's embeddings

    def holds(self, float16: bool) -> bool:
        cosine, absolute = LIMITS[float16]
        return self.cosine <= cosine and self.absolute <= absolute * max(1.0, self.rms)  # False for NaN


def compare(path: Path, backbone: TrainedBackbone, images: dict[str, np.ndarray]) -> list[Agreement] | None:
    """Run sets of images, uint8 ``(N, H, W, 3)``, through the file and the engine; None without onnxruntime."""
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(batch: np.ndarray) -> np.ndarray:
        return session.run(None, {"data": batch.transpose(0, 3, 1, 2).astype(np.float32)})[0]

    found, size = [], backbone.batch_size
    for name, images_of_set in images.items():
        # The first image alone, then whole batches, then the rest one by one. Both sides get the same batches, as an
        # embedding of net_output GNAP depends on its batch.
        batches = [images_of_set[:1]]
        for low in range(1, len(images_of_set), size):
            group = images_of_set[low : low + size]
            batches += [group] if len(group) == size else [group[i : i + 1] for i in range(len(group))]
        ours = np.concatenate([run(batch) for batch in batches])
        reference = np.concatenate([backbone.embed(batch, flip=False, unit=False) for batch in batches])
        apart = 1 - np.einsum("nd,nd->n", unit_rows(ours).astype(np.float64), unit_rows(reference))
        found.append(Agreement(name, len(ours), float(apart.max()), float(np.abs(ours - reference).max()),
                               float(np.sqrt(np.square(reference, dtype=np.float64).mean()))))
    return found


def images_for(folder: Path | None, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Sets of images for the check, by name: random ones, and those of a folder."""
    random = np.random.RandomState(0)
    sets = {"random": random.randint(0, 256, (9, *size, 3)).astype(np.uint8)}
    if folder is not None:
        paths = find_images(folder)[:MOST_IMAGES]
        with naming(f"--check-images {folder}"):
            sets[str(folder)] = np.stack([fit(read_image(path)[1], *size) for path in paths])
    return sets


def export(options: argparse.Namespace) -> dict[str, Any]:
    size = (options.image_size, options.image_size)
    # It says what is wrong with a checkpoint.
    backbone = load_backbone(options.model, batch_size=8, image_size=size, engine=options.engine)
    prefix, number = find_pretrained(options.model, 1, "--model")
    images = images_for(options.check_images, size)
    arguments, auxiliary = read_params(Path(params_file(prefix, number)))
    model = to_onnx(read_network(Path(f"{prefix}-symbol.json")), arguments, auxiliary, (3, *size), options.float16,
                    not options.no_fold)
    with replacing(options.output) as temporary:
        temporary.write_bytes(model.SerializeToString())
        with naming(f"{options.output}: not written"):  # if an embedding is zero or not finite
            agreements = compare(temporary, backbone, images)
        _tell(agreements)
        for agreement in agreements or ():
            if not agreement.holds(options.float16):
                cosine, absolute = LIMITS[options.float16]
                raise UserError(f"{options.output}: not written: for {agreement.images} images the graph is off the "
                                f"engine's embeddings by 1 - cosine {agreement.cosine:.1e} and "
                                f"{agreement.absolute:.1e} (their root mean square is {agreement.rms:.3g}), expected "
                                f"at most {cosine:.0e} and {absolute:.0e} of that")
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.1f} MB, opset {OPSET}, IR version {IR_VERSION}, "
          f"{len(model.graph.node)} nodes, {'float16' if options.float16 else 'float32'}, batch of any size")
    return {"model": backbone.model, "output": str(options.output), "opset": OPSET, "nodes": len(model.graph.node),
            "bytes": options.output.stat().st_size, "float16": options.float16,
            "checked": [agreement._asdict() for agreement in agreements or ()]}


def _tell(agreements: list[Agreement] | None) -> None:
    if agreements is None:
        print("not checked: onnxruntime is not installed, pip install -e '.[onnx]' brings it")
        return
    print("images             number  1 - cosine  difference  of root mean square")
    for found in agreements:
        print(f"{found.images:<18} {found.number:>6}  {max(found.cosine, 0):10.1e}  {found.absolute:10.1e}  "
              f"{found.rms:.3g}")


@command
def main(arguments: list[str] | None = None) -> int:
    flags = Parser(prog="python -m common.export_onnx", description=__doc__)
    flags.add_argument("--model", required=True, help="checkpoint: PREFIX,EPOCH, PREFIX, or its folder")
    flags.add_argument("--output", type=Path, required=True, metavar="FILE.onnx")
    flags.add_argument("--float16", action="store_true", help="parameters and layers in float16")
    flags.add_argument("--no-fold", action="store_true", help="keep batch norms as layers")
    flags.add_argument("--check-images", type=Path, metavar="DIR", help="real faces for the check, at most 256")
    flags.add_argument("--image-size", type=int, default=112, help="side of the network's images (default 112)")
    add_engine_flag(flags)
    flags.add_argument("--json", type=Path, metavar="FILE", help="write what was done and measured there")
    flags.add_overwrite()
    options = flags.parse_args(arguments)
    require_new([options.output, options.json], [
        options.check_images, *files_of(find_pretrained(options.model, 1, "--model"))], options.overwrite)
    found = export(options)
    if options.json:
        write_whole(options.json, json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
