# SPDX-License-Identifier: Apache-2.0
"""Runs with numbers that are not finite, in features, gradients and class centres.

    python -m faults.numbers --times 3        # two minutes
    python -m faults.numbers --record         # and the rows in docs/records/reliability.md

Each run trains on a set with one black image, which the network cannot bear: see ``faults/small_run.py``. Where the
image lies, and so the step in which it comes, is another each time. With ``skip`` the states before and after that step
are compared bit by bit.
"""
from __future__ import annotations

import contextlib
import io
import re
import sys
import tempfile
from pathlib import Path

import numpy as np

from faults import small_run
from faults.reliability import Row, harness_parser, report
from recognition.config.cli import parse_args
from recognition.errors import UserError
from recognition.training.run import train
from recognition.training.states.folder import saved_states
from recognition.training.states.state import SavedState

STEPS = 12  # an epoch is 24 batches of four


def run(folder: Path, network: str, *flags: str) -> tuple[int, str, Path]:
    """Run; returns the status, the output, and the folder of checkpoints."""
    models = Path(tempfile.mkdtemp(dir=folder))
    argv = small_run.command(folder, models, "--network", network, "--max-steps", str(STEPS * 2), "--state-every", "1",
                             "--val-targets", "none", *flags)[2:]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        config = parse_args("train_parall", argv)
        try:
            status = train(config)
        except UserError as error:
            status, _ = error.status, said.write(f"error: {error}\n")
    return status, said.getvalue(), Path(config.output_dir)


def stops(folder: Path, network: str, record: int, *flags: str) -> bool:
    """The run stops in the step of the image, and says and keeps what it should."""
    status, said, models = run(folder, network, "--on-nan", "stop", *flags)
    found = re.search(r"^error: step (\d+): .* learning rate 0.01; norms: .*; nothing of this step stays", said, re.M)
    if status != 2 or found is None:
        return False
    step = int(found[1])
    kept = np.load(models / f"nan-step-{step}.npz")
    last = [path.name for path in saved_states(models / "state")][-1:]
    return record in kept["records"] and last == ([f"step-{step - 1:09d}"] if step > 1 else [])


def skips(folder: Path, network: str, record: int, *flags: str) -> bool:
    """The run goes on to its end, and the step of the image has moved nothing."""
    status, said, models = run(folder, network, "--on-nan", "skip", *flags)
    found = re.search(r"^step (\d+): .*; left out \(--on-nan skip\)$", said, re.M)
    if status != 0 or found is None:
        return False
    step = int(found[1])
    kept = np.load(models / f"nan-step-{step}.npz")
    _, _, again = run(folder, network, "--on-nan", "skip", *flags, "--max-steps", str(step))
    states = [arrays(again / "state" / f"step-{number:09d}") for number in (step - 1, step)] if step > 1 else []
    same = not states or (states[0].keys() == states[1].keys() and all(
        states[0][name].tobytes() == states[1][name].tobytes() for name in states[0]))
    finite = all(np.isfinite(array).all() for array in arrays(saved_states(models / "state")[-1]).values())
    return record in kept["records"] and same and finite


def arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays that a step may change."""
    saved = SavedState(path)
    backbone = saved.backbone()
    groups = {"parameter": backbone.parameters, "momentum": backbone.momentum, "second": backbone.second_moment or {},
              **{f"statistics {i}": part for i, part in enumerate(backbone.auxiliary)},
              "W": saved.rows(0, small_run.IDENTITIES, 1)._asdict()}
    return {f"{group} {name}": array for group, part in groups.items() for name, array in part.items()}


def overflow_ends(folder: Path, seed: int, *flags: str) -> bool:
    """The first step moves nothing and the second overflows: with states the run ends in it, and that of the first step
    stays the last; without, it ends in a step behind it, says and keeps what it should."""
    flags = ("--seed", str(seed), "--warmup", "4", "--keep-last", "99", *flags)
    status, said, models = run(folder, "small", *flags)
    found = re.search(r"^error: step 2: the update at learning rate .* overflows; norms: parameters .*, class centres "
                      r".*; nothing of it is saved; --resume goes on from \S+/step-000000001\. ", said, re.M)
    states = saved_states(models / "state")
    if status != 2 or found is None or [state.name for state in states] != ["step-000000001"]:
        return False
    status, said, models = run(folder, "small", *flags, "--state-every", "0")
    later = re.search(r"^error: step (\d+): the loss is .* learning rate .*; norms: features .*, parameters .*, class "
                      r"centres .* records .*; the parameters or class centres were lost before it, and cannot be "
                      r"mended; there is no training state to go back to", said, re.M)
    if status != 2 or later is None or not 3 <= int(later[1]) <= 4:
        return False
    kept = np.load(models / f"nan-step-{later[1]}.npz")
    return len(set(kept["records"].tolist())) == 4 and all(np.isfinite(a).all() for a in arrays(states[0]).values())


def main() -> int:
    parser = harness_parser("numbers", __doc__)
    parser.add_argument("--times", type=int, default=10, help="that each fault is tried")
    options = parser.parse_args()
    random, rows = np.random.RandomState(0), []
    stopping = "the run stops in that step, says rate, norms and records, keeps them, and no state holds anything of it"
    going_on = "the run goes on to its end, and not a bit of parameters, moments, statistics or W moved in that step"
    ending = "the run ends in a step that finds it, says rate, norms and records, and no state holds anything of it"
    cases = [(what, policy, network, flags) for what, network in (("infinite features", "forward"),
                                                                  ("gradients of 0 / 0", "backward"))
             for policy, flags in (("stop", ()), ("skip", ()), ("skip", ("--optimizer", "adamw")),
                                   ("skip", ("--sample-ratio", "0.5")))]
    with tempfile.TemporaryDirectory() as name:
        for what, policy, network, flags in cases:
            kept = 0
            for _ in range(options.times):
                black = int(random.randint(small_run.IDENTITIES * small_run.IMAGES))
                folder = Path(tempfile.mkdtemp(dir=name)) / "set"
                small_run.make(folder, black)
                tried = (stops if policy == "stop" else skips)(folder, network, black + 1, *flags)
                kept += tried
            rows.append(Row(" ".join([what, "with --on-nan", policy, *flags]), options.times,
                            stopping if policy == "stop" else going_on, kept, "as promised" if kept else "not so"))
        folder = small_run.make(Path(name) / "overflow")
        for what, rate in (("class centres", ("--lr", "1e30")), ("parameters", ("--lr-factor", "*=1e37"))):
            for policy, flags in (("stop", ()), ("skip", ()), ("skip", ("--optimizer", "adamw")),
                                  ("skip", ("--sample-ratio", "0.5"))):
                kept = sum(overflow_ends(folder, seed, "--on-nan", policy, *rate, *flags)
                           for seed in range(options.times))
                rows.append(Row(" ".join([f"{what} that overflow in their update, with --on-nan", policy, *flags]),
                                options.times, ending, kept, "as promised" if kept else "not so"))
    return report("numbers", "python -m faults.numbers --record", rows, options.record)


if __name__ == "__main__":
    sys.exit(main())
