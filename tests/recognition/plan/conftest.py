# SPDX-License-Identifier: Apache-2.0
"""Shards in host memory share their work among threads here, as in the tests of the head."""
from __future__ import annotations

from tests.recognition.head.conftest import _two_threads as _two_threads
