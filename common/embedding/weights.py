# SPDX-License-Identifier: Apache-2.0
"""The plain output of a network of PyTorch's weights for one image: what arcface_torch's inference.py prints."""
from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from common.embedding.foreign_models import open_weights
from common.embedding.model_flags import add_engine_flag
from recognition.config.command_line import Parser
from recognition.config.devices import CPU, share_processors
from recognition.data.images.image_files import read_image
from recognition.engines.choose import choose_engine
from recognition.errors import UserError
from recognition.evaluation.embed_images import embed_batches

SIDE = 112


def names_weights(words: Sequence[str]) -> bool:
    """True for the words of arcface_torch's command."""
    return any(word.partition("=")[0] == "--weight" for word in words)


def embed_weights(words: Sequence[str]) -> int:
    """Print the embedding, float32 (1, D), neither normalised nor added to that of the mirror.

    :raises UserError: if a file cannot be used.
    """
    parser = Parser(prog="python common/inference.py", description=__doc__)
    parser.add_argument("--weight", type=Path, required=True, metavar="FILE.pt", help="weights of arcface_torch")
    parser.add_argument("--network", default="r50", help="the name there, such as r100, mbf or vit_b (default "
                        "r50)")
    parser.add_argument("--img", type=Path, metavar="FILE", help="an aligned face (default: random pixels)")
    add_engine_flag(parser)
    args = parser.parse_args(words)
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    if args.img:
        image = cv2.resize(read_image(args.img)[1], (SIDE, SIDE))
    if not args.weight.is_file():
        raise UserError(f"--weight: found no file {args.weight}")
    share_processors(CPU, os.environ)
    embed = open_weights(args.weight, choose_engine(args.engine, CPU), CPU, 1, (3, SIDE, SIDE), False, args.network)
    with np.printoptions(threshold=embed.dim + 1):
        print(next(embed_batches(embed, [image], 1, flip=False)))
    return 0
