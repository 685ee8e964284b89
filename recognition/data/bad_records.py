# SPDX-License-Identifier: Apache-2.0
"""What is done about records that cannot be used, and the count of them.

``stop``: the first is an error. ``skip``: it is said, counted, and the next image of the set that can be used stands in
for it, with the label of its own and the random numbers of the place. Which image that is depends on the files alone:
so order, batch sizes and what a run goes on from stay functions of the seed and the position, whatever the number of
threads and processes.
"""
from __future__ import annotations

import logging
import math
import threading

from recognition.errors import UserError

STOP, SKIP = "stop", "skip"  # --on-bad-record
SAID = 10  # records that are said one by one; beyond them their number, when it has grown tenfold
_logger = logging.getLogger(__name__)


class BadRecords:
    """Counts the distinct bad records that this process has met. Methods may be called from any thread."""

    def __init__(self, policy: str = STOP, share: float = 0.01, images: int = 0, quiet: bool = False) -> None:
        """:param share: of the set's ``images``; more bad records than that, rounded up, are an error even to skip.
        :param quiet: count only.
        """
        self.skips, self.share, self.images, self._quiet = policy == SKIP, share, images, quiet
        self._keys: dict[int, None] = {}  # in the order in which they were met
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: int) -> bool:
        return key in self._keys

    @property
    def most(self) -> int:
        """How many there may be."""
        return math.ceil(self.share * self.images)

    def note(self, key: int, error: UserError) -> None:
        """Count record ``key``, which ``error`` is about.

        :raises UserError: ``error`` itself if bad records are not skipped; one about all of them if they are too many.
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
        if count <= SAID:
            _logger.warning("left out: %s", error)
        elif math.log10(count).is_integer():
            _logger.warning("left out: %s", self)

    def __str__(self) -> str:
        first = ", ".join(map(str, list(self._keys)[:SAID]))
        more = ", ..." if len(self) > SAID else ""
        return f"{len(self)} of {self.images} records cannot be used (the first met: {first}{more})"
