# SPDX-License-Identifier: Apache-2.0
"""Damages files of real states and checkpoints at random, and then uses them."""
from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Callable

import numpy as np

from faults.chaos_run import Standing, Workshop
from faults.reliability import Row
from recognition.engines.mxnet.imports import mx
from recognition.errors import UserError
from recognition.io.checksums import SUFFIX
from recognition.io.params import read_arrays
from recognition.training.states.find import find_state
from recognition.training.states.folder import saved_states, step_of

TRIALS, RUNS, STEPS = 300, 3, 24
KINDS = ("bit flipped", "cut short", "swapped", "removed")


def damage(folder: Path, seed: int, trials: int = TRIALS, runs: int = RUNS) -> list[Row]:
    """The rows about states, about checkpoints, and about whole runs that resume from damaged files."""
    workshop, random = Workshop(folder, STEPS), np.random.default_rng(seed)
    life = workshop.run("shards", "--devices", "cpu:2", "--per-batch-size", "6", "--keep-last", "2")
    if life.status:
        raise RuntimeError(life.err)
    output = workshop.output("shards")
    return [_states(output / "state", folder / "damaged", trials, random),
            _checkpoints(output, folder / "damaged", trials, random), _runs(workshop, runs, random)]


def spoil(path: Path, others: list[Path], random: np.random.Generator, kinds: tuple[str, ...] = KINDS) -> str:
    """Damage a file in a random way, which is returned; ``others``: files that may take its place."""
    kind, content = str(random.choice(kinds)), path.read_bytes()
    if kind == "removed":
        path.unlink()
    elif kind == "cut short":
        path.write_bytes(content[: int(random.integers(len(content)))])
    elif kind == "swapped":
        others = [other for other in others if other.read_bytes() != content]
        shutil.copy(others[int(random.integers(len(others)))], path)
    else:
        flipped = bytearray(content)
        flipped[int(random.integers(len(content)))] ^= 1 << int(random.integers(8))
        path.write_bytes(flipped)
    return kind


def _states(source: Path, folder: Path, trials: int, random: np.random.Generator) -> Row:
    kinds: Counter[str] = Counter()
    failures = []
    for _ in range(trials):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        *_, before, newest = saved_states(folder)
        files = sorted(newest.iterdir())
        path = files[int(random.integers(len(files)))]
        was = path.read_bytes()
        kind = spoil(path, [*files, *before.iterdir()], random)
        if path.name == "manifest.json" and path.exists() and _same_json(path.read_bytes(), was):
            continue  # a blank less: nothing that the file says
        kinds[kind] += 1
        said = _refusal(find_state, folder, "yes")
        with contextlib.redirect_stdout(io.StringIO()) as line:
            taken = find_state(folder, "auto")
        if f"{newest.name}/{path.name}" not in said or f"{before.name} before it is whole" not in said:
            failures.append(f"{kind} {path.name}: said {said!r}")
        elif taken is None or taken.path != before or line.getvalue().count("\n") != 1:
            failures.append(f"{kind} {path.name}: auto took {taken and taken.path.name}")
    return Row("a file of a training state damaged", sum(kinds.values()),
               "`--resume` refuses it by name and offers the state before; `--resume auto` takes that, said in a line",
               sum(kinds.values()) - len(failures), "; ".join([_counted(kinds), *failures]))


def _checkpoints(source: Path, folder: Path, trials: int, random: np.random.Generator) -> Row:
    kinds: Counter[str] = Counter()
    failures = []
    for _ in range(trials):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("state"))
        files = sorted(folder.glob("*.params"))
        path = files[int(random.integers(len(files)))]
        kind = spoil(path, files, random, KINDS[:3])
        kinds[kind] += 1
        said = _refusal(read_arrays, path)
        others = sorted(set(files) - {path}, key=lambda one: one.stat().st_mtime_ns)
        words = (f"{path.name}: damaged", f"remove {path.name}{SUFFIX}", f"; {others[-1].name} beside it is whole")
        if not all(word in said for word in words):
            failures.append(f"{kind} {path.name}: said {said!r}")
        elif strange := [other.name for other in others if not _loads(other)]:
            failures.append(f"{kind} {path.name}: MXNet does not load {', '.join(strange)} as it is")
    return Row("a checkpoint's `.params` damaged", sum(kinds.values()),
               "refused by name, a whole one beside it is named; plain MXNet loads those that are whole",
               sum(kinds.values()) - len(failures), "; ".join([_counted(kinds), *failures]))


def _runs(workshop: Workshop, runs: int, random: np.random.Generator) -> Row:
    failures = []
    for number in range(runs):
        name = f"gone-on-{number}"
        life = workshop.start(name)
        for _ in life.rounds():
            if len(saved_states(workshop.output(name) / "state")) > 1:
                break
        life.kill()
        newest = saved_states(workshop.output(name) / "state")[-1]
        files = sorted(newest.iterdir())
        kind = spoil(files[int(random.integers(len(files)))], files, random)
        before = Standing.of(workshop.output(name))._replace(step=step_of(saved_states(newest.parent)[-2]))
        if problem := workshop.end(name, workshop.start(name, "--resume", "auto"), before, damaged=True):
            failures.append(f"{kind}: {problem}")
    return Row("a run whose newest state was damaged after a kill", runs,
               "goes on by `--resume auto` to the end of a run that nothing disturbed, bit for bit",
               runs - len(failures), "; ".join(failures) or "the same bits")


def _loads(path: Path) -> bool:
    """True if plain MXNet reads the same arrays from a whole checkpoint as this project."""
    ours, theirs = read_arrays(path), mx.nd.load(str(path))
    return ours.names == list(theirs) and all(np.array_equal(array, theirs[name].asnumpy())
                                              for name, array in zip(ours.names, ours.arrays))


def _refusal(action: Callable[..., object], *args: object) -> str:
    try:
        action(*args)
    except UserError as error:
        return str(error)
    return ""


def _same_json(left: bytes, right: bytes) -> bool:
    try:
        return bool(json.loads(left) == json.loads(right))
    except ValueError:
        return False


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
