# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
import re

import pytest

from recognition.errors import UserError, command


@pytest.mark.parametrize("error, status, line", [(UserError("--lr: found x"), 2, "error: --lr: found x\n"),
                                                 (UserError("a\nb\x1b[2J\udcff: x"), 2,
                                                  "error: a\\nb\\x1b[2J\\udcff: x\n"),
                                                 (KeyboardInterrupt(), 130, "stopped by Ctrl-C\n"),
                                                 (OSError(errno.ENOSPC, "No space left on device", "x/y"), 2,
                                                  "error: x/y: No space left on device\n"),
                                                 (OSError(errno.EIO, "Input/output error"), 2,
                                                  "error: Input/output error\n")])
def test_a_command_ends_in_one_line(capsys: pytest.CaptureFixture[str], error: BaseException, status: int,
                                    line: str) -> None:
    @command
    def main() -> int:
        raise error

    assert main() == status
    assert capsys.readouterr().err == line


def test_a_limit_of_file_handles_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def main() -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "x")

    assert main() == 2
    assert re.fullmatch(r"error: x: Too many open files; this process may have \d+ open \(ulimit -n\)\n",
                        capsys.readouterr().err)


def test_what_no_machine_lacks_is_a_mistake_of_ours() -> None:
    @command
    def main() -> int:
        raise FileNotFoundError(errno.ENOENT, "No such file", "x")

    with pytest.raises(FileNotFoundError):
        main()
