# SPDX-License-Identifier: Apache-2.0
"""The entry point of ``python -m recognition.launch``."""
import sys

from recognition.launch.launcher import main

sys.exit(main())
