# SPDX-License-Identifier: Apache-2.0
"""train_parall.py itself: its speed beside the bench's own step, what it waits for data, and a run of one rank of NCCL.

Each run's speed is the median of its last speed lines, which lie behind the profiled steps.
"""
from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.gpu.demo import last_state, numbers_after, same_bits, train, train_on
from bench.gpu.report import Report, Setting, judged
from bench.gpu.whole import CASES

LAST = 3  # speed lines
IDENTITIES = 1_000_000
NEEDED = 30.0  # seconds that a further run is not begun without


class Sizes(NamedTuple):
    """How large the runs are."""

    network: str
    images: int  # a step
    identities: int  # of the data set that is made up
    profiled: int  # steps
    lines: int  # steps between speed lines
    steps: int
    decode_threads: tuple[int, ...]


LARGE = Sizes("r50", 128, IDENTITIES, 10, 10, 70, (8, 1, 2))
SMALL = Sizes("demo", 8, 300, 2, 2, 12, (1,))


def by_the_command(setting: Setting, report: Report) -> None:
    """Measure a run of a million identities whose images are made up, and runs of the demo set, whose images are JPEG
    files, with several numbers of threads that decode."""
    sizes = LARGE if setting.gpu else SMALL
    numbers = ["--fp16-scale", "1024"] if setting.gpu else []
    flags = ["--per-batch-size", str(sizes.images), *numbers, "--clip-norm", "5", "--ckpt", "0", "--lr", "0.001",
             "--verbose", "100000", "--frequent", str(sizes.lines), "--max-steps", str(sizes.steps), "--profile",
             str(sizes.profiled)]
    title = f"{sizes.network}, {sizes.images} images, synthetic:{sizes.identities}"
    said = train_on(setting, report, f"synthetic:{sizes.identities}", sizes.network, "made-up", *flags)
    if said:
        _tell(report, title, said, setting.folder / "made-up", sizes, report.value("steps", f"{CASES[0]}: ours"))
    for threads in sizes.decode_threads:
        if report.left < NEEDED:
            report.say(f"demo set, {threads} threads that decode: left out, {report.left:.0f} s are left")
            continue
        folder = f"decoded by {threads}"
        said = train(setting, report, sizes.network, folder, *flags, "--decode-threads", str(threads))
        if said:
            _tell(report, f"{sizes.network}, {sizes.images} images, demo set, {threads} threads that decode", said,
                  setting.folder / folder, sizes, None)


def _tell(report: Report, title: str, said: str, folder: Path, sizes: Sizes, step: float | None) -> None:
    """Report a run's speed and its wait for data, and add a row to the table.

    :param step: images a second of the bench's own step, if it was measured.
    """
    rates = numbers_after("Speed: ", said)[-LAST:]
    rate = float(np.median(rates)) if rates else np.nan
    tables = sorted(folder.rglob("profile.txt"))
    waited = phases_of(tables[0].read_text(encoding="utf-8")).get("data") if tables else None
    report.true(f"{title}: speed lines and a profile", bool(rates) and waited is not None)
    if not rates or waited is None:
        return
    spent = 1e3 * sizes.images / rate
    report.measured(f"{title}: speed", rate, f"images/s, {spent:.1f} ms a step")
    report.measured(f"{title}: wait for data", waited, f"ms, {100 * waited / spent:.2f} % of a step")
    report.row("The command", {
        "run": title, "images/s": f"{rate:.0f}", "ms a step": f"{spent:.1f}", "wait for data, ms": f"{waited:.3f}",
        "of a step": judged(100 * waited / spent, most=1.0) + " %",
        **({"of the bench's own step": f"{rate / step:.2f}"} if step else {})})


def phases_of(table: str) -> dict[str, float]:
    """Median milliseconds of the loop's phases from the text of ``profile.txt``."""
    return {name.strip(): float(spent) for name, spent in re.findall(
        r"^(\S[^\n]*?) +([0-9.]+) +[0-9.]+%$", table.partition("\n\n")[0], re.MULTILINE)}


def one_rank(setting: Setting, report: Report) -> None:
    """A run of one rank that a launcher started exchanges by NCCL (on CPUs by Gloo) and has the bits of one without."""
    network, steps = ("r50", "16") if setting.gpu else ("demo", "4")
    numbers = ["--fp16-scale", "1024"] if setting.gpu else []
    flags = [*numbers, "--deterministic", "--lr", "0.01", "--verbose", "1000", "--max-steps", steps]
    launched = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    said = [train(setting, report, network, folder, *flags, environ=environ)
            for folder, environ in (("alone", {}), ("one rank", launched))]
    if None not in said:
        same_bits(report, "the same bits with a launcher", *(
            last_state(setting.folder / folder) for folder in ("alone", "one rank")))


def free_port() -> int:
    """A port of this host that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
