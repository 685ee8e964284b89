# SPDX-License-Identifier: Apache-2.0
"""Programs that end while MXNet runs an operator of ours, or is about to: none crashes, hangs or says more than it
should. In processes of their own; no vectors are needed, as little is computed."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
INTERRUPTED = """
import signal, sys, time
from recognition.errors import command
from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.passes import winograd_operator
from recognition.training.signals import end_at_sigterm

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
method, number = sys.argv[1], signal.Signals[sys.argv[2]]
inner = getattr(winograd_operator._Properties, method)

def sent_before(*arguments, **options):
    setattr(winograd_operator._Properties, method, inner)  # MXNet asks again and again: one signal is enough
    signal.raise_signal(number)
    return inner(*arguments, **options)

setattr(winograd_operator._Properties, method, sent_before)

@command
def main():
    end_at_sigterm()
    symbol = mx.sym.Custom(mx.sym.var("data"), mx.sym.var("w"), op_type=winograd_operator.OPERATOR, num_filter=64)
    symbol.simple_bind(mx.cpu(), grad_req="write", data=(1, 64, 8, 8))
    time.sleep(20)
    return 0

sys.exit(main())
"""
WORKING = """
import atexit
from recognition.engines.mxnet.passes.winograd_operator import Workspace

space, done = Workspace(4), []
atexit.register(lambda: (space.run(lambda part, scratch: done.append(part), 9, 16), print(sorted(done))))
"""


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True,
                          timeout=200)


@pytest.mark.parametrize("method, signal, status, said", [
    ("declare_backward_dependency", "SIGTERM", 143, "stopped by SIGTERM\n"),
    ("create_operator", "SIGINT", 130, "stopped by Ctrl-C\n"),
    *(pytest.param(*values, marks=pytest.mark.slow) for values in (
        ("__init__", "SIGINT", 130, "stopped by Ctrl-C\n"), ("list_arguments", "SIGTERM", 143, "stopped by SIGTERM\n"),
        ("list_outputs", "SIGINT", 130, "stopped by Ctrl-C\n")))])
def test_a_signal_while_mxnet_asks_about_an_operator(method: str, signal: str, status: int, said: str) -> None:
    """Raised there, KeyboardInterrupt and SystemExit made the process crash: MXNet went on with answers not given."""
    found = run(INTERRUPTED, method, signal)
    assert (found.returncode, found.stderr) == (status, said)


def test_an_operator_that_runs_while_the_interpreter_ends() -> None:
    """As after Ctrl-C: MXNet's engine goes on when threads of a pool can no longer be had."""
    found = run(WORKING)
    assert (found.returncode, found.stdout, found.stderr) == (0, f"{list(range(9))}\n", "")
