# SPDX-License-Identifier: Apache-2.0
"""The one kind of error that a user can cause and mend, and how a command ends on it."""
from __future__ import annotations

import contextlib
import errno
import functools
import sys
from typing import Any, Callable

from recognition.interrupts import safe_interrupt

ERROR = "error: "  # what the line begins with
# What the machine lacks, wherever it is noticed: no mistake of the program's.
LACKING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)


class UserError(Exception):
    """Bad input: one line that names the file, key or flag, what was found and what was expected."""

    status = 2


class LostProcess(UserError):
    """Another process of the run is gone: nothing is wrong with this one, and its status says so."""

    status = 75  # EX_TEMPFAIL of sysexits.h


def one_line(text: object) -> str:
    """What is said of an error or a stranger's name, in one line: names of files may hold line ends, and codes that a
    terminal obeys."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode()
                   for letter in str(text))


def command(main: Callable[..., int]) -> Callable[..., int]:
    """Wrap a command's ``main`` so that a :class:`UserError` ends it with its line on stderr and its status, 2; so does
    a disk that is full or fails, or a limit of file handles, where nobody said it better.
    """

    @functools.wraps(main)
    def run(*args: Any, **kwargs: Any) -> int:
        try:
            with safe_interrupt():
                return main(*args, **kwargs)
        except UserError as error:
            print(f"{ERROR}{one_line(error)}", file=sys.stderr, flush=True)
            return error.status
        except OSError as error:
            if error.errno not in LACKING:
                raise
            print(f"{ERROR}{_lack(error)}", file=sys.stderr, flush=True)
            return UserError.status
        except KeyboardInterrupt:
            print("stopped by Ctrl-C", file=sys.stderr, flush=True)
            return 130  # 128 + SIGINT, as a shell has it

    return run


def _lack(error: OSError) -> str:
    text = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    if error.errno == errno.EMFILE:
        with contextlib.suppress(ImportError, ValueError):
            import resource  # by now perhaps not to be had

            text += f"; this process may have {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} open (ulimit -n)"
    return text
