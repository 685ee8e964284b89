# SPDX-License-Identifier: Apache-2.0
"""Writes a checkpoint without its head: the network from the images to the embedding, and no class centres.

    python -m common.model_slim --model models/r100-arcface/model,1
    python -m common.model_slim --model models/r100-arcface/model,1 --output models/r100-slim/model,1

The new one is <prefix>s,0 if no other name is given. It has the part of the symbol that fc1_output needs, in float32,
and the arrays of that part alone, so plain MXNet loads it without labels. The embeddings are the same.
"""
from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from common.embedding.model_flags import files_of
from recognition.config.cli import find_pretrained
from recognition.config.command_line import Parser
from recognition.errors import UserError, command
from recognition.io.checksums import sum_beside
from recognition.io.files import require_new
from recognition.networks.symbol_file import read_network
from recognition.training.checkpoints.checkpoint import save_checkpoint
from recognition.training.checkpoints.pretrained import read_params


def slim(model: tuple[str, int], target: tuple[str, int]) -> tuple[int, int]:
    """Write the network of ``model`` as ``target``; returns the numbers of arrays that are in it and left out.

    :raises UserError: if a file cannot be read, or if an array is missing
    """
    symbol, path = files_of(model)
    graph = read_network(symbol)
    arguments, auxiliary = read_params(path)
    names = [name for name in graph.list_arguments() if name != "data"]
    states = graph.list_auxiliary_states()
    for name in (*names, *states):
        if name not in arguments and name not in auxiliary:
            raise UserError(f"{path}: {name} is missing, expected an array for each of {symbol.name}")
    have = {**arguments, **auxiliary}
    save_checkpoint(Path(target[0]), target[1], graph, {name: have[name] for name in names},
                    {name: have[name] for name in states})
    return len(names) + len(states), len(arguments) + len(auxiliary) - len(names) - len(states)


def _target(text: str | None, model: tuple[str, int]) -> tuple[str, int]:
    if text is None:
        return f"{model[0]}s", 0
    match = re.fullmatch(r"(.+?)(?:,\s*(\d{1,4}))?", text)
    if match is None:
        raise UserError(f"--output: found {text!r}, expected PREFIX,EPOCH")
    return match[1], int(match[2] or 0)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m common.model_slim", description=__doc__)
    parser.add_argument("--model", required=True, metavar="PREFIX,EPOCH", help="the checkpoint, or its folder")
    parser.add_argument("--output", metavar="PREFIX,EPOCH", help="the checkpoint to write (default: PREFIXs,0)")
    parser.add_overwrite()
    args = parser.parse_args(argv)
    model = find_pretrained(args.model, 1, "--model")
    target = _target(args.output, model)
    written = files_of(target)
    require_new([*written, *map(sum_beside, written)], files_of(model), args.overwrite)
    arrays, left = slim(model, target)
    print(f"{written[1]}: {arrays} arrays, {written[1].stat().st_size / 1e6:.1f} MB; left out: class centres and "
          f"{left} other arrays that the embedding does not need")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
