# SPDX-License-Identifier: Apache-2.0
"""The command ``python -m recognition.plan``."""
import sys

from recognition.plan.command import main

sys.exit(main())
