# SPDX-License-Identifier: Apache-2.0
"""The policy for records that cannot be used, and their count.

``stop``: the first one is an error. ``skip``: it is logged and counted, and the next usable image of the set takes its
place, with its own label and with the random numbers of the place. The files alone determine that image. So order,
batch sizes and resumed runs stay functions of the seed and the position, for any number of threads and processes.
"""
from __future__ import annotations

import logging
import math
import threading

from recognition.errors import UserError

STOP, SKIP = "stop", "skip"  # --on-bad-record
MOST_LOGGED = 10  # records that are logged one by one; after them the count, each time it has grown tenfold
_logger = logging.getLogger("recognition.data.bad_records")  # log lines begin with it


class BadRecords:
    """The distinct bad records that this process has met. Methods may be called from any thread."""

    def __init__(self, policy: str = STOP, share: float = 0.01, images: int = 0, quiet: bool = False) -> None:
        """:param share: the tolerated share of the set's ``images``, rounded up to whole records: more bad records than
            that are an error even with ``skip``.
        :param quiet: count, but do not log.
        """
        self.skips, self.share, self.images, self._quiet = policy == SKIP, share, images, quiet
        self._keys: dict[int, None] = {}  # a set that keeps the order in which they were met
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: int) -> bool:
        return key in self._keys

    @property
    def most(self) -> int:
        """The largest tolerated number of bad records."""
        return math.ceil(self.share * self.images)

    def note(self, key: int, error: UserError) -> None:
        """Count record ``key``, which ``error`` describes.

        :raises UserError: ``error`` itself unless bad records are skipped; an error about all of them if there are too
            many.
        """
        if not self.skips:
            raise error
        with self._lock:
            if key in self._keys:
                return
            self._keys[key] = None
            count = len(self._keys)
            if count > self.most:
                raise UserError(f"{error}; {self}, expected at most {self.most}, which is --bad-record-share "
                                f"{self.share:g}")
        if self._quiet:
            return
        if count <= MOST_LOGGED:
            _logger.warning("left out: %s", error)
        elif math.log10(count).is_integer():
            _logger.warning("left out: %s", self)

    def __str__(self) -> str:
        first = ", ".join(map(str, list(self._keys)[:MOST_LOGGED]))
        more = ", ..." if len(self) > MOST_LOGGED else ""
        return f"{len(self)} of {self.images} records cannot be used (the first met: {first}{more})"
