# SPDX-License-Identifier: Apache-2.0
"""Converts weights of PyTorch's ArcFace recipe (r18 to r2060, mbf, mbf_large, vit_t to vit_h) to checkpoints, and back.

    python -m common.convert_torch backbone.pth models/r50-torch/model,1
    python -m common.convert_torch work_dirs/ms1mv3_r50/checkpoint_gpu_0.pt models/r50-torch/model,1
    python -m common.convert_torch models/r50-arcface-emore/model,1 backbone.pth
    python -m common.convert_torch models/r50-arcface-emore/state/step-000002000 work_dirs/mine --ranks 8

A checkpoint_gpu_0.pt brings the class centres of all ranks, whose files lie beside it. A training state becomes
checkpoint_gpu_<rank>.pt of --ranks processes and model.pt in a folder, from which arcface_torch goes on.

PyTorch is not needed, and no code of a .pth is run: its pickle is read by a reader that knows only tensors. The
checkpoint is one of --network of the same name, for --pretrained. It maps pixels p from 0 to 255 to the embedding that
the recipe's network gives for (p - 127.5) / 127.5.
"""
from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from common.embedding.model_flags import files_of
from common.export.arcface_torch import MODEL, adamw_group, batches_an_epoch, sgd_group, write_checkpoints
from recognition.config.cli import find_pretrained, split_pretrained
from recognition.config.command_line import Parser
from recognition.config.options import OPTIONS, Config
from recognition.engines.configured import build_network
from recognition.errors import UserError, command, one_line
from recognition.io.centres import named_centres
from recognition.io.checksums import sum_beside
from recognition.io.files import require_new
from recognition.io.torch_file import read_tensors, write_tensors
from recognition.networks.symbol_file import read_network
from recognition.networks.torch_weights.of_torch import from_torch, of_the_network, to_torch
from recognition.training.checkpoints.checkpoint import save_checkpoint
from recognition.training.checkpoints.pretrained import read_params
from recognition.training.parts import adamw_of, make_schedule
from recognition.training.states.arcface_torch import NAME, find_ranks, read_rank
from recognition.training.states.state import MANIFEST, SavedState

ENDINGS = (".pth", ".pt", ".ckpt", ".pth.tar")


def import_weights(source: Path, target: str, overwrite: bool) -> None:
    named, number = split_pretrained(target, 1)
    if named.endswith(".params"):
        raise UserError(f"target: found {target}, expected PREFIX,EPOCH, a folder, or a name like model-0001.params")
    prefix = Path(named)
    own_symbol, path = files_of((str(prefix), number))
    require_new([path, sum_beside(path)], [source], overwrite)
    tensors, left = of_the_network(read_tensors(source), str(source))
    name, graph, arguments, auxiliary = from_torch(tensors, str(source))
    centres = _centres(source)
    if not own_symbol.is_file() or own_symbol.read_bytes() != graph.to_json().encode():  # else of the same network
        require_new([own_symbol, sum_beside(own_symbol)], [source], overwrite)
    save_checkpoint(prefix, number, graph, {**arguments, **named_centres(centres, [], len(centres) == 1)}
                    if centres else arguments, auxiliary)
    if centres:
        print(f"{sum(map(len, centres))} class centres of {len(centres)} ranks; the rest of the training state is left "
              f"out: --resume with --models-root {source.parent} goes on with it")
    if left:
        print(one_line(f"left out: {len(left)} tensors of other parts, such as {left[0]}"))
    print(f"{path}: {name}, {len(arguments['pre_fc1_weight'])} numbers an embedding, {len(arguments) + len(auxiliary)} "
          f"arrays; goes on with --network {name} --pretrained {prefix},{number}")


def _centres(source: Path) -> list[np.ndarray]:
    """W of the ranks of a training checkpoint; none if ``source`` is another file."""
    if not re.fullmatch(re.escape(NAME).replace(r"\{\}", r"\d+"), source.name):
        return []
    return [read_rank(source.with_name(NAME.format(rank))).centres for rank in range(find_ranks(source.parent))]


def export_state(source: Path, target: Path, ranks: int, overwrite: bool) -> None:
    state = SavedState(source)
    if problem := state.problem():
        raise UserError(problem)
    config = Config(**{key: value for key, value in state.progress.config.items() if key in OPTIONS})
    if config.lora:
        raise UserError(f"{source}: found adapters of --lora, which arcface_torch has not; its checkpoint has their "
                        "weights merged")
    classes = state.progress.identity["num_classes"]
    if not 1 <= ranks <= classes:
        raise UserError(f"--ranks: found {ranks}, expected 1 to {classes}, the number of classes")
    require_new([*(target / NAME.format(rank) for rank in range(ranks)), target / MODEL], [], overwrite)
    batches = batches_an_epoch(state.progress, config.device_batch * len(config.devices))
    rate, adamw = make_schedule(config, batches)(state.progress.step), adamw_of(config)
    group = (adamw_group(rate, config.lr, config.wd, adamw) if adamw
             else sgd_group(rate, config.lr, config.wd, config.mom))
    written = write_checkpoints(state, build_network(config), group, target, ranks)
    print(f"{written[0]} .. {written[-2].name}, {MODEL}: after step {state.progress.step}, {state.progress.epoch} "
          "epochs" + ("; the epoch that was begun begins anew there" if state.progress.offset else "")
          + ("" if rate or adamw else "; without momentum: this is the end, where the rate is 0"))


def export_weights(source: str, target: Path, overwrite: bool) -> None:
    prefix, number = find_pretrained(source, 1, "source")
    require_new([target], files_of((prefix, number)), overwrite)
    params = f"{prefix}-{number:04d}.params"
    arguments, auxiliary = read_params(Path(params))
    name, tensors = to_torch(read_network(Path(f"{prefix}-symbol.json")), arguments, auxiliary, params)
    write_tensors(target, tensors)
    print(f"{target}: {name}, {len(tensors)} tensors; "
          f"{name}(num_features={len(arguments['pre_fc1_weight'])}).load_state_dict(torch.load({target.name!r}))")


@command
def main(arguments: list[str] | None = None) -> int:
    flags = Parser(prog="python -m common.convert_torch", description=__doc__)
    flags.add_argument("source", help="a .pth file (or .pt, .ckpt, .pth.tar), a checkpoint: PREFIX,EPOCH, or the "
                       "folder of a training state")
    flags.add_argument("target", help="a checkpoint to write: PREFIX,EPOCH, PREFIX-0001.params, or a folder that is "
                       "there; or a .pth file; or a folder")
    flags.add_overwrite()
    flags.add_argument("--ranks", type=int, default=1, help="from a training state: processes of arcface_torch that go "
                       "on with it (default 1)")
    options = flags.parse_args(arguments)
    if (Path(options.source) / MANIFEST).is_file():
        export_state(Path(options.source), Path(options.target), options.ranks, options.overwrite)
        return 0
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
