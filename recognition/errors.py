# SPDX-License-Identifier: Apache-2.0
"""The one kind of error that a user can cause and mend, and how a command ends on it."""
from __future__ import annotations

import functools
import sys
from typing import Any, Callable


class UserError(Exception):
    """Bad input: one line that names the file, key or flag, what was found and what was expected."""


def command(main: Callable[..., int]) -> Callable[..., int]:
    """Wrap a command's ``main`` so that a :class:`UserError` ends it with its line on stderr and status 2."""

    @functools.wraps(main)
    def run(*args: Any, **kwargs: Any) -> int:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            return 2

    return run
