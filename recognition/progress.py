# SPDX-License-Identifier: Apache-2.0
"""Progress bars on a terminal, by tqdm; without it, or where nobody looks, the work goes on without a bar."""
from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any


class NoBar:
    """A stand-in for tqdm that shows nothing."""

    def __init__(self, iterable: Iterable[Any] | None = None) -> None:
        self._iterable, self.n = iterable, 0

    def __iter__(self) -> Iterator[Any]:
        return iter(() if self._iterable is None else self._iterable)

    def __enter__(self) -> NoBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: int = 1) -> None:
        self.n += n

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        pass

    def close(self) -> None:
        pass


def progress(iterable: Iterable[Any] | None = None, desc: str = "", total: int | None = None, **options: Any) -> Any:
    """A bar over an iterable, or one to be updated, with tqdm's options; ``disable`` is True where it shows nothing."""
    if options.pop("disable", None) or not sys.stderr.isatty():
        return NoBar(iterable)
    try:
        from tqdm import tqdm
    except ImportError:
        return NoBar(iterable)
    return tqdm(iterable, desc or None, total, **options)


def clear_of_bars() -> contextlib.AbstractContextManager[Any]:
    """Inside, bars make room for lines on the terminal."""
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
    return tqdm.external_write_mode(file=sys.stderr) if tqdm else contextlib.nullcontext()
