# SPDX-License-Identifier: Apache-2.0
"""Plans a run: memory, bytes sent and arithmetic of a device, for each way to train, and what fits.

    python -m recognition.plan --classes 10000000 --devices 64 --per-batch-size 64 --network r50 --fp16 --memory 11

Nothing is trained and no GPU is needed. Network, dataset and loss are the presets of config.py.
"""
from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recognition.config import types
from recognition.config.cli import flag_name, parse_args
from recognition.config.command_line import Parser
from recognition.config.engines import ENGINES
from recognition.config.options import Config, check
from recognition.engines.shards import require_centre_numbers
from recognition.errors import UserError, command
from recognition.io.files import require_new, write_whole
from recognition.plan.head_costs import RESERVE_GB
from recognition.plan.pace import Network, pace

if TYPE_CHECKING:  # it imports NumPy, for which --help and a mistyped flag need not wait
    from recognition.plan.planning import PlannedRun

SAMPLE_RATIO = 0.1  # of the sampled method, where config.sample_ratio is 1
# Flags of train_parall.py.
PRESET_FLAGS = {
    "config": "presets; default: config.py beside the programs, else sample_config.py",
    "network": "network preset",
    "dataset": "dataset preset, for the number of classes and the size of images",
    "loss": "loss preset",
    "per_batch_size": "images a device and step; default: as the presets say",
    "sample_ratio": f"share of the class centres in a step when sampled; default: the preset's, else {SAMPLE_RATIO}",
    "centers_on": "device, cpu or disk: where the class centres live; default: the preset's",
    "centers_numbers": "float32 or bfloat16, of the class centres and their moments; default: the preset's",
    "head_products": "float16, float32 or auto, of the head's products on GPUs; default: the preset's",
    "engine": "mxnet or torch; default: the preset's; if that is auto, torch on GPUs, and mxnet on CPUs if it can",
    "optimizer": "sgd or adamw; default: the preset's",
}
COLUMN_WIDTH = 16
ONE_HOST = Network(1, math.inf)
FLAG_TYPES = {
    "classes": types.integer(least=1), "devices": types.integer(least=1), "on": types.choice("gpu", "cpu"),
    "memory": types.real(above=0), "reserve": types.real(least=0), "hosts": types.integer(least=1),
    "link": types.real(above=0), "measured": types.real(above=0),
}


def make_parser() -> Parser:
    """The flags: those of the presets, and the plan's own."""
    parser = Parser(prog="python -m recognition.plan", description=(__doc__ or "").splitlines()[0])
    for key, text in PRESET_FLAGS.items():
        parser.add_argument(flag_name(key), dest=key, metavar=key.split("_")[-1].upper(), help=text)
    parser.add_argument("--classes", help="identities; default: as the dataset preset says")
    parser.add_argument("--devices", default="8", help="devices, each a process of its own; default: 8")
    parser.add_argument("--on", default="gpu", help="gpu or cpu; default: gpu")
    parser.add_argument("--sub-centres", help="centres a class; default: config.loss_K")
    parser.add_argument("--emb-size", help="length of an embedding; default: as the presets say")
    parser.add_argument("--fp16", action="store_true", help="backbone in 16 bits")
    parser.add_argument("--memonger", action="store_true", help="recompute activations")
    parser.add_argument("--memory", metavar="GB", help="of a device: tell what fits")
    parser.add_argument("--reserve", metavar="GB", help="of a device, for what is not planned: CUDA, cuDNN, Python; "
                        f"default: {RESERVE_GB['gpu']:g} on a GPU, {RESERVE_GB['cpu']:g} on a CPU")
    parser.add_argument("--hosts", default="1", help="hosts that the devices are on; default: 1")
    parser.add_argument("--link", metavar="GBIT", help="10^9 bits a second between hosts, in each direction")
    parser.add_argument("--measured", metavar="IMAGES", help="images a second of one device, as a short run on one "
                        "host has them with this batch (its speed line, divided by its devices): tell those of all")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE",
                        help="print JSON in place of the table, or write it to FILE beside it")
    parser.add_overwrite()
    return parser


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Config]:
    """The flags, typed, and the configuration that follows from them and the presets.

    :raises UserError: on a flag or a value that is not valid.
    """
    flags = make_parser().parse_args(argv)
    if flags.json not in (None, "-"):
        require_new([Path(flags.json)], [Path(flags.config)] if flags.config else [], flags.overwrite)
    for key, kind in FLAG_TYPES.items():
        if getattr(flags, key) is not None:
            setattr(flags, key, kind.check(getattr(flags, key), f"--{key}"))
    if flags.hosts > 1 and flags.measured and not flags.link:
        raise UserError("--link: not given, expected the speed of the network between hosts, such as --link 10")
    if flags.reserve is None:
        flags.reserve = RESERVE_GB[flags.on]
    return flags, configuration(flags)


def configuration(flags: argparse.Namespace) -> Config:
    given = [f"--{key.replace('_', '-')}={value}" for key in PRESET_FLAGS if (value := getattr(flags, key)) is not None]
    # What a run starts from takes no memory, and need not be there.
    given += ["--pretrained=", "--centres-from=checkpoint"]
    if flags.centers_on == "disk" and flags.sample_ratio is None:  # which a run has for samples alone
        anywhere = [flag for flag in given if not flag.startswith("--centers-on=")]
        if parse_args("train_parall", anywhere, environ={}).sample_ratio == 1:
            given.append(f"--sample-ratio={SAMPLE_RATIO}")
    config = parse_args("train_parall", given, environ={})
    if config.triplets:
        raise UserError(f"--loss: found {config.loss!r}, expected a loss with class centres: a triplet loss has none")
    changes: dict[str, Any] = {"devices": ((flags.on, 0),), "fp16": config.fp16 or flags.fp16,
                               "memonger": config.memonger or flags.memonger}
    if flags.classes:
        changes["num_classes"] = flags.classes
    for flag, key in (("sub_centres", "loss_K"), ("emb_size", "emb_size")):
        if getattr(flags, flag) is not None:
            changes[key] = check(key, getattr(flags, flag), "--" + flag.replace("_", "-"))
    if flags.sample_ratio is None and config.sample_ratio == 1:
        changes["sample_ratio"] = SAMPLE_RATIO
    if config.engine == "auto":
        low = config.centers_numbers != "float32"
        changes["engine"] = next(name for name, known in ENGINES.items()
                                 if (known.rounds_centres if low else known.best_on == flags.on))
    else:
        require_centre_numbers("--centres-numbers", config.engine, config.centers_numbers)
    from recognition.engines.configured import with_own_size

    config = with_own_size(dataclasses.replace(config, **changes))
    if not config.num_classes:
        raise UserError(f"--classes: not given, and the dataset preset {config.dataset!r} has no num_classes; expected "
                        "either")
    return config


def make_planned_run(flags: argparse.Namespace, config: Config) -> PlannedRun:
    from recognition.plan.planning import backbone_cost, planned_run

    return planned_run(config, config.num_classes, flags.devices, backbone_cost(config, engine=config.engine),
                       round(flags.reserve * 1e9), config.engine)


def numbers(run: PlannedRun, memory: float | None, measured: float | None = None,
            network: Network = ONE_HOST) -> dict[str, dict[str, Any]]:
    """The planned numbers by the names of the methods; with ``memory``, in GB, also what fits; with ``measured``, the
    images a second of one device, also those of all, but for the public recipe, which is another program."""
    from recognition.plan.planning import METHODS, fewest_devices, most_classes

    planned = {}
    for name, method in METHODS.items():
        cost = method.cost(run)
        planned[name] = {**cost._asdict(), "total": cost.total}
        if measured and name != "old":
            planned[name]["images_per_second"] = pace(run.devices, run.images, measured, cost.sent, network)._asdict()
        if memory:
            limit = round(memory * 1e9)
            planned[name].update(fits=cost.total <= limit, most_classes=most_classes(method, run, limit),
                                 fewest_devices=fewest_devices(method, run, limit))
    return planned


def introduction(config: Config, run: PlannedRun) -> str:
    low = {"gpu": "float16", "cpu": "bfloat16"}[run.kind] if config.in_16_bits else "float32"
    more = [f"{config.loss_K} sub-centres a class"] * (config.loss_K > 1) + ["memonger"] * config.memonger
    more += [f"W in {config.centers_numbers}"] * (config.centers_numbers != "float32")
    more += [{"gpu": "MXNet", "torch": "PyTorch", "torch on cpu": "PyTorch", "triton": "PyTorch, head by Triton"}.get(
        run.shard, "")]
    return (f"{', '.join([config.network, low, *filter(None, more)])}, {run.optimizer}; {run.classes:,} classes x "
            f"{run.dim}; {run.devices} {run.kind} x {run.images} images = "
            f"{run.devices * run.images:,} a step")


def table(config: Config, run: PlannedRun, planned: dict[str, dict[str, Any]], memory: float | None) -> list[str]:
    from recognition.plan.planning import METHODS

    columns = list(planned.values())
    sampled = f"{METHODS['sampled'].title} {run.ratio:g}"

    def row(title: str, cells: list[str]) -> str:
        return f"{title:26s}" + "".join(f"{cell:>{COLUMN_WIDTH}}" for cell in cells)

    def values(title: str, found: list[float], unit: float, digits: int) -> str:
        return row(title, [f"{value / unit:,.{digits}f}" for value in found])

    lines = [introduction(config, run), "",
             row("", [*(method.title for name, method in METHODS.items() if name != "sampled"), sampled]),
             row("", [method.command for method in METHODS.values()]), "GB a device (10^9 bytes)"]
    parts = max((column["memory"] for column in columns), key=len)
    lines += [values(f"  {part}", [column["memory"].get(part, 0) for column in columns], 1e9, 2) for part in parts]
    lines += [values("  in all", [column["total"] for column in columns], 1e9, 2)]
    lines += [values(f"  and of its {place}", [column[place] for column in columns], 1e9, 2)
              for place in ("host", "disk") if any(column[place] for column in columns)]
    lines += ["a device and step",
              values("  MB sent", [column["sent"] for column in columns], 1e6, 1),
              values("  GFLOP, head", [column["head_operations"] for column in columns], 1e9, 1),
              values("  GFLOP, backbone", [column["backbone_operations"] for column in columns], 1e9, 1)]
    if any(paces := [column.get("images_per_second", {}) for column in columns]):
        lines += ["images a second, of all"] + [
            row(f"  {title}", [f"{found[key]:,.0f}" if found else "" for found in paces])
            for title, key in (("at least", "least"), ("at most", "most"))]
    if memory:
        lines += [f"with {memory:g} GB a device",
                  row("  fits", ["yes" if column["fits"] else "no" for column in columns]),
                  row("  most classes", ["any" if column["most_classes"] is None else f"{column['most_classes']:,}"
                                         for column in columns]),
                  row("  fewest devices", [str(column["fewest_devices"] or "none") for column in columns])]
    return lines


@command
def main(argv: Sequence[str] | None = None) -> int:
    flags, config = parse(sys.argv[1:] if argv is None else argv)
    run = make_planned_run(flags, config)
    planned = numbers(run, flags.memory, flags.measured, Network(flags.hosts, flags.link or math.inf))
    text = json.dumps({"setting": dataclasses.asdict(run), "memory": flags.memory, "ways": planned}, indent=2)
    if flags.json == "-":
        print(text)
        return 0
    print("\n".join(table(config, run, planned, flags.memory)))
    if flags.json:
        write_whole(Path(flags.json), text + "\n")
    return 0
