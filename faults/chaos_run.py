# SPDX-License-Identifier: Apache-2.0
"""The small run of the harness of faults, with real entry points, records and processes."""
from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from common import report
from common.sets.training_set import write_training_set
from faults.chaos_life import Forked, Life
from recognition.data.verification_set import save_bin
from recognition.engines.choose import choose_engine
from recognition.training.states.folder import DAMAGED, saved_states, step_of
from recognition.training.states.state import SavedState
from recognition.training.watch import run_record, text_log

ROOT = Path(__file__).resolve().parents[1]
SIDE, IDENTITIES, IMAGES, PAIRS = 32, 11, 6, 20  # 11 classes: two processes have five and six
# Files with time and manner of starts: they differ in all runs.
OF_STARTS = ("launch", run_record.FILE, report.FILE, text_log.FILE)

NETWORK = '''
import mxnet as mx

def get_symbol(emb_size):
    """Batch norm, whose statistics a state has to hold, and dropout, whose masks are a function of the step."""
    x = (mx.sym.Variable("data") - 127.5) * 0.0078125
    x = mx.sym.Convolution(x, num_filter=8, kernel=(3, 3), stride=(2, 2), name="conv0")
    x = mx.sym.LeakyReLU(mx.sym.BatchNorm(x, name="bn0"), act_type="prelu", name="relu0")
    x = mx.sym.Dropout(mx.sym.Convolution(x, num_filter=8, kernel=(3, 3), stride=(3, 3), name="conv1"), p=0.2)
    return mx.sym.FullyConnected(x, num_hidden=emb_size, name="fc1")
'''
CONFIG = """
exec(compile(open({sample!r}).read(), {sample!r}, "exec"))
config.ckpt_embedding = False
network.small = edict(net_name="small", emb_size=8)
dataset.small = edict(dataset_path={data!r}, num_classes=11, image_shape=({side}, {side}, 3), val_targets=["small"])
default.network, default.dataset = "small", "small"
"""


class Workshop:
    """A folder with a training set and a configuration, in which runs are started and compared."""

    def __init__(self, folder: Path, steps: int, processes: int = 1, engine: str = "mxnet") -> None:
        """:param steps: of a run; ``processes``: under ``recognition.launch`` if there are several."""
        self.folder, self.steps, self.processes, self.engine = folder, steps, processes, engine
        choose_engine(engine)  # imported before runs are forked from this process
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "small.py").write_text(NETWORK)
        (folder / "config.py").write_text(CONFIG.format(sample=str(ROOT / "sample_config.py"), data=str(folder),
                                                        side=SIDE))
        random = np.random.default_rng(0)
        bases = random.integers(0, 256, (IDENTITIES, SIDE, SIDE, 3))

        def noisy(identity: int) -> bytes:
            image = np.clip(bases[identity] + random.normal(0, 40, bases[0].shape), 0, 255).astype(np.uint8)
            return bytes(cv2.imencode(".jpg", image)[1])

        write_training_set(folder, [IMAGES] * IDENTITIES, (noisy(i // IMAGES) for i in range(IDENTITIES * IMAGES)),
                           SIDE)
        pairs = [(i % IDENTITIES, (i + i % 2) % IDENTITIES) for i in range(PAIRS)]
        save_bin(folder / "small.bin", [noisy(i) for pair in pairs for i in pair], [a == b for a, b in pairs])

    def output(self, name: str) -> Path:
        """The output folder of the run ``name``."""
        return self.folder / name / "small-arcface-small"

    def start(self, name: str, *flags: str, launch: Sequence[str] = (), environ: Mapping[str, str] | None = None,
              **options: Any) -> Life:
        """Start or resume the run ``name``. It saves a state every 3 steps; every 6 it verifies and saves a checkpoint.

        A single process without ``options`` of subprocess.Popen is forked from this one instead of a new program.
        """
        arguments = ["--config", str(self.folder / "config.py"), "--models-root", str(self.folder / name),
                     "--max-steps", str(self.steps), "--state-every", "3", "--verbose", "6", "--frequent", "2",
                     "--ckpt", "2", "--keep-ckpt", "3", "--keep-every", "50", "--lr", "0.01", "--per-batch-size",
                     str(12 // self.processes), "--decode-threads", "1", "--engine", self.engine, *flags]
        mark, said = uuid.uuid4().hex, self.folder / f"said-{name}"
        own = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "MARK": mark, **(environ or {})}
        with open(f"{said}.out", "w") as out, open(f"{said}.err", "w") as err:
            if self.processes == 1 and not options and not environ:
                return Life(Forked(arguments, own, out.fileno(), err.fileno()), said, mark)
            before = [] if self.processes == 1 else ["-m", "recognition.launch", "-np", str(self.processes), *launch,
                                                     "--", sys.executable]
            return Life(subprocess.Popen([sys.executable, *before, str(ROOT / "train_parall.py"), *arguments], cwd=ROOT,
                                         stdout=out, stderr=err, env={**os.environ, **own}, **options), said, mark)

    def run(self, name: str, *flags: str, **options: Any) -> Life:
        """Like :meth:`start`, but wait for its end."""
        life = self.start(name, *flags, **options)
        life.wait()
        return life

    def reference(self) -> Path:
        """The output of an undisturbed run."""
        folder = self.output("undisturbed")
        if not (folder / "model-0000.params").exists():
            life = self.run("undisturbed")
            if life.status:
                raise RuntimeError(f"the undisturbed run failed: {life.out}{life.err}")
        return folder

    def end(self, name: str, life: Life, before: Standing | None = None, damaged: bool = False) -> str:
        """The problem with the last life of the run ``name``, which should come to its end; empty if there is none.

        :param before: the state of the run before this life.
        :param damaged: True if states were damaged, and may have been set aside.
        """
        if status := life.wait():
            return f"status {status}: {' '.join(life.lines)[-300:]}"
        if left := life.left():
            return f"left processes {left}"
        problem = before.went_on(self.output(name), True) if before else ""
        return problem or self.difference(name, damaged)

    def difference(self, name: str, damaged: bool = False) -> str:
        """The difference of the end of the run ``name`` from that of the undisturbed one; empty if equal, bit for bit.
        """
        ours, theirs = self.output(name), self.reference()
        names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")
                        if path.is_file() and path.name not in OF_STARTS and not (damaged and DAMAGED in str(path)))
                 for folder in (ours, theirs)]
        if names[0] != names[1]:
            return f"files {sorted(set(names[0]) ^ set(names[1]))}"
        for file in names[0]:
            by_content = file.endswith(("manifest.json", "history.jsonl"))
            if not by_content and (ours / file).read_bytes() != (theirs / file).read_bytes():
                return file
        for state in saved_states(theirs / "state"):
            mine, other = SavedState(ours / "state" / state.name), SavedState(state)
            if mine.sums != other.sums or mine.problem():
                return f"{state.name}: {mine.problem() or 'other sums'}"
            if {**vars(mine.progress), "config": 0} != {**vars(other.progress), "config": 0}:
                return f"{state.name}: {mine.progress}"
        return "" if history(ours) == history(theirs) else "history.jsonl"


class Standing(NamedTuple):
    """The state of a run between two lives."""

    step: int  # of its newest state; 0 if it has none
    starts: list[Any]  # the starts in its run record

    @classmethod
    def of(cls, folder: Path) -> Standing:
        """:param folder: the output of the run."""
        step = max(map(step_of, saved_states(folder / "state")), default=0)
        file = folder / run_record.FILE
        return cls(step, json.loads(file.read_text())["starts"] if file.exists() else [])

    def went_on(self, folder: Path, ended: bool) -> str:
        """The problem with the step at which the next life began; empty if there is none, or if it did not begin.

        A run that starts anew in spite of a state ends with the same bits: comparisons of ends would not show that.
        """
        starts = Standing.of(folder).starts
        if starts == self.starts:
            return f"ended, and {run_record.FILE} has no start of it" if ended else ""
        step = starts[-1]["step"] if starts else 0
        return f"went on from step {step}, but there was a state of step {self.step}" if step < self.step else ""


def history(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, without values that depend on the clock."""
    found = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "images_per_second"} for record in found]


def unfinished(folder: Path) -> list[str]:
    """The names of unfinished files below the output of a run."""
    return [str(path.relative_to(folder)) for pattern in ("*.writing", "state/*.writing") for path in
            folder.glob(pattern)] if folder.is_dir() else []
