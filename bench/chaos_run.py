# SPDX-License-Identifier: Apache-2.0
"""The small run that the harness of faults starts, breaks and compares: real entry points, records and processes."""
from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import train_parall
from common import report
from common.training_set import write_training_set
from recognition.data.verification_set import save_bin
from recognition.training import about
from recognition.training.state import SavedState
from recognition.training.state_folder import saved_states

ROOT = Path(__file__).resolve().parents[1]
SIDE, IDENTITIES, IMAGES, PAIRS = 32, 11, 6, 20  # 11 classes: two processes have five and six
OF_STARTS = ("launch", about.FILE, report.FILE)  # when and how a run was started, which no two runs share
PATIENCE = 600.0  # seconds for a life of a run, on a machine that has other work

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
    """A folder with a training set and a configuration, and what is done in it."""

    def __init__(self, folder: Path, steps: int, processes: int = 1) -> None:
        """:param steps: of a run; ``processes``: under ``recognition.launch`` if there are several."""
        self.folder, self.steps, self.processes = folder, steps, processes
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
        """Where the run ``name`` writes."""
        return self.folder / name / "small-arcface-small"

    def start(self, name: str, *flags: str, launch: Sequence[str] = (), environ: Mapping[str, str] | None = None,
              **options: Any) -> Life:
        """Start the run ``name``, or go on with it. A state every 3 steps, a verification and a checkpoint every 6.

        One process that needs no ``options`` of subprocess.Popen is a child of this one rather than a new program.
        """
        arguments = ["--config", str(self.folder / "config.py"), "--models-root", str(self.folder / name),
                     "--max-steps", str(self.steps), "--state-every", "3", "--verbose", "6", "--frequent", "2",
                     "--ckpt", "2", "--keep-ckpt", "3", "--keep-every", "50", "--lr", "0.01", "--per-batch-size",
                     str(12 // self.processes), "--decode-threads", "1", *flags]
        own, said = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", **(environ or {})}, self.folder / f"said-{name}"
        with open(f"{said}.out", "w") as out, open(f"{said}.err", "w") as err:
            if self.processes == 1 and not options and not environ:
                return Life(Forked(arguments, own, out.fileno(), err.fileno()), said)
            before = [] if self.processes == 1 else ["-m", "recognition.launch", "-np", str(self.processes), *launch,
                                                     "--", sys.executable]
            return Life(subprocess.Popen([sys.executable, *before, str(ROOT / "train_parall.py"), *arguments], cwd=ROOT,
                                         stdout=out, stderr=err, env={**os.environ, **own}, **options), said)

    def run(self, name: str, *flags: str, **options: Any) -> Life:
        """As :meth:`start`, and wait for its end."""
        life = self.start(name, *flags, **options)
        life.wait()
        return life

    def reference(self) -> Path:
        """The output of a run that nothing disturbs."""
        folder = self.output("undisturbed")
        if not (folder / "model-0000.params").exists():
            life = self.run("undisturbed")
            if life.status:
                raise RuntimeError(f"the undisturbed run failed: {life.out}{life.err}")
        return folder

    def difference(self, name: str) -> str:
        """How the end of the run ``name`` differs from the undisturbed one's; empty if in nothing, bit for bit."""
        ours, theirs = self.output(name), self.reference()
        names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")
                        if path.is_file() and path.name not in OF_STARTS and ".damaged" not in str(path))
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


def history(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, without what depends on the clock."""
    found = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "images_per_second"} for record in found]


def unfinished(folder: Path) -> list[str]:
    """The names, below the output of a run, of what is not whole yet."""
    return [str(path.relative_to(folder)) for pattern in ("*.writing", "state/*.writing") for path in
            folder.glob(pattern)] if folder.is_dir() else []


class Forked:
    """The part of subprocess.Popen that a life needs, for a child that has imported everything before it was born.

    Most of the life of a small run is imports, and a harness of many kills has no use for them.
    """

    def __init__(self, arguments: Sequence[str], environ: Mapping[str, str], out: int, err: int) -> None:
        self.returncode: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.setsid()
                os.dup2(out, 1)
                os.dup2(err, 2)
                os.environ.update(environ)
                sys.argv = ["train_parall.py", *arguments]
                status = train_parall.main()
            except SystemExit as end:
                status = int(end.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = PATIENCE) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("train_parall.py", timeout)
            time.sleep(0.01)
        return self.returncode  # type: ignore[return-value]


class Life:
    """One process of a run, or the launcher of several, from its start to its end."""

    def __init__(self, process: subprocess.Popen | Forked, said: Path) -> None:
        """:param said: of the files of standard output and error, without their endings."""
        self.process, self._said = process, said

    @property
    def out(self) -> str:
        return self._said.with_suffix(".out").read_text()

    @property
    def err(self) -> str:
        return self._said.with_suffix(".err").read_text()

    @property
    def status(self) -> int | None:
        return self.process.poll()

    @property
    def lines(self) -> list[str]:
        """What was said on standard error, without the log's own lines."""
        return [line for line in self.err.splitlines() if not line.startswith("INFO:root:")]

    def wait(self, patience: float = PATIENCE) -> int:
        """The status; a life that lasts too long is ended, with -SIGKILL."""
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def workers(self) -> list[int]:
        """The processes that a launcher has started, in the order of their ranks."""
        pid = self.process.pid
        with contextlib.suppress(OSError):
            return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return []

    def rounds(self, seconds: float = PATIENCE) -> Iterator[None]:
        """Goes round with hardly a pause until this life ends or its time is up."""
        end = time.monotonic() + seconds
        while self.status is None and time.monotonic() < end:
            yield
            time.sleep(0.0005)

    def kill(self) -> None:
        """SIGKILL to all processes of the run as good as at once, as when the power goes."""
        victims = [self.process.pid] if isinstance(self.process, Forked) else [*self.workers(), self.process.pid]
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        self.process.wait()
