# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from recognition.errors import UserError, command


@pytest.mark.parametrize("error, status, line", [(UserError("--lr: found x"), 2, "error: --lr: found x\n"),
                                                 (KeyboardInterrupt(), 130, "stopped by Ctrl-C\n")])
def test_a_command_ends_in_one_line(capsys: pytest.CaptureFixture[str], error: BaseException, status: int,
                                    line: str) -> None:
    @command
    def main() -> int:
        raise error

    assert main() == status
    assert capsys.readouterr().err == line
