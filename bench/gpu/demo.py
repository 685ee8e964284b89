# SPDX-License-Identifier: Apache-2.0
"""A run of the demo set: training by the command, with verification in the loop."""
from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from bench.gpu.report import Report, Setting

ROOT = Path(__file__).resolve().parents[2]


def run_of_the_demo(setting: Setting, report: Report) -> None:
    """On a GPU the loss must fall, and verification must reach 80 %; ten small steps on a CPU must end, no more."""
    data, models = setting.folder / "demo", setting.folder / "models"
    small = [] if setting.gpu else ["--identities", "20", "--held-out", "10", "--images", "4", "--pairs-per-fold", "6"]
    steps = 600 if setting.gpu else 10
    said = _command(report, [sys.executable, "-m", "datasets.demo", "--output", str(data), *small], 120)
    if said is None:
        return
    config = setting.folder / "config.py"
    config.write_text((ROOT / "sample_config.py").read_text(encoding="utf-8")
                      + f"\ndataset.demo.dataset_path = {str(data)!r}\n", encoding="utf-8")
    device = f"gpu:{setting.device.index or 0}" if setting.gpu else "cpu"
    command = [sys.executable, "-u", "train_parall.py", "--engine", "torch", "--network", "demo", "--loss", "arcface",
               "--dataset", "demo", "--config", str(config), "--models-root", str(models), "--devices", device,
               "--per-batch-size", "64" if setting.gpu else "8", "--lr", "0.1", "--lr-steps", f"{2 * steps // 3}",
               "--max-steps", str(steps), "--verbose", str(steps // 2), "--frequent", str(max(1, steps // 20))]
    said = _command(report, command, 200)
    if said is None:
        return
    losses = [float(loss) for loss in re.findall(r"lossvalue=([0-9.]+)", said)]
    falls = losses[-1] < losses[0] if setting.gpu else len(losses) > 1
    report.true("the loss falls", falls, f"{losses[:1]} to {losses[-1:]}")
    rates = [float(rate) for rate in re.findall(r"Accuracy-Flip: ([0-9.]+)", said)]
    report.measured("verification error", 100 * (1 - max(rates, default=0)), "%", 20 if setting.gpu else 100)


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
