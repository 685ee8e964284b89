# SPDX-License-Identifier: Apache-2.0
"""A standard output whose failure does not end the run: its reader may go away, or its disk may be full."""
from __future__ import annotations

import io
import logging
import os
from typing import TextIO

_logger = logging.getLogger(__name__)


class LastingOutput(io.TextIOBase):
    """A file that writes to ``stream`` until that fails. It logs the failure once and then drops all output."""

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
        if stream is not None:  # otherwise the rest of its buffer fails once more when Python ends
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
