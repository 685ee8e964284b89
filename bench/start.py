# SPDX-License-Identifier: Apache-2.0
"""Measures the time from the command to the end of the first step, by parts, in a clone's first run and in later ones.

    python -m bench.start [--repeats 3] [-- FLAGS OF train_parall.py]

By default the flags are --network y1 --dataset demo --loss arcface --devices cpu --per-batch-size 32, and the set must
be there: python -m datasets.demo. The first run finds no compiled loops (an empty NUMBA_CACHE_DIR), later ones do. Each
column is the fastest run. `--help` is the time of the command with that flag.
"""
from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

from bench.ratios import bench_parser, write_ratios

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["--network", "y1", "--dataset", "demo", "--loss", "arcface", "--devices", "cpu", "--per-batch-size", "32"]
ONE_STEP = ["--max-steps", "1", "--ckpt", "0"]
BUILT = ("make_dataset", "build_network", "make_backbone", "make_verifier", "make_head", "make_loader")
CHILD = "--child"


def child(begun: float, argv: Sequence[str]) -> None:
    """Run train_parall.py to its first step, with a clock around each part, and print the seconds as JSON.

    :param begun: ``time.time()`` at the start of the process.
    """
    seconds = {"interpreter": time.time() - begun}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
        return run

    def configure() -> Any:
        from recognition.config.cli import parse_args
        from recognition.config.devices import share_processors

        config = parse_args("train_parall", argv)
        share_processors(config.devices, os.environ)
        return config

    def imported() -> Any:
        from recognition.training import run

        return run

    config = timed("flags, presets", configure)()
    timed("import of MXNet", __import__)("recognition.engines.mxnet.imports")
    run = timed("import of the rest", imported)()
    for name in BUILT:
        setattr(run, name, timed(name, getattr(run, name)))

    class Phases(run.NoTimeline):  # type: ignore[name-defined, misc]
        @contextlib.contextmanager
        def phase(self, name: str) -> Any:
            start = time.perf_counter()
            yield
            seconds[f"step: {name}"] = time.perf_counter() - start

        def end_step(self) -> str:
            seconds["all"] = time.time() - begun
            return ""

    run.NoTimeline = Phases
    with contextlib.redirect_stdout(sys.stderr):
        run.train(config)
    print(json.dumps(seconds))


def one_run(flags: Sequence[str], environ: Mapping[str, str]) -> dict[str, float]:
    """The seconds of each part in a new process; "all" is the time to the end of the first step."""
    with tempfile.TemporaryDirectory() as models:
        command = [sys.executable, "-m", "bench.start", CHILD, repr(time.time()), *flags, *ONE_STEP,
                   "--models-root", models]
        ended = subprocess.run(command, cwd=ROOT, env=dict(environ), capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(ended.stderr)
    return json.loads(ended.stdout.splitlines()[-1])


def help_seconds() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "train_parall.py", "--help"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    if sys.argv[1:2] == [CHILD]:
        child(float(sys.argv[2]), sys.argv[3:])
        return
    parser = bench_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="after --: flags of train_parall.py")
    args = parser.parse_args()
    first, later = [], []
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as cache:
            environ = {**os.environ, "NUMBA_CACHE_DIR": cache}
            first.append(one_run(args.flags or FLAGS, environ))
            later.append(one_run(args.flags or FLAGS, environ))
    columns = [min(runs, key=lambda run: run["all"]) for runs in (first, later)]
    print(f"{'seconds':28s}{'first run':>10s}{'later':>10s}")
    for name in dict.fromkeys([*columns[1], *columns[0]]):
        if name != "all":
            print(f"{name:28s}" + "".join(f"{column.get(name, 0.0):10.3f}" for column in columns))
    print(f"{'to the end of the first step':28s}" + "".join(f"{column['all']:10.3f}" for column in columns))
    shown = min(help_seconds() for _ in range(args.repeats))
    print(f"{'--help':28s}{'':10s}{shown:10.3f}")
    bound = columns[1]["import of MXNet"]
    write_ratios(args.json, {"first run": columns[0]["all"] / bound, "later run": columns[1]["all"] / bound,
                             "--help": shown / bound})


if __name__ == "__main__":
    main()
