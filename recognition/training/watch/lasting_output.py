# SPDX-License-Identifier: Apache-2.0
"""A standard output that a run outlives: its reader may go, or its disk be full, and the training goes on."""
from __future__ import annotations

import io
import logging
import os
from typing import TextIO

_logger = logging.getLogger(__name__)


class LastingOutput(io.TextIOBase):
    """Writes to ``stream`` until that fails, says so once in the log, and writes nothing from then on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream: TextIO | None = stream

    def write(self, text: str) -> int:
        try:
            if self._stream is not None:
                self._stream.write(text)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        try:
            if self._stream is not None:
                self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def _give_up(self, error: OSError) -> None:
        stream, self._stream = self._stream, None
        _logger.warning("standard output cannot be written to any more: %s; the run goes on without", error.strerror)
        if stream is not None:  # what is in its buffer would fail once more when Python ends
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
