# SPDX-License-Identifier: Apache-2.0
"""The short form of every bench of speed and memory, in one table beside the stored figures: `make bench`.

    python -m bench.short                           # all, about four minutes on two quiet cores
    python -m bench.short --only head input
    python -m bench.short --store                   # store these figures

The benches run one after the other, each in a process of its own. A figure is a ratio to the alternative that the bench
measures in the same run, so that it can be compared across days and, with care, across machines. ``worse`` marks a
ratio that is worse than the stored one by more than a fifth; run that bench again, by its own command, before you
believe it. The exit status is 1 if a bench did not run to its end, but not if one was slow.
"""
from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from bench.ratios import read_ratios
from recognition.config.command_line import Parser
from recognition.config.devices import CPU, share_processors
from recognition.errors import UserError, command, one_line
from recognition.io.files import write_whole
from recognition.training.watch.run_record import machine, revision

ROOT = Path(__file__).resolve().parents[1]
FIGURES = Path(__file__).with_name("figures.json")
TOLERANCE = 0.2
WIDTH = 60


class Bench(NamedTuple):
    """A bench's short form, and the ratios that it must write."""

    name: str  # of the module
    flags: str
    meaning: str  # of its ratios
    more: tuple[str, ...] = ()  # ratios of which more is better
    less: tuple[str, ...] = ()
    processes: int = 1  # if several, they are Horovod's, which share the processors by themselves
    threads: int = 0  # of MXNet, if the bench's own command names a number; 0: as many as in a run

    @property
    def command(self) -> str:
        threads = f"OMP_NUM_THREADS={self.threads} " if self.threads else ""
        return f"{threads}python -m bench.{self.name} {self.flags}".rstrip()


BENCHES = (
    Bench("networks.backbone", "--networks y1 r50 --batch 8 --repeats 2", "images/s, to the graph as it stands",
          more=tuple(f"{network} {what}, passes" for network in ("y1", "r50") for what in ("training", "inference"))),
    Bench("networks.prelu", "--batch 8 --repeats 3 --networks",
          "ms that MXNet's operator adds, to those that the pass adds",
          more=("all maps",)),
    Bench("networks.winograd", "--networks r18 --batch 8 --repeats 2", "steps/s, to MXNet's 3 x 3 convolutions",
          more=("layers", "layers, normed", "r18"), threads=1),
    Bench("networks.bfloat16", "--networks r18 --batch 8 --repeats 3",
          "images/s in training, to float32 with the same passes",
          more=("r18",)),
    Bench("networks.memonger", "--networks r50 --batch 8 --repeats 2", "MB and ms of a step, to maps kept",
          less=("r50 maps, memonger", "r50 peak, memonger", "r50 step, memonger")),
    Bench("head", "--most 200000 --repeats 3", "seconds and peak memory of the old way, to this one",
          more=tuple(f"200000 classes{variant}{what}" for what in ("", ", memory") for variant in (
              "", ", ratio 0.1", ", shards 2", ", sub-centres 3", ", optimizer adamw"))),
    Bench("sampled", "disk --classes 50000 --repeats 2", "seconds of a step that reads from a disk, to rows read ahead",
          more=("read ahead",)),
    Bench("exchange", "--processes 2 --classes 1000 20000 --steps 3", "bytes sent, to 1,000 classes; to the formula",
          less=("2 processes, 20000 classes", "2 processes, 20000 classes, formula"), processes=2),
    Bench("overlap", "--network y1 --batch 4 --steps 8", "seconds a step, gradients summed in the pass, to ...",
          less=("y1, afterwards", "y1, none"), processes=2),
    Bench("triplets", "--bags 1800 --repeats 3", "seconds of the legacy loops, to this way", more=("bag of 1800",)),
    Bench("input", "--images 2048 --repeats 3 --networks y1", "images/s, to the recipes' iterator",
          more=("ImageRecordIter", "BatchLoader, no augmentation", "BatchLoader, mirror",
                "BatchLoader, mirror, cutoff 32", "BatchLoader, mirror, colour 1", "BatchLoader, mirror, colour 2"),
          less=("y1, step with the wait for data",)),
    Bench("verification", "--pairs 3000 --repeats 2", "seconds and memory of the recipes' way, to this one",
          more=("load", "memory while loading", "mirror images", "statistics")),
    Bench("start", "--repeats 1", "seconds to the end of the first step and of --help, to MXNet's import",
          less=("first run", "later run", "--help")),
    Bench("million", "--distractors 200000 --probes 1760", "seconds of the search by blocks, to ...",
          less=("products", "whole", "by probe")),
    Bench("checksums", "--gigabytes 0.5 --repeats 3", "seconds of a file, to np.save",
          less=("with sha256", "compared with its sum")),
    Bench("finite", "--network y1 --batch 8 --steps 8", "seconds of a step, to one without looking at its numbers",
          less=("y1, checked", "y1, reversible")),
    Bench("verdict", "--network demo --batch 64 --classes 20000 --turns 2", "seconds of a step, to W after the verdict",
          less=("W before", "W beside")),
)


class Outcome(NamedTuple):
    """The result of a bench."""

    seconds: float
    ratios: Mapping[str, float] = {}
    why: str = ""  # the reason if there are no ratios
    failed: bool = False


def run(bench: Bench, limit: float) -> Outcome:
    """Run a bench in a session of its own, which is killed after ``limit`` seconds."""
    if bench.processes > 1 and not importlib.util.find_spec("horovod"):
        return Outcome(0, why="left out: no Horovod here")
    environ = dict(os.environ)
    if bench.threads:
        environ["OMP_NUM_THREADS"] = str(bench.threads)
    if bench.processes == 1:
        share_processors(CPU, environ)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "said", "w+", encoding="utf-8") as said:
        ratios = Path(folder) / "ratios.json"
        process = subprocess.Popen(
            [sys.executable, "-m", f"bench.{bench.name}", *bench.flags.split(), "--json", str(ratios)], cwd=ROOT,
            env=environ, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = process.wait(limit)
        except BaseException as error:  # Ctrl-C and SIGTERM do not reach another session
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return Outcome(time.monotonic() - began, why=f"FAILED: not done after {limit:g} s", failed=True)
        seconds = time.monotonic() - began
        if status:
            said.seek(0)
            last = ([""] + [line.strip() for line in said if line.strip()])[-1]
            return Outcome(seconds, why=f"FAILED: exit status {status}: {last}", failed=True)
        try:
            return Outcome(seconds, read_ratios(ratios, bench.more + bench.less))
        except UserError as error:
            return Outcome(seconds, why=f"FAILED: {one_line(error)}", failed=True)


def read_figures(path: Path) -> dict[str, Any]:
    """Read the stored figures by bench; none if there is no such file.

    :raises UserError: if it holds something else.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        for entry in stored.values():
            float(sum(entry["ratios"].values()))
            str.join("", [entry[key] for key in ("command", "date", "revision", "machine")])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not stored figures: {type(error).__name__}: {error}; "
                        "python -m bench.short --store writes them") from error
    return stored


def here() -> str:
    """A description of this machine, without its name."""
    known = machine()
    return ", ".join(filter(None, (known["processor"], f"{known['processors']} processors", known["memory"])))


def store(path: Path, stored: Mapping[str, Any], outcomes: Mapping[Bench, Outcome]) -> None:
    """Replace the stored figures of the benches that ran; those of the others do not change."""
    about = {"date": date.today().isoformat(), "revision": revision(ROOT), "machine": here()}
    new = {bench.name: {"command": bench.command, **about, "seconds": round(outcome.seconds, 1),
                        "ratios": {name: float(f"{ratio:.4g}") for name, ratio in outcome.ratios.items()}}
           for bench, outcome in outcomes.items() if outcome.ratios}
    write_whole(path, json.dumps({**stored, **new}, indent=1) + "\n")


def verdict(now: float, before: float, more_is_better: bool) -> str:
    """``worse`` if a ratio is worse by more than the tolerance; else empty."""
    return "worse" if (now < before * (1 - TOLERANCE) if more_is_better else now > before * (1 + TOLERANCE)) else ""


def lines_of(bench: Bench, outcome: Outcome, stored: Mapping[str, Any]) -> list[str]:
    """The lines of a bench in the table. Figures that another short form has stored are ignored."""
    entry = stored.get(bench.name, {})
    figures = entry["ratios"] if entry.get("command") == bench.command else {}
    lines = [f"{bench.name}: {bench.meaning} ({outcome.seconds:.0f} s)"]
    if outcome.why:
        return [*lines, f"  {outcome.why}"]
    for name, now in outcome.ratios.items():
        more = name in bench.more
        line = f"  {name:{WIDTH - 2}}{'more' if more else 'less':>6}{now:10.3f}"
        if name in figures:
            before = figures[name]
            line += f"{before:10.3f}{now / before:12.2f}  {verdict(now, before, more)}"
        else:
            line += f"{'-':>10}{'-':>12}"
        lines.append(line.rstrip())
    return lines


def origins(stored: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The times, revisions and machines of the stored figures of these benches, a line for each that differs."""
    found: dict[str, list[str]] = {}
    for name in names:
        if name in stored:
            entry = stored[name]
            commit, changed = entry["revision"][:12] or "unknown", entry["revision"][40:]
            text = f"stored {entry['date']}, revision {commit}{changed}, {entry['machine']}"
            found.setdefault(text, []).append(name)
    return [text if len(found) == 1 else f"{text}: {', '.join(benches)}" for text, benches in found.items()]


@command
def main(arguments: Sequence[str] | None = None, benches: Sequence[Bench] = BENCHES, figures: Path = FIGURES) -> int:
    names = [bench.name for bench in benches]
    parser = Parser(prog="python -m bench.short", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="BENCH", help=", ".join(names))
    parser.add_argument("--limit", type=float, default=300, metavar="SECONDS", help="for each; then it has failed")
    parser.add_argument("--store", action="store_true", help=f"write the figures of those that ran to {figures.name}")
    options = parser.parse_args(arguments)
    stored, began = read_figures(figures), time.monotonic()
    outcomes = {}
    for bench in benches:
        if bench.name in options.only:
            print(f"{bench.command} ...", file=sys.stderr, flush=True)
            outcomes[bench] = run(bench, options.limit)
    print(f"{'ratio':{WIDTH}}{'better':>6}{'now':>10}{'stored':>10}{'now/stored':>12}")
    for bench, outcome in outcomes.items():
        print("\n".join(lines_of(bench, outcome, stored)))
    print(f"\nnow {date.today().isoformat()}, {here()}, load {os.getloadavg()[0]:.1f}; "
          f"{time.monotonic() - began:.0f} s in all; worse: by more than {TOLERANCE:.0%}")
    print("\n".join(origins(stored, options.only)) or "no stored figures: --store writes them")
    if options.store:
        store(figures, stored, outcomes)
    return int(any(outcome.failed for outcome in outcomes.values()))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # stops the bench, too
    sys.exit(main())
