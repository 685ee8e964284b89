# SPDX-License-Identifier: Apache-2.0
"""A trainer's command in this interpreter: a new one takes three seconds to import an engine."""
from __future__ import annotations

import contextlib
import io
import logging

from recognition.config.cli import parse_args
from recognition.errors import command
from recognition.training.run import train


def run_here(entry: str, *flags: str) -> tuple[int, str, str]:
    """Run ``train`` or ``train_parall`` with flags; returns exit status, standard output and standard error."""
    root, out, err = logging.getLogger(), io.StringIO(), io.StringIO()
    handlers, level = root.handlers, root.level
    root.handlers = []  # pytest's own, beside which a run would write no lines
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = command(lambda: train(parse_args(entry, flags)))()
    finally:
        root.handlers = handlers
        root.setLevel(level)
    return status, out.getvalue(), err.getvalue()
