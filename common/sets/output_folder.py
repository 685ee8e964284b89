# SPDX-License-Identifier: Apache-2.0
"""Output folders that appear whole or not at all."""
from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recognition.data.records.recordio import PathLike
from recognition.errors import UserError


@contextmanager
def new_folder(path: PathLike) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` to write to; it becomes ``path`` when the ``with`` block ends well.

    If the process is killed, at most ``.<name>.writing`` is left, which the next call removes.

    :raises UserError: if ``path`` exists and is no empty folder, or if it cannot be made.
    """
    target = Path(path).resolve()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{path}: exists already, expected a new folder: remove it, or choose another name")
    temporary = target.with_name(f".{target.name}.writing")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be made: {error.strerror}") from error
    try:
        yield temporary
        for written in (*temporary.iterdir(), temporary):
            _sync(written)
        os.rename(temporary, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
