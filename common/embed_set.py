# SPDX-License-Identifier: Apache-2.0
"""Embeds every image of a training set, for a student that learns from these embeddings.

    python -m common.embed_set --data DIR --model PREFIX,EPOCH --output NEW_DIR
    python train_parall.py --network y1 --dataset DIR --teacher NEW_DIR

The model is a checkpoint, an ONNX file or weights of arcface_torch. The embedding of an image is added to that of its
mirror and normalised, as in verification; --no-flip leaves the mirror out. NEW_DIR gets embeddings.npy, float16 (N, D),
keys.npy, int64 (N,), and embeddings.json. An image that cannot be used gets zeros. Several sets are embedded as one, as
--dataset a,b trains on them.
"""
from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from common.embedding.model_flags import add_model_flags, as_text, check_model_flags, open_model
from common.sets.output_folder import new_folder
from recognition.config.command_line import Parser, check_ranges
from recognition.config.devices import decode_threads
from recognition.data.sets.image_set import ImageSet
from recognition.data.sets.open_set import Opening, open_sets
from recognition.engines.interface import Embedder
from recognition.errors import UserError, command
from recognition.evaluation.embed_images import with_mirrors
from recognition.evaluation.embed_set import embedded
from recognition.io.embeddings import write_embeddings
from recognition.io.files import writing
from recognition.progress import progress


def unit_embeddings(dataset: ImageSet, embed: Embedder, batch_size: int, flip: bool,
                    threads: int) -> Iterator[np.ndarray]:
    """Yield unit embeddings, float32 (n, D), of all images in the order of the set; zeros for one that is bad.

    :raises UserError: if an embedding is zero or not finite.
    """
    with progress(None, "embedding", len(dataset), unit=" images") as bar:
        for where, rows, _, keys in embedded(dataset, with_mirrors(embed) if flip else embed, batch_size,
                                             threads):
            norms = np.linalg.norm(rows, axis=1, keepdims=True)
            if bad := np.flatnonzero(~(np.isfinite(norms) & (norms > 0))).tolist():
                raise UserError(f"{dataset.source}: record {keys[bad[0]]}: its embedding is zero or not finite, "
                                "expected a model that has learnt something")
            yield np.where(dataset.is_image(where, keys)[:, None], rows / norms, np.float32(0))
            bar.update(len(keys))


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m common.embed_set", description=__doc__)
    parser.add_argument("--data", required=True, nargs="+", metavar="DIR", help="the training set: a folder of "
                        "train.rec, or of folders of images; several in the order in which they are trained on")
    add_model_flags(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="NEW_DIR", help="a new folder for the embeddings")
    parser.add_argument("--no-flip", action="store_true", help="without mirrors: half of the time")
    parser.add_argument("--decode-threads", type=int, default=decode_threads(),
                        help="threads that decode images")
    args = parser.parse_args(argv)
    check_model_flags(args)
    check_ranges(args, decode_threads=1)
    with new_folder(args.output) as folder:
        places = [os.path.normpath(place) for place in args.data]
        dataset = open_sets(places[0] if len(places) == 1 else places, (), Opening(args.image_size))
        dataset.check_labels()
        args.image_size = dataset.image_shape[0]  # as a property file says, if there is one
        embed, batch_size = open_model(args)
        note = {"data": str(dataset.path), "digest": dataset.digest(), "model": as_text(args.model),
                "flip": not args.no_flip}
        with writing(args.output):
            write_embeddings(folder, dataset.keys, embed.dim, unit_embeddings(
                dataset, embed, batch_size, not args.no_flip, args.decode_threads), note)
        print(f"{args.output}: embeddings of {len(dataset)} images, {embed.dim} numbers each"
              + (f"; {dataset.bad}" if dataset.bad else ""))
        dataset.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
