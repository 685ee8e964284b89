# SPDX-License-Identifier: Apache-2.0
"""Runs of the demo set by the command: training with verification in the loop; the same bits after a resume."""
from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bench.gpu.report import Report, Setting
from recognition.training.states.folder import saved_states

ROOT = Path(__file__).resolve().parents[2]


def run_of_the_demo(setting: Setting, report: Report) -> None:
    """On a GPU the loss must fall, and verification must reach 80 %; ten small steps on a CPU must end, no more."""
    steps = 600 if setting.gpu else 10
    said = train(setting, report, "demo", "models", "--lr", "0.1", "--lr-steps", f"{2 * steps // 3}", "--max-steps",
                  str(steps), "--verbose", str(steps // 2), "--frequent", str(max(1, steps // 20)))
    if said is None:
        return
    losses = numbers_after("lossvalue=", said)
    falls = losses[-1] < losses[0] if setting.gpu else len(losses) > 1
    report.true("the loss falls", falls, f"{losses[:1]} to {losses[-1:]}")
    rates = numbers_after("Accuracy-Flip: ", said)
    report.measured("verification error", 100 * (1 - max(rates, default=0)), "%", 20 if setting.gpu else 100)


def resumed(setting: Setting, report: Report) -> None:
    """With --deterministic a run that stops half-way and goes on ends with the bits of one that does not stop; on a GPU
    also what the flag costs."""
    network, steps = ("r50", 40) if setting.gpu else ("demo", 4)
    numbers = ["--fp16-scale", "1024"] * setting.gpu
    flags = ["--verbose", "1000", "--frequent", str(steps // 4), "--lr", "0.01", *numbers, "--deterministic"]
    runs = (("whole", steps, ()), ("halves", steps // 2, ()), ("halves", steps, ("--resume",)))
    said = [train(setting, report, network, folder, *flags, *more, "--max-steps", str(last))
            for folder, last, more in runs]
    if None in said:
        return
    whole, halves = (last_state(setting.folder / folder) for folder in ("whole", "halves"))
    same_bits(report, "the same bits as without the stop", whole, halves)
    if setting.gpu:
        plain = train(setting, report, network, "plain", *flags[:-1], "--max-steps", str(steps))
        for way, text in (("without", plain), ("with", said[0])):
            rate = (numbers_after("Speed: ", text or "") or [np.nan])[-1]
            report.measured(f"{network}: {way} --deterministic", rate, "images/s")


def last_state(models: Path) -> dict[str, np.ndarray]:
    """All arrays of the last state of the only run below a folder, by file and name."""
    (run,) = models.iterdir()
    found: dict[str, np.ndarray] = {}
    for path in saved_states(run / "state")[-1].glob("*.np[yz]"):
        loaded = np.load(path)
        found.update({path.name: loaded} if path.suffix == ".npy" else
                     {f"{path.name} {name}": loaded[name] for name in loaded.files})
    return found


def same_bits(report: Report, name: str, wanted: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> None:
    """Check that two states have the same arrays, bit for bit."""
    differ = sorted(key for key in wanted.keys() | found.keys()
                    if key not in wanted or key not in found or wanted[key].tobytes() != found[key].tobytes())
    report.true(name, not differ, f"{len(wanted)} arrays, of which {len(differ)} differ"
                + (f", {differ[0]} first" if differ else ""))


def numbers_after(word: str, said: str) -> list[float]:
    """The numbers that stand behind a word in a text."""
    return [float(number) for number in re.findall(f"{re.escape(word)}([0-9.]+)", said)]


def train(setting: Setting, report: Report, network: str, folder: str, *flags: str, environ: Mapping[str, str] = {}
          ) -> str | None:
    """The output of a run on the demo set, which is made before the first; None if one of the two fails.

    :param environ: variables beside those of this process.
    """
    data, config = setting.folder / "demo", setting.folder / "config.py"
    if not config.exists():
        small = ["--identities", "20", "--held-out", "10", "--images", "4", "--pairs-per-fold", "6"]
        command = [sys.executable, "-m", "datasets.demo", "--output", str(data), *([] if setting.gpu else small)]
        if run_command(report, command, 120) is None:
            return None
        config.write_text((ROOT / "sample_config.py").read_text(encoding="utf-8")
                          + f"\ndataset.demo.dataset_path = {str(data)!r}\n", encoding="utf-8")
    return train_on(setting, report, "demo", network, folder, "--config", str(config), *flags, environ=environ)


def train_on(setting: Setting, report: Report, dataset: str, network: str, folder: str, *flags: str,
             environ: Mapping[str, str] = {}) -> str | None:
    """The output of a run of train_parall.py with 64 images a step, 8 on CPUs; None if it fails."""
    device = f"gpu:{setting.device.index or 0}" if setting.gpu else "cpu"
    return run_command(report, [
        sys.executable, "-u", "train_parall.py", "--engine", "torch", "--network", network, "--loss", "arcface",
        "--dataset", dataset, "--models-root", str(setting.folder / folder), "--devices", device, "--per-batch-size",
        "64" if setting.gpu else "8", *flags], 200 if setting.gpu else 600, environ)


def run_command(report: Report, command: list[str], limit: float, environ: Mapping[str, str] = {}) -> str | None:
    """The output of a command; None if it fails, which is reported with its last lines."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False,
                              env={**os.environ, **environ})
    except subprocess.TimeoutExpired:
        report.true(command[2], False, f"not done after {limit:g} s")
        return None
    said = done.stdout + done.stderr
    for line in said.splitlines()[-12:]:
        report.say(f"      | {line}")
    report.true(" ".join(command[1:3]), done.returncode == 0, f"status {done.returncode}")
    return said if done.returncode == 0 else None
