# SPDX-License-Identifier: Apache-2.0
"""Puts the parts of a training state together, which hosts that share no folder keep apart (--states-on hosts).

    python -m common.gather_states models/r100-arcface-emore/state b:/data/models/r100-arcface-emore/state \
        --output models/r100-arcface-emore/state

Each DIR is a folder of states: of this machine, or HOST:DIR of a host that ssh reaches. The newest state that all of
them have, or that of --step, is whole in --output afterwards, so that a run with any number of processes goes on from
there. --output may be the first DIR: then only what is missing there is fetched. Each file is compared with its
checksum.
"""
from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from recognition.config import types
from recognition.config.command_line import Parser
from recognition.errors import UserError, command
from recognition.head.shard import ShardState
from recognition.io.centres import shard_file
from recognition.io.checksums import HashedFile, Sum
from recognition.io.files import WRITING, reading, sync_folder, writing
from recognition.progress import progress
from recognition.training.states.folder import is_state, saved_states, step_of
from recognition.training.states.save import save_manifest
from recognition.training.states.state import MANIFEST, SavedState

SSH = "ssh -o BatchMode=yes"
REST = ("backbone.npz", "data.npz")  # the files of a state that are of no shard
_BYTES_AT_ONCE = 1 << 22
_MOST_OF_MANIFEST = 1 << 26  # bytes


@dataclass(frozen=True)
class Source:
    """A folder of states, of this machine or of another host."""

    name: str  # as it was typed
    folder: str
    host: str = ""  # '': this machine
    ssh: tuple[str, ...] = ()

    def states(self) -> dict[int, str]:
        """The names of its states, by their steps."""
        if not self.host:
            names = [path.name for path in saved_states(Path(self.folder))]
        else:
            with self._remote(f"ls {shlex.quote(self.folder)}") as stream:
                names = [name for name in stream.read().decode(errors="replace").split() if is_state(name)]
        return {step_of(Path(name)): name for name in names}

    @contextmanager
    def opened(self, name: str) -> Iterator[IO[bytes]]:
        """A file below the folder, as a stream.

        :raises UserError: if it cannot be read.
        """
        if self.host:
            with self._remote(f"cat {shlex.quote(f'{self.folder}/{name}')}") as stream:
                yield stream
            return
        path = Path(self.folder, name)
        with ExitStack() as stack:
            with reading(path):
                stream = stack.enter_context(open(path, "rb"))
            yield stream

    @contextmanager
    def _remote(self, line: str) -> Iterator[IO[bytes]]:
        with subprocess.Popen([*self.ssh, self.host, line], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as process:
            assert process.stdout and process.stderr
            yield process.stdout
            process.stdout.close()  # where not all was read, cat would wait
            said = process.stderr.read().decode(errors="replace").strip().splitlines()
            if process.wait():
                raise UserError(f"{self.name}: cannot be read: {said[-1] if said else f'status {process.returncode}'}")


def source(text: str, ssh: str) -> Source:
    host, _, folder = text.partition(":")
    if folder and not os.path.exists(text) and "/" not in host:
        return Source(text, folder, host, tuple(shlex.split(ssh)))
    return Source(text, text)


def choose(sources: Sequence[Source], step: int | None) -> str:
    """The name of the newest state that all have, or of that of ``step``.

    :raises UserError: if there is none.
    """
    found = {one.name: one.states() for one in sources}
    common = set.intersection(*(set(states) for states in found.values()))
    if step is not None and step not in common:
        lacking = next(name for name, states in found.items() if step not in states)
        raise UserError(f"--step: found no state of step {step} in {lacking}, expected one of "
                        f"{', '.join(map(str, sorted(common))) or 'none that all have'}")
    if not common:
        have = [f"{name} has {', '.join(map(str, sorted(states))) or 'none'}" for name, states in found.items()]
        raise UserError(f"found no step of which all have a state: {'; '.join(have)}")
    return found[sources[0].name][max(common) if step is None else step]


def manifests(sources: Sequence[Source], name: str) -> list[SavedState]:
    """The manifests of the parts.

    :raises UserError: if they are not parts of one state.
    """
    parts = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, one in enumerate(sources):
            below = Path(scratch, str(number), name)
            below.mkdir(parents=True)
            with one.opened(f"{name}/{MANIFEST}") as stream:
                (below / MANIFEST).write_bytes(stream.read(_MOST_OF_MANIFEST))
            try:
                parts.append(SavedState(below))
            except UserError as error:
                raise UserError(str(error).replace(str(below), f"{one.name}/{name}")) from None
            if parts[-1].fingerprint() != parts[0].fingerprint():
                raise UserError(f"{one.name}/{name}: found the part of another state than that of {sources[0].name}")
    return parts


def places(sources: Sequence[Source], parts: Sequence[SavedState], name: str) -> dict[str, tuple[Source, Sum]]:
    """Where each file of the whole state is, and its sum. What is no shard is taken from the first part.

    :raises UserError: if shards are in none of them.
    """
    of_shards = {shard_file(kind, number): number for number in range(parts[0].shards) for kind in ShardState._fields}
    found: dict[str, tuple[Source, Sum]] = {}
    for one, part in zip(sources, parts):
        for file, total in part.sums.items():
            if file not in of_shards and file not in REST:  # a name could lead out of the folder
                raise UserError(f"{one.name}/{name}/{MANIFEST}: found the file {file!r}, expected {', '.join(REST)} "
                                "and those of shards")
            here = of_shards[file] not in part.elsewhere if file in of_shards else part is parts[0]
            if here and file not in found:
                found[file] = (one, total)
    missing = {number: parts[0].elsewhere[number] for file, number in of_shards.items()
               if file in parts[0].sums and file not in found}
    if missing:
        hosts = ", ".join(sorted(set(missing.values())))
        raise UserError(f"{name}: shards {', '.join(map(str, sorted(missing)))} of W are missing, which {hosts} kept; "
                        "expected the folder of each host that kept some")
    return found


def fetch(files: Mapping[str, tuple[Source, Sum]], name: str, folder: Path) -> None:
    """Copy files of a state into ``folder``, but for those that are there already.

    :raises UserError: if one is not as it was saved.
    """
    for file, (one, wanted) in progress(list(files.items()), "gathering", unit=" files"):
        path = folder / file
        if one.folder == str(folder.parent) and not one.host:
            continue
        with writing(path), one.opened(f"{name}/{file}") as stream, HashedFile(path) as copy:
            while copy.sum.size <= wanted.size and (piece := stream.read(_BYTES_AT_ONCE)):
                copy.write(piece)
        if copy.sum != wanted:
            path.unlink()
            raise UserError(f"{one.name}/{name}/{file}: damaged: found other bytes than were saved")


def gather(sources: Sequence[Source], name: str, output: Path) -> Path:
    """Make the state ``name`` whole below ``output``; returns its folder.

    :raises UserError: if parts are missing, damaged, or of different states.
    """
    parts = manifests(sources, name)
    files, target = places(sources, parts, name), output / name
    sums = {file: total for file, (_, total) in files.items()}
    begun = target
    if target.exists():
        if sources[0].folder != str(output) or sources[0].host:
            raise UserError(f"{target}: exists already; expected it as the first DIR, or another --output")
        if not parts[0].elsewhere:
            return target
    else:
        begun = target.with_name(target.name + WRITING)
        with writing(begun):
            begun.mkdir(parents=True, exist_ok=True)
    fetch(files, name, begun)
    with writing(target):
        whole = begun / f"{MANIFEST}{WRITING}"
        whole.mkdir(exist_ok=True)
        save_manifest(whole, parts[0].progress, parts[0].ranges, sums)
        os.replace(whole / MANIFEST, begun / MANIFEST)
        whole.rmdir()
        sync_folder(begun)
        if begun != target:
            os.replace(begun, target)
    sync_folder(output)
    return target


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m common.gather_states", description=__doc__)
    parser.add_argument("parts", nargs="+", metavar="DIR", help="folders of states, DIR or HOST:DIR, one of each host")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of states where the whole one goes")
    parser.add_argument("--step", metavar="N", help="the state (default: the newest that all have)")
    parser.add_argument("--ssh", default=SSH, metavar="COMMAND", help=f"how to reach a host (default: {SSH})")
    args: argparse.Namespace = parser.parse_args(argv)
    step = None if args.step is None else types.integer(least=0).check(args.step, "--step")
    output = Path(args.output)
    sources = [source(str(Path(text)) if ":" not in text else text, args.ssh) for text in args.parts]
    target = gather(sources, choose(sources, step), output)
    print(f"{target}: whole; --resume goes on from it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
