#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Train a face recognition network: parallel on x and W, the class centres cut across devices."""
from __future__ import annotations

import os
import sys

from recognition.config.cli import parse_args
from recognition.config.devices import share_processors
from recognition.errors import command
from recognition.launch.own import engine_of_own, start
from recognition.training.signals import end_at_sigterm


@command
def main() -> int:
    config = parse_args("train_parall", sys.argv[1:])
    if engine := engine_of_own(config.engine, config.devices):
        return start(engine, len(config.devices))
    share_processors(config.devices, os.environ)
    end_at_sigterm()
    from recognition.training.run import train  # after the flags: --help and a mistyped flag answer at once

    return train(config)


if __name__ == "__main__":
    sys.exit(main())
