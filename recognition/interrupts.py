# SPDX-License-Identifier: Apache-2.0
"""Handlers of signals that raise an exception, kept out of the Python code that MXNet calls.

An operator in Python (``mxnet.operator``) is called through ctypes, which cannot hand KeyboardInterrupt or SystemExit
on: it returns a number that nobody set, MXNet goes on with pointers that nobody set, and the process crashes.
"""
from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Callable

Handler = Callable[[int, "FrameType | None"], object]
CALLED = os.path.join("mxnet", "operator.py")  # the file whose functions MXNet calls
_AGAIN = 0.01  # seconds until the signal comes again; no call of MXNet's waits for anything


def outside_operators(handler: Handler) -> Handler:
    """``handler``, run once no operator's code is under way: until then the signal is sent again and again."""

    def handle(number: int, frame: FrameType | None) -> None:
        caller = frame
        while caller and not caller.f_code.co_filename.endswith(CALLED):
            caller = caller.f_back
        if caller:
            again = threading.Timer(_AGAIN, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
        else:
            handler(number, frame)

    return handle


@contextlib.contextmanager
def safe_interrupt() -> Iterator[None]:
    """Context in which Ctrl-C raises KeyboardInterrupt outside of operators alone, where it raised it anywhere."""
    if (threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGINT) is not signal.default_int_handler):
        yield
        return
    signal.signal(signal.SIGINT, outside_operators(signal.default_int_handler))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
