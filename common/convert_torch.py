# SPDX-License-Identifier: Apache-2.0
"""Converts iresnet weights of PyTorch's ArcFace recipe (r18, r34, r50, r100) to fresnet checkpoints, and back.

    python -m common.convert_torch backbone.pth models/r50-torch/model,1
    python -m common.convert_torch models/r50-arcface-emore/model,1 backbone.pth

PyTorch is not needed, and no code of a .pth is run: its pickle is read by a reader that knows only tensors. The
checkpoint is one of --network r18, r34, r50 or r100, for --pretrained. It maps pixels p from 0 to 255 to the embedding
that iresnet gives for (p - 127.5) / 127.5.
"""
from __future__ import annotations

from pathlib import Path

from common.embedding.model_flags import files_of
from common.export.iresnet import from_torch, of_the_network, to_torch
from common.export.torch_file import read_tensors, write_tensors
from recognition.config.cli import find_pretrained, split_pretrained
from recognition.config.command_line import Parser
from recognition.errors import UserError, command, one_line
from recognition.io.checksums import sum_beside
from recognition.io.files import require_new
from recognition.networks.symbol_file import read_network
from recognition.training.checkpoints.checkpoint import save_checkpoint
from recognition.training.checkpoints.pretrained import read_params

ENDINGS = (".pth", ".pt", ".ckpt", ".pth.tar")


def import_weights(source: Path, target: str, overwrite: bool) -> None:
    named, number = split_pretrained(target, 1)
    if named.endswith(".params"):
        raise UserError(f"target: found {target}, expected PREFIX,EPOCH, a folder, or a name like model-0001.params")
    prefix = Path(named)
    own_symbol, path = files_of((str(prefix), number))
    require_new([path, sum_beside(path)], [source], overwrite)
    tensors, left = of_the_network(read_tensors(source), str(source))
    depth, graph, arguments, auxiliary = from_torch(tensors, str(source))
    if not own_symbol.is_file() or own_symbol.read_bytes() != graph.to_json().encode():  # else of the same network
        require_new([own_symbol, sum_beside(own_symbol)], [source], overwrite)
    save_checkpoint(prefix, number, graph, arguments, auxiliary)
    if left:
        print(one_line(f"left out: {len(left)} tensors of other parts, such as {left[0]}"))
    print(f"{path}: r{depth}, {len(arguments['pre_fc1_bias'])} numbers an embedding, {len(arguments) + len(auxiliary)} "
          f"arrays; goes on with --network r{depth} --pretrained {prefix},{number}")


def export_weights(source: str, target: Path, overwrite: bool) -> None:
    prefix, number = find_pretrained(source, 1, "source")
    require_new([target], files_of((prefix, number)), overwrite)
    params = f"{prefix}-{number:04d}.params"
    depth, tensors = to_torch(read_network(Path(f"{prefix}-symbol.json")), *read_params(Path(params)), params)
    write_tensors(target, tensors)
    print(f"{target}: iresnet{depth}, {len(tensors)} tensors; "
          f"iresnet{depth}(num_features={len(tensors['fc.bias'])}).load_state_dict(torch.load({target.name!r}))")


@command
def main(arguments: list[str] | None = None) -> int:
    flags = Parser(prog="python -m common.convert_torch", description=__doc__)
    flags.add_argument("source", help="a .pth file (or .pt, .ckpt, .pth.tar), or a checkpoint: PREFIX,EPOCH")
    flags.add_argument("target", help="a checkpoint to write: PREFIX,EPOCH, PREFIX-0001.params, or a folder that is "
                       "there; or a .pth file")
    flags.add_overwrite()
    options = flags.parse_args(arguments)
    torch_there, torch_here = (name.endswith(ENDINGS) for name in (options.target, options.source))
    if torch_there == torch_here:
        raise UserError(f"found {options.source} and {options.target}, expected one of the two to end in .pth, .pt, "
                        ".ckpt or .pth.tar")
    if torch_here:
        import_weights(Path(options.source), options.target, options.overwrite)
    else:
        export_weights(options.source, Path(options.target), options.overwrite)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
