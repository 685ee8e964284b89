# SPDX-License-Identifier: Apache-2.0
"""The flags of every command that runs a checkpoint, and the opening of its network."""
from __future__ import annotations

import argparse
import os
from pathlib import Path

from common.embedding.foreign_models import OnnxNetwork, is_foreign, open_weights
from recognition.config.cli import find_pretrained
from recognition.config.command_line import check_ranges
from recognition.config.devices import parse_devices, share_processors, visible_devices
from recognition.config.options import check
from recognition.engines.choose import check_bfloat16, choose_engine
from recognition.engines.interface import Embedder
from recognition.errors import UserError
from recognition.io.names import params_file


def add_model_flags(parser: argparse.ArgumentParser, required: bool = True, batch_size: int = 32,
                    image_size: bool = True) -> None:
    """Add ``--model``, ``--batch-size``, ``--devices``, ``--gpu``, ``--engine``, ``--bfloat16`` and
    ``--image-size``.

    :param image_size: False if the data determines it.
    """
    parser.add_argument("--model", required=required, metavar="PREFIX,EPOCH", help="the checkpoint, or its folder; "
                        "or a network of others: FILE.onnx, or weights of arcface_torch, FILE.pt")
    parser.add_argument("--batch-size", type=int, default=batch_size, help="images a device at a time (default "
                        f"{batch_size})")
    parser.add_argument("--devices", help="cpu, cpu:N, gpu or gpu:I,J (default: as CUDA_VISIBLE_DEVICES says)")
    parser.add_argument("--gpu", type=int, metavar="N", help="as --devices gpu:N, as the recipes' scripts have it; -1: "
                        "the CPU")
    add_engine_flag(parser)
    parser.add_argument("--bfloat16", action="store_true", help="compute in bfloat16: about twice as fast on CPUs that "
                        "have it; cosines change by up to 1e-3")
    if image_size:
        parser.add_argument("--image-size", type=int, default=112, choices=(112, 224), help="height and width of "
                            "the network's input (default 112)")


def add_engine_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--engine``."""
    parser.add_argument("--engine", default="auto", type=lambda text: check("engine", text, "--engine"),
                        help="what computes: mxnet; torch, PyTorch; auto: what is installed and can use the devices, "
                        "of both the faster (default auto)")


def check_model_flags(args: argparse.Namespace) -> None:
    """Replace the text of flags by values: ``model`` becomes (prefix, number), ``devices`` a tuple of devices.

    :raises UserError: if one is not valid, or if there is no such checkpoint.
    """
    check_ranges(args, batch_size=1)
    if args.gpu is not None:
        if args.devices:
            raise UserError("--gpu: goes without --devices, which says the same")
        args.devices = f"gpu:{args.gpu}" if args.gpu >= 0 else "cpu"
    try:
        args.devices = parse_devices(args.devices) if args.devices else visible_devices(os.environ)
    except (ValueError, TypeError):
        raise UserError(f"--devices: found {args.devices!r}, expected cpu, cpu:N, gpu or gpu:I,J") from None
    if args.bfloat16:
        check_bfloat16("--bfloat16", args.devices)
    if is_foreign(args.model):
        if not Path(args.model).is_file():
            raise UserError(f"--model: found no file {args.model}")
        args.model = (args.model, 0)
    else:
        args.model = find_pretrained(args.model, 1, "--model")


def open_model(args: argparse.Namespace) -> tuple[Embedder, int]:
    """The network, ready to embed, and the number of images that all devices take at a time."""
    share_processors(args.devices, os.environ)
    shape = (3, args.image_size, args.image_size)
    file, at_a_time = Path(args.model[0]), args.batch_size * len(args.devices)
    if file.suffix == ".onnx":
        if args.bfloat16:
            raise UserError(f"--bfloat16: {file} is computed in the numbers that it has")
        return OnnxNetwork(file, args.devices, shape), at_a_time
    engine, how = choose_engine(args.engine, args.devices), (args.devices, args.batch_size, shape, args.bfloat16)
    network = open_weights(file, engine, *how) if is_foreign(args.model[0]) else engine.embedder(args.model, *how)
    return network, at_a_time


def rates_flag(text: str) -> tuple[float, ...]:
    """The rates in a text like ``1e-6,1e-4``, above 0 and below 1, in ascending order; for ``type=`` of a flag."""
    try:
        rates = sorted({float(part) for part in text.split(",")})
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < 1 for rate in rates):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected rates between 0 and 1 with commas between them")
    return tuple(rates)


def files_of(model: tuple[str, int]) -> list[Path]:
    """The files of a checkpoint: its symbol and its arrays."""
    return [Path(f"{model[0]}-symbol.json"), Path(as_text(model))]


def as_text(model: tuple[str, int]) -> str:
    """The name of a checkpoint in reports: that of its ``.params`` file, or of the file of another's network."""
    return model[0] if is_foreign(model[0]) else params_file(*model)


def beside(model: tuple[str, int], ending: str) -> Path:
    """The folder of a command's results beside a checkpoint: ``<prefix>-<number>-<ending>``."""
    stem = str(Path(model[0]).with_suffix("")) if is_foreign(model[0]) else f"{model[0]}-{model[1]:04d}"
    return Path(f"{stem}-{ending}")
