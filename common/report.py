# SPDX-License-Identifier: Apache-2.0
"""A report of a training run as one HTML file: curves, the last verification, options, machine, versions.

    python -m common.report models/demo-arcface-demo             # a run makes it by itself when it ends
    python -m common.report models/demo-arcface-demo --serve     # a page that renews itself while the run trains
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recognition.config.command_line import Parser, check_ranges
from recognition.errors import UserError, command
from recognition.training.watch.report import FILE, make_report
from recognition.training.watch.report_server import ReportServer

HOST, PORT = "127.0.0.1", 8008


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m common.report", description="Write a training run's report, one HTML file, or show "
                                                                "it while the run trains.")
    parser.add_argument("folder", type=Path, metavar="MODEL_FOLDER", help="the folder of the run's checkpoints")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"default: MODEL_FOLDER/{FILE}")
    parser.add_overwrite()
    parser.add_argument("--serve", action="store_true", help="write nothing, but serve a page that renews itself until "
                        "Ctrl-C ends it")
    parser.add_argument("--host", help=f"with --serve, this machine's address to serve at (default: {HOST}, which no "
                                       "other machine reaches)")
    parser.add_argument("--port", type=int, help=f"with --serve; 0: any that is free (default: {PORT})")
    args = parser.parse_args(argv)
    check_ranges(args, port=(0, 65535))
    if args.serve:
        if args.output or args.overwrite:
            raise UserError("--serve: found with --output or --overwrite, expected it alone: it writes nothing")
        return serve(args.folder, args.host or HOST, PORT if args.port is None else args.port)
    if args.host is not None or args.port is not None:
        raise UserError("--host, --port: found without --serve, expected with it")
    if args.output and args.output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output: found {str(args.output)!r}, expected a name that ends with .html")
    print(f"report: {make_report(args.folder, args.output, args.overwrite)}")
    return 0


def serve(folder: Path, host: str, port: int) -> int:
    """Serve the report until Ctrl-C."""
    with ReportServer(folder, host, port) as server:
        print(f"report: {server.url}", flush=True)
        if not server.loopback:
            print(f"--host {host}: everyone whose machine reaches this one can read it", flush=True)
        server.serve_forever()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
