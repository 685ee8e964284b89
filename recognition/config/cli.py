# SPDX-License-Identifier: Apache-2.0
"""The flags of ``train.py`` and ``train_parall.py``: flags go over presets, presets over defaults, into one Config.

MXNet, NumPy and OpenCV are not imported here, so that ``--help`` and a mistyped flag answer at once.
"""
from __future__ import annotations

import argparse
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recognition.config import types
from recognition.config.command_line import Parser, british
from recognition.config.devices import decode_threads, num_workers, own_devices, require_numbers, visible_devices
from recognition.config.groups.network import FAMILIES
from recognition.config.groups.option import ENTRIES
from recognition.config.options import OPTIONS, Config, check, refuse_unsupported
from recognition.config.presets import PRESETS, ROOT, ConfigFile, open_config
from recognition.config.types import nearest
from recognition.config.user_code import TIMM, is_symbol_file, is_timm
from recognition.errors import UserError
from recognition.io.names import MANIFEST, params_file

CHECKPOINT = "checkpoint"  # as a network: that of --pretrained
# Options that are derived from the machine and from other options unless they are set.
DERIVED = ("devices", "decode_threads", "state_every")


def flag_name(key: str) -> str:
    """The flag that sets option ``key``."""
    return "--" + british(key).replace("_", "-")


def flag_keys(entry: str) -> list[str]:
    """The options that command ``entry`` has a flag for."""
    return [key for key, item in OPTIONS.items() if entry in item.metadata["flag"]]


def _parser(entry: str, shown: Mapping[str, str]) -> Parser:
    """The parser of all flags of ``entry``. It returns text, which the options' types read and check. ``shown``, by
    key, is added to a flag's help."""
    parser = Parser(prog=f"{entry}.py", add_help=False, argument_default=argparse.SUPPRESS,
                    description="Train a face recognition network"
                                + (", parallel on x and W." if entry == "train_parall" else "."))
    parser.add_argument("-h", "--help", action="store_true", help="show this and stop")
    parser.add_argument("--config", metavar="FILE",
                        help="presets and options; default: config.py beside this program, else sample_config.py")
    for key in flag_keys(entry):
        also: dict[str, Any] = {"metavar": key.split("_")[-1].upper()}
        if key == "resume":
            also.update(nargs="?", const="yes")
        if OPTIONS[key].metadata["type"] is types.boolean:  # a flag without a value
            also = {"action": "store_true"}
        text = OPTIONS[key].metadata["help"] + shown.get(key, "")
        parser.add_argument(flag_name(key), dest=key, help=text.replace("%", "%%"), **also)
    return parser


def _parse_flags(entry: str, argv: Sequence[str]) -> dict[str, Any]:
    """The given flags by key, not yet checked. One word may hold a flag and its value, or many of both, ``'--network
    r50 --dataset emore'``: horovodrun takes a word ``--network`` for an abbreviation of its own flags, and stops."""
    parser = _parser(entry, {})
    given, rest = parser.parse_known_args([part for word in argv for part in _words(word)])
    if rest:
        word = rest[0].split("=")[0]
        if not word.startswith("-"):
            raise UserError(f"unexpected argument {word!r}; {parser.prog} --help lists the flags")
        for other in ENTRIES:
            if british(word) in map(flag_name, flag_keys(other)):
                raise UserError(f"{word}: a flag of {other}.py only")
        flags = ["--config", "--help", *map(flag_name, flag_keys(entry))]
        raise UserError(f"{word}: unknown flag{nearest(word, flags)}; {parser.prog} --help lists them")
    return vars(given)


def _words(word: str) -> list[str]:
    """The flags and values in one word of a command line. A value may have blanks, and quotes around it."""
    if not re.match(r"\s*--[a-z][\w-]*[\s=]", word):
        return [word]
    found = []
    for flag in re.split(r"\s+(?=--[a-z])", word.strip()):
        name, equals, value = re.fullmatch(r"(--[\w-]+)(=|\s*)(.*)", flag, re.DOTALL).groups()  # type: ignore[union-attr]
        value = re.sub(r"""^(['"])(.*)\1$""", r"\2", value, flags=re.DOTALL)
        found += [name + equals + value] if equals == "=" else [name, value] if value else [name]
    return found


def _described(file: ConfigFile, values: Mapping[str, Any]) -> dict[str, str]:
    """The end of the help of each flag, by key: the values to choose from, and the default after presets."""
    shown = {}
    for key, value in values.items():
        if OPTIONS[key].metadata["type"] is types.boolean:
            continue
        choices = [str(choice) for choice in
                   (file.presets(key) if key in PRESETS else OPTIONS[key].metadata["type"].choices) if choice]
        default = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        shown[key] = (f": {', '.join(choices)}" if choices else "") + f" (default: {default or 'empty'})"
    return shown


def _derived(values: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """The DERIVED options that ``values`` lacks."""
    derive = {
        "devices": lambda: visible_devices(environ),
        "decode_threads": decode_threads,
        "state_every": lambda: values["verbose"] if values["ckpt"] else 0,
    }
    return {key: derive[key]() for key in DERIVED if key not in values}


def split_pretrained(text: str, epoch: int) -> tuple[str, int]:
    """The (prefix, epoch) of a checkpoint, from PREFIX or FOLDER (of ``model-*``), either with ``,EPOCH``, or from its
    ``.params`` file. ``epoch`` is the number if ``text`` has none."""
    match = re.fullmatch(r"(.+)-(\d{4,9})\.params", text) or re.fullmatch(r"(.+),\s*(\d{1,9})", text)
    prefix, epoch = (match[1], int(match[2])) if match else (text, epoch)
    return os.path.join(prefix, "model") if os.path.isdir(prefix) else prefix, epoch


def _network_preset(file: ConfigFile, network: str, where: str, pretrained: str) -> str:
    """The name of the network preset that ``network`` names. For a ``-symbol.json``, for ``checkpoint``, the symbol of
    the checkpoint ``pretrained``, and for a model of timm a preset of it is added to the file.

    :raises UserError: beginning with ``where``, if there is no such symbol.
    """
    path, name = network, Path(network).stem
    if network == CHECKPOINT and network not in file.presets("network"):
        if not pretrained:
            raise UserError(f"{where}: found {network!r}, the network of a checkpoint, expected --pretrained with it")
        path = f"{split_pretrained(pretrained, 0)[0]}-symbol.json"
    elif is_timm(network):
        name = network[len(TIMM) :].replace("/", "-")
        file.add_network(name, network)
        return name
    elif not is_symbol_file(network):
        return network
    if not os.path.isfile(path):
        raise UserError(f"{where}: found no file {path}, expected the symbol of a checkpoint, PREFIX-symbol.json")
    file.add_network(name, os.path.abspath(path))
    return name


_OF_TORCH = "python -m common.convert_torch FILE PREFIX,1 makes one of arcface_torch's weights"
_NO_CHECKPOINTS = {".pth": _OF_TORCH, ".pt": _OF_TORCH, ".ckpt": _OF_TORCH,
                   ".onnx": "an ONNX file cannot be read back: take the checkpoint or the .pth that it was made of"}


def find_pretrained(text: str, epoch: int, flag: str = "--pretrained") -> tuple[str, int]:
    """Like :func:`split_pretrained`, and check that ``<prefix>-<epoch>.params`` exists.

    :raises UserError: beginning with ``flag``, if it does not.
    """
    prefix, epoch = split_pretrained(text, epoch)
    path = Path(params_file(prefix, epoch))
    if not path.is_file():
        if (how := _NO_CHECKPOINTS.get(Path(text).suffix.lower())):
            raise UserError(f"{flag}: found {text}, expected a checkpoint; {how}")
        there = sorted(entry.name for entry in path.parent.glob("*.params")) if path.parent.is_dir() else []
        raise UserError(f"{flag}: found no {path}, expected PREFIX, FOLDER, either with ,EPOCH, or the .params "
                        f"file; {path.parent} holds {', '.join(there) or 'no .params file'}")
    return prefix, epoch


def _goes_on(resume: str, folder: str) -> bool:
    """True if the run resumes from a training state, which is there or has to be: then it needs no checkpoint."""
    there = any(Path(folder, "state").glob(f"step-*/{MANIFEST}"))
    return resume == "yes" or (resume == "auto" and there)


def _found(text: str, flag: str, or_one_of: Sequence[str] = ()) -> str:
    """PREFIX,EPOCH of the checkpoint that ``text`` names; a folder that holds none as it is.

    :raises UserError: beginning with ``flag``, if there is neither; ``or_one_of``: words that it takes, too.
    """
    prefix, epoch = split_pretrained(text, 1)
    if os.path.isdir(text) and not os.path.isfile(params_file(prefix, epoch)):
        return text
    try:
        prefix, epoch = find_pretrained(text, 1, flag)
    except UserError as error:
        words = f"; expected it or one of {', '.join(or_one_of)}{nearest(text, or_one_of)}" if or_one_of else ""
        raise UserError(f"{error}{words}") from None
    return f"{prefix},{epoch}"


def parse_args(entry: str, argv: Sequence[str], root: Path = ROOT,
               environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration of a run of ``entry`` ('train' or 'train_parall') with the flags ``argv``.

    :param root: the folder of config.py or sample_config.py.
    :raises UserError: on anything that is not valid or that the trainer cannot do.
    :raises SystemExit: after the help, for ``--help``.
    """
    flags: dict[str, Any] = _parse_flags(entry, argv)
    asks_help = flags.pop("help", False)
    require_numbers(environ)
    file = open_config(flags.pop("config", ""), root)
    chosen = {section: str(flags.get(section, file.default(section))) for section in PRESETS}
    where = {section: flag_name(section) if section in flags else f"{file.name}: default.{section}"
             for section in PRESETS}
    pretrained = flags.get("pretrained", file.default("pretrained"))
    chosen["network"] = _network_preset(file, chosen["network"], where["network"], str(pretrained))
    in_file = {**file.lay_presets(chosen, where), **chosen}
    values: dict[str, Any] = {key: item.default for key, item in OPTIONS.items() if key not in DERIVED}
    own = in_file["net_name"] not in FAMILIES
    values.update({key: check(key, value, f"{file.name}: {british(key)}", own) for key, value in in_file.items()})
    values.update({key: check(key, value, flag_name(key)) for key, value in {**flags, **chosen}.items()})
    if asks_help:
        _parser(entry, _described(file, values)).print_help()
        raise SystemExit(0)
    values.update(_derived(values, environ), num_workers=num_workers(environ), entry=entry, config_file=file.path)
    values["devices"] = own_devices(values["devices"], environ)
    config = Config(**values)
    refuse_unsupported(config)
    goes_on = _goes_on(config.resume, config.output_dir)
    if config.teacher:
        config = dataclasses.replace(config, teacher=_found(config.teacher, "--teacher"))
    if config.centres_from not in types.CENTRES_FROM and not goes_on:
        config = dataclasses.replace(config, centres_from=_found(config.centres_from, "--centres-from",
                                                                   types.CENTRES_FROM))
    if not config.pretrained:
        return config
    find = split_pretrained if goes_on else find_pretrained
    prefix, epoch = find(config.pretrained, config.pretrained_epoch)
    return dataclasses.replace(config, pretrained=prefix, pretrained_epoch=epoch)
