# SPDX-License-Identifier: Apache-2.0
"""The recipes' command for IJB-B and IJB-C, by its flags: a door to common.ijb.

    python common/ijb_11.py --model-prefix models/r100-arcface-emore/model --model-epoch 1 --gpu 0 --target IJBC
    python common/ijb_11.py --model-prefix backbone.pth --image-path IJB_release/IJBC --target IJBC --job r50
    python common/ijb_onnx.py --model-file backbone.onnx --image-path IJB_release/IJBC --result-dir . --target IJBC

The set is the folder of the target, here or at --image-path. Results go to <target>_result: the scores of the pairs,
<job>.npy, and what common.ijb writes; 1:N (the recipes' ijb_1n.py) is scored, too.
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from common import ijb
from common.embedding.foreign_models import is_foreign
from recognition.config.command_line import Parser
from recognition.errors import command


def words_of(args: argparse.Namespace) -> list[str]:
    """The words of common.ijb's command."""
    model = args.model_prefix if is_foreign(args.model_prefix) else f"{args.model_prefix},{args.model_epoch}"
    job = args.job or (Path(model).name if model.endswith(".onnx") else "insightface")
    output = Path(args.result_dir) / f"{args.target}_result"
    words = ["--model", model, "--data", args.image_path or args.target, "--output", str(output),
             "--save-scores", str(output / f"{job}.npy"), "--batch-size", str(args.batch_size)]
    for flag in ("gpu", "engine"):
        words += [f"--{flag}", str(getattr(args, flag))] if getattr(args, flag) is not None else []
    return [*words, *(["--overwrite"] if args.overwrite else [])]


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python common/ijb_11.py", description=__doc__)
    add = parser.add_argument
    add("--model-prefix", "--model-file", required=True, metavar="PREFIX", help="the checkpoint's, or FILE.onnx, or "
        "FILE.pt of arcface_torch")
    add("--model-epoch", type=int, default=1, metavar="N", help="its number (default 1)")
    add("--target", default="IJBC", help="IJBC or IJBB: the folder of loose_crop and meta (default IJBC)")
    add("--image-path", metavar="DIR", help="that folder, if it is elsewhere")
    add("--result-dir", default=".", metavar="DIR", help="where <target>_result goes (default: here)")
    add("--job", help="the name of the scores (default insightface; of --model-file x.onnx: x.onnx)")
    add("--network", help="read from the weights in any case")
    add("--gpu", type=int, metavar="N", help="a GPU; -1: the CPU (default: as CUDA_VISIBLE_DEVICES says)")
    add("--batch-size", type=int, default=32, help="images at a time (default 32)")
    add("--engine", help="mxnet, torch or auto")
    parser.add_overwrite()
    return ijb.main(words_of(parser.parse_args(argv)))


if __name__ == "__main__":
    raise SystemExit(main())
