# SPDX-License-Identifier: Apache-2.0
"""Fuzzing: libFuzzer, through Atheris, feeds each parser of untrusted files with millions of broken inputs.

    python -m faults.fuzz [--seconds 60] [--only records,symbols] [--keep FOLDER] [--record]      (make fuzz)

Atheris, of the extra ``fuzz``, sees which lines an input reaches, and derives new inputs from those that reach new
lines. It is a fault if an input raises anything but the parser's own refusal, takes longer than SLOW_SECONDS or more
than MEMORY_MB. Such an input is kept in FOLDER; ``--input FILE --only NAME`` runs it again. tests/faults/test_fuzz.py
is the short form, with Hypothesis.
"""
from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from faults.reliability import Row, report
from recognition.config.command_line import Parser
from recognition.errors import UserError, command

SLOW_SECONDS, MEMORY_MB = 10, 2048  # that one input may take
LONGEST_BYTES = 1 << 16  # of an input
PROMISE = (f"its own refusal, or a result; within {SLOW_SECONDS} s and {MEMORY_MB / 1024:g} GB; no other exception, "
           "no crash, nothing run")
WATCHED = ["common", "recognition"]


def _fuzz(name: str, seconds: int, corpus: Path, found: Path) -> None:
    """Fuzz one parser in this process; libFuzzer ends the process."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=WATCHED):
        from faults.fuzz_targets import TARGETS
    logging.disable(logging.CRITICAL)
    target = TARGETS[name]
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)

    def one(data: bytes) -> None:
        with contextlib.suppress(target.refusal):
            target.run(data)

    atheris.Setup([sys.argv[0], str(corpus), f"-max_total_time={seconds}", f"-max_len={LONGEST_BYTES}",
                   f"-timeout={SLOW_SECONDS}", f"-rss_limit_mb={MEMORY_MB}", f"-artifact_prefix={found}/",
                   "-print_final_stats=1", "-verbosity=0", "-seed=1"], one)
    atheris.Fuzz()


def fuzz(name: str, seconds: int, keep: Path) -> Row:
    """Fuzz one parser in a process of its own, which writes its finds to ``keep / name``."""
    found = keep / name.replace(" ", "-")
    shutil.rmtree(found, ignore_errors=True)
    found.mkdir(parents=True)
    with _folders() as (corpus, scratch):
        arguments = [sys.executable, "-m", "faults.fuzz", "--only", name, "--seconds", str(seconds),
                     "--keep", str(found), "--corpus", str(corpus)]
        done = subprocess.run(arguments, capture_output=True, text=True, errors="replace",
                              env={**os.environ, "TMPDIR": str(scratch)})
    (found / "log.txt").write_text(done.stdout + done.stderr)
    faults = [path for path in found.iterdir() if path.name != "log.txt"]
    stats = {key: int(value) for key, value in re.findall(r"stat::(\w+):\s+(\d+)", done.stdout + done.stderr)}
    tried = stats.get("number_of_executed_units", 0)
    if not faults:
        (found / "log.txt").unlink()
        found.rmdir()
    said = f"{len(faults)} faults: {_cause(done.stdout + done.stderr)}" if faults else (
        f"the slowest took {stats.get('slowest_unit_time_sec', 0)} s, the process at most "
        f"{stats.get('peak_rss_mb', 0)} MB" if tried
        else "it did not start: " + done.stderr.strip()[-200:].replace("\n", " "))
    return Row(name, max(tried, 1), PROMISE, max(tried, 1) - (len(faults) or int(not tried)), said)


def _cause(log: str) -> str:
    """The name of the exception, or libFuzzer's name of the fault."""
    found = re.findall(r"^(?:\w+\.)*\w+(?:Error|Exception|Warning)\b.*$|^.*ERROR: .*$", log, re.M)
    return " ".join(found[0].split())[:200] if found else "see its log"


@contextlib.contextmanager
def _folders() -> Iterator[tuple[Path, Path]]:
    """Yield folders for the corpus and for the parsers' files, in memory if the machine has such a place."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        corpus, scratch = Path(folder, "corpus"), Path(folder, "scratch")
        corpus.mkdir()
        scratch.mkdir()
        yield corpus, scratch


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m faults.fuzz", description=__doc__)
    add = parser.add_argument
    add("--seconds", type=int, default=60, help="for each parser (default 60)")
    add("--only", help="names of parsers, with commas between them (default: all)")
    add("--keep", type=Path, default=Path("fuzz"), help="folder for inputs that are faults (default fuzz)")
    add("--input", type=Path, help="give the one parser of --only this file, and nothing else")
    add("--record", action="store_true", help="write the table of docs/records/reliability.md")
    add("--corpus", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    if args.corpus:
        _fuzz(args.only, args.seconds, args.corpus, args.keep)
    if importlib.util.find_spec("atheris") is None:
        raise UserError("atheris: not installed, expected the extra fuzz: pip install -e '.[fuzz]'")
    from faults.fuzz_targets import TARGETS

    names = args.only.split(",") if args.only else list(TARGETS)
    for name in names:
        if name not in TARGETS:
            raise UserError(f"--only: found {name!r}, expected names of {', '.join(TARGETS)}")
    if args.input:
        result: Any = TARGETS[names[0]].run(args.input.read_bytes())
        print(result)
        return 0
    rows = []
    for name in names:
        rows.append(fuzz(name, args.seconds, args.keep))
        print(f"{name}: {rows[-1].tried:,} inputs; {rows[-1].happened}", flush=True)
    return report("fuzzing", f"python -m faults.fuzz --seconds {args.seconds} --record", rows, args.record)


if __name__ == "__main__":
    raise SystemExit(main())
