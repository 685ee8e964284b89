# SPDX-License-Identifier: Apache-2.0
"""Runs of the demo set by the command: training with verification in the loop; the same bits after a resume."""
from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from bench.gpu.report import Report, Setting
from recognition.training.states.folder import saved_states

ROOT = Path(__file__).resolve().parents[2]


def run_of_the_demo(setting: Setting, report: Report) -> None:
    """On a GPU the loss must fall, and verification must reach 80 %; ten small steps on a CPU must end, no more."""
    steps = 600 if setting.gpu else 10
    said = _train(setting, report, "demo", "models", "--lr", "0.1", "--lr-steps", f"{2 * steps // 3}", "--max-steps",
                  str(steps), "--verbose", str(steps // 2), "--frequent", str(max(1, steps // 20)))
    if said is None:
        return
    losses = [float(loss) for loss in re.findall(r"lossvalue=([0-9.]+)", said)]
    falls = losses[-1] < losses[0] if setting.gpu else len(losses) > 1
    report.true("the loss falls", falls, f"{losses[:1]} to {losses[-1:]}")
    rates = [float(rate) for rate in re.findall(r"Accuracy-Flip: ([0-9.]+)", said)]
    report.measured("verification error", 100 * (1 - max(rates, default=0)), "%", 20 if setting.gpu else 100)


def resumed(setting: Setting, report: Report) -> None:
    """With --deterministic a run that stops half-way and goes on ends with the bits of one that does not stop; on a GPU
    also what the flag costs."""
    network, steps = ("r50", 40) if setting.gpu else ("demo", 4)
    numbers = ["--fp16-scale", "1024"] * setting.gpu
    flags = ["--verbose", "1000", "--frequent", str(steps // 4), "--lr", "0.01", *numbers, "--deterministic"]
    runs = (("whole", steps, ()), ("halves", steps // 2, ()), ("halves", steps, ("--resume",)))
    said = [_train(setting, report, network, folder, *flags, *more, "--max-steps", str(last))
            for folder, last, more in runs]
    if None in said:
        return
    whole, halves = (_last_state(setting.folder / folder) for folder in ("whole", "halves"))
    differ = sorted(name for name in whole.keys() | halves.keys()
                    if name not in whole or name not in halves or whole[name].tobytes() != halves[name].tobytes())
    report.true("the same bits as without the stop", not differ, f"{len(whole)} arrays, of which {len(differ)} differ"
                + (f", {differ[0]} first" if differ else ""))
    if setting.gpu:
        plain = _train(setting, report, network, "plain", *flags[:-1], "--max-steps", str(steps))
        for way, text in (("without", plain), ("with", said[0])):
            rate = float((re.findall(r"Speed: ([0-9.]+)", text or "") or ["nan"])[-1])
            report.measured(f"{network}: {way} --deterministic", rate, "images/s")


def _last_state(models: Path) -> dict[str, np.ndarray]:
    """All arrays of the last state of the only run below a folder, by file and name."""
    (run,) = models.iterdir()
    found: dict[str, np.ndarray] = {}
    for path in saved_states(run / "state")[-1].glob("*.np[yz]"):
        loaded = np.load(path)
        found.update({path.name: loaded} if path.suffix == ".npy" else
                     {f"{path.name} {name}": loaded[name] for name in loaded.files})
    return found


def _train(setting: Setting, report: Report, network: str, folder: str, *flags: str) -> str | None:
    """What a run of the demo set says, which is made before the first; None if one of the two fails."""
    data, config = setting.folder / "demo", setting.folder / "config.py"
    if not config.exists():
        small = ["--identities", "20", "--held-out", "10", "--images", "4", "--pairs-per-fold", "6"]
        command = [sys.executable, "-m", "datasets.demo", "--output", str(data), *([] if setting.gpu else small)]
        if _command(report, command, 120) is None:
            return None
        config.write_text((ROOT / "sample_config.py").read_text(encoding="utf-8")
                          + f"\ndataset.demo.dataset_path = {str(data)!r}\n", encoding="utf-8")
    device = f"gpu:{setting.device.index or 0}" if setting.gpu else "cpu"
    return _command(report, [
        sys.executable, "-u", "train_parall.py", "--engine", "torch", "--network", network, "--loss", "arcface",
        "--dataset", "demo", "--config", str(config), "--models-root", str(setting.folder / folder),
        "--devices", device, "--per-batch-size", "64" if setting.gpu else "8", *flags], 200 if setting.gpu else 600)


def _command(report: Report, command: list[str], limit: float) -> str | None:
    """What a command says; None if it fails, which is reported with its last lines."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        report.true(command[2], False, f"not done after {limit:g} s")
        return None
    said = done.stdout + done.stderr
    for line in said.splitlines()[-12:]:
        report.say(f"      | {line}")
    report.true(" ".join(command[1:3]), done.returncode == 0, f"status {done.returncode}")
    return said if done.returncode == 0 else None
