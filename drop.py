#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""The recipes' command that drops wrong labels, at its old place beside train_parall.py: a door to common.drop."""
from __future__ import annotations

from common.drop import main

if __name__ == "__main__":
    raise SystemExit(main())
