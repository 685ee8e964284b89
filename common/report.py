# SPDX-License-Identifier: Apache-2.0
"""A report of a training run as one HTML file: curves, the last verification, options, machine, versions.

    python -m common.report models/demo-arcface-demo

A run makes it by itself when it ends.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recognition.config.command_line import Parser
from recognition.errors import UserError, command
from recognition.training.watch.report import FILE, make_report


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m common.report", description="Write a training run's report, one HTML file.")
    parser.add_argument("folder", type=Path, metavar="MODEL_FOLDER", help="the folder of the run's checkpoints")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"default: MODEL_FOLDER/{FILE}")
    parser.add_overwrite()
    args = parser.parse_args(argv)
    if args.output and args.output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output: found {str(args.output)!r}, expected a name that ends with .html")
    print(f"report: {make_report(args.folder, args.output, args.overwrite)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
