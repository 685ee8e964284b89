# SPDX-License-Identifier: Apache-2.0
"""The errors that a user can cause and mend, and the end of a command that meets one."""
from __future__ import annotations

import contextlib
import errno
import functools
import sys
from collections.abc import Iterator
from typing import Any, Callable

from recognition.interrupts import safe_interrupt

ERROR = "error: "  # the beginning of the line
# errno values of a machine that lacks something: no mistake of the program.
LACKING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)


class UserError(Exception):
    """Bad input. The message is one line: the file, key or flag, what was found and what was expected."""

    status = 2


class LostProcess(UserError):
    """Another process of the run is gone. Nothing is wrong with this one, so it has a status of its own."""

    status = 75  # EX_TEMPFAIL of sysexits.h


def one_line(text: object) -> str:
    """A text in one line of printable characters: names of files may contain line ends, and codes that a terminal would
    obey."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode()
                   for letter in str(text))


@contextlib.contextmanager
def naming(what: object) -> Iterator[None]:
    """Turn a ValueError of the block into a :class:`UserError` that begins with ``what``."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{what}: {error}") from error


def command(main: Callable[..., int]) -> Callable[..., int]:
    """Wrap a command's ``main``. A :class:`UserError` ends it with a line on stderr and the error's status; an OSError
    in LACKING, such as a full disk, ends it with a line and status 2; Ctrl-C ends it with status 130."""

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
            return 130  # 128 + SIGINT, as in a shell

    return run


def _lack(error: OSError) -> str:
    text = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    if error.errno == errno.EMFILE:
        with contextlib.suppress(ImportError, ValueError):
            import resource  # it may fail: there are no file handles left

            text += f"; this process may have {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} open (ulimit -n)"
    return text
