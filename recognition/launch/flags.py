# SPDX-License-Identifier: Apache-2.0
"""The flags of ``launch``. All are checked before anything is started."""
from __future__ import annotations

import argparse
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Sequence
from typing import Any

from recognition.config import types
from recognition.config.command_line import Parser
from recognition.errors import UserError
from recognition.launch.nodes import LOCAL, SSH, parse_folders, parse_hosts
from recognition.processes.reach import address_of

MOST_PROCESSES = 10_000
TRAINERS = ("train.py", "train_parall.py")


def _command_here(value: Any) -> list[str]:
    """The words of a command.

    :raises ValueError: if this host has no such program.
    """
    words = shlex.split(value)
    if not words or not shutil.which(words[0]):
        raise ValueError
    return words


FLAG_TYPES = {
    "-np": types.integer(least=1, most=MOST_PROCESSES),
    "--servers": types.integer(least=0, most=MOST_PROCESSES),
    "--restarts": types.integer(least=0),
    "--fewest": types.integer(least=1, most=MOST_PROCESSES),
    "--stall-timeout": types.real(above=0),
    "--slow-after": types.real(above=0),
    "--address": types.filled_text,
    "--interface": types.filled_text,
    "--ssh": types.OptionType(_command_here, "a command of this host with its flags, such as 'ssh -p 2222'"),
}


def parse(argv: Sequence[str], description: str | None = None) -> argparse.Namespace:
    """Parse a command line into options of checked types. ``command`` holds the command to start.

    :raises UserError: if an option is not valid.
    """
    parser = _parser(description)
    options = parser.parse_args(argv)
    options.command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not options.command or not options.command[0]:
        parser.error("found no command, expected -- python train_parall.py ...")
    options.hosts = None if options.hosts is None else parse_hosts(options.hosts)
    options.folders = parse_folders(options.folders or "", [name for name, _ in options.hosts or ()])
    if options.ssh is None and any(name not in LOCAL for name, _ in options.hosts or ()):
        options.ssh = shlex.join(SSH)
    for flag, flag_type in FLAG_TYPES.items():
        key = "workers" if flag == "-np" else flag[2:].replace("-", "_")
        if getattr(options, key) is not None:
            setattr(options, key, flag_type.check(getattr(options, key), flag))
    if options.fewest and options.fewest > options.workers:
        parser.error(f"--fewest: found {options.fewest}, expected at most -np, {options.workers}")
    if options.servers and not wants_servers(options.command):
        if named := next((word for word in options.command if word.partition("=")[0] == "--kvstore"), ""):
            parser.error(f"--servers: found {named} of another kind in the command, expected --kvstore dist_sync or "
                         "dist_device_sync, or none")
        if starts_trainer(options.command):
            options.command += ["--kvstore", "dist_sync"]
    return options


def _parser(description: str | None) -> Parser:
    """The parser of all flags. It returns text, which FLAG_TYPES read and check."""
    parser = Parser(prog="python -m recognition.launch", description=description)
    parser.add_argument("-np", "--workers", required=True, metavar="N", help="worker processes")
    parser.add_argument("--hosts", metavar="A:2,B:2", help="hosts and how many workers each takes")
    parser.add_argument("--folders", metavar="A=PATH,B=PATH", help="folder in which the command is started on hosts "
                        "(default: this one)")
    parser.add_argument("--servers", metavar="S", help="parameter servers; 0 for Horovod "
                        "(default: one a host if the command says --kvstore dist_..., else 0); train.py and "
                        "train_parall.py without --kvstore get --kvstore dist_sync with them")
    parser.add_argument("--restarts", default=0, metavar="N", help="how often to start again (default: 0)")
    parser.add_argument("--fewest", metavar="N", help="workers with which a restart goes on if hosts stay away "
                        "(default: all of -np)")
    parser.add_argument("--stall-timeout", default=300, metavar="SECONDS",
                        help="without any exchange, after which a run counts as hung (default: 300)")
    parser.add_argument("--slow-after", default=60, metavar="SECONDS",
                        help="in which one worker held the others up, to be called slow (default: 60)")
    parser.add_argument("--address", metavar="HOST", help="this host's address as the other hosts see it")
    parser.add_argument("--interface", metavar="NAME", help="network interface of every host to use")
    parser.add_argument("--ssh", metavar="COMMAND", help=f"how to reach another host (default: {shlex.join(SSH)})")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the command")
    return parser


def wants_servers(arguments: Sequence[str]) -> bool:
    """True for a command line with ``--kvstore dist_...``."""
    pairs = zip(arguments, [*arguments[1:], ""])
    return any(argument.startswith("--kvstore=dist") or (argument == "--kvstore" and following.startswith("dist"))
               for argument, following in pairs)


def starts_trainer(arguments: Sequence[str]) -> bool:
    """True for a command line that starts ``train.py`` or ``train_parall.py``."""
    return any(os.path.basename(word) in TRAINERS for word in arguments)


def require_interface(name: str) -> None:
    """Check a network interface of this host.

    :raises UserError: if there is none of this name, or it has no IPv4 address.
    """
    names = [known for _, known in socket.if_nameindex()]
    if name not in names:
        raise UserError(f"--interface: found {name!r}, expected a network interface of this host: {', '.join(names)}"
                        f"{types.nearest(name, names)}")
    if sys.platform == "linux":
        try:
            address_of(name)
        except OSError as error:
            raise UserError(f"--interface: found {name!r}, which has no IPv4 address ({error.strerror}), expected one "
                            "that has") from None
