# SPDX-License-Identifier: Apache-2.0
"""Files that are made to harm their readers, each read in a process of its own.

    python -m faults.hostile_files [--times 10] [--record]

Each must be refused in one line, within MOST_SECONDS and MOST_BYTES, and without running its content.
"""
from __future__ import annotations

import io
import json
import os
import pickle
import resource
import struct
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np

from common.embedding.gallery import load_gallery
from faults.reliability import Row, report
from recognition.config.command_line import Parser
from recognition.data.images.image import MOST_RECORD_PIXELS, decode_rgb
from recognition.data.verification_set import load_bin
from recognition.errors import UserError, command
from recognition.io.params import read_arrays
from recognition.io.torch_file import read_tensors
from recognition.networks.symbol_file import read_symbol

MOST_SECONDS, MOST_BYTES = 5.0, 512 << 20
REFUSED = f"one line, within {MOST_SECONDS:g} s of the processor and {MOST_BYTES >> 20} MB; nothing of it is run"


class _Evil:
    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._marker}",)


def _zip(members: dict[str, bytes], deflated: bool) -> bytes:
    how = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    with zipfile.ZipFile(written := io.BytesIO(), "w", how) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return written.getvalue()


def _symbol(op: str, entry: list[int], **attrs: str) -> bytes:
    """The JSON of a network of one operator."""
    nodes = [{"op": "null", "name": "data", "inputs": []},
             {"op": op, "name": "fc1", "attrs": attrs, "inputs": [entry]}]
    return json.dumps({"nodes": nodes, "heads": [[1, 0, 0]]}).encode()


def _decode(path: Path) -> None:
    try:
        decode_rgb(path.read_bytes(), MOST_RECORD_PIXELS)
    except ValueError as error:
        raise UserError(str(error)) from error


def hostile(folder: Path, marker: Path) -> dict[str, list[tuple[Callable[[Path], object], Path]]]:
    """The readers of each type of file, with the contents that they must refuse."""
    found: dict[str, list[tuple[Callable[[Path], object], Path]]] = {}

    def add(kind: str, read: Callable[[Path], object], content: bytes) -> None:
        path = folder / f"{len(found)}-{len(found.setdefault(kind, []))}"
        path.write_bytes(content)
        found[kind].append((read, path))

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        add("a .bin whose pickle calls os.system", load_bin, pickle.dumps(([_Evil(marker)], [True]), protocol))
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    bombs = [deep, b"\x80\x02X\x04\0\0\0aaaaq\0" + b"h\0\x86" * 10_000 + b".", b"\x80\x04\x8e" + b"\xff" * 8 + b"x"]
    for content in bombs:
        add("a .bin of deep nesting or huge lengths", load_bin, content)
    large = cv2.imencode(".jpg", np.zeros((4096, 4096, 3), np.uint8))[1].tobytes()
    for count in (1 << 10, 1 << 20):
        add("a .bin that names one image of 16 million pixels up to a million times", load_bin,
            pickle.dumps(([large] * count, [True] * (count // 2)), 4))
    for content, deflated in ((pickle.dumps(_Evil(marker), 2), False), (bytes(1 << 28), True)):
        add("a .pth that calls os.system, or unfolds", read_tensors, _zip({"a/data.pkl": content}, deflated))
    add("an .npz that unfolds a thousandfold", load_gallery,
        _zip(dict.fromkeys(("paths.npy", "embeddings.npy"), bytes(1 << 28)), deflated=True))
    for op in ("Custom", "_Native", "_NDArray", "_CustomFunction", "_foreach", "_sg_mkldnn_conv", "_TensorRT"):
        add("a symbol with operators that run code or take addresses", read_symbol,
            _symbol(op, [0, 0, 0], op_type="x", info="140737488355328"))
    for entry in ([1, 0, 0], [9, 0, 0], [-1, 0, 0], [0, 5, 0]):
        add("a symbol whose inputs are cycles or point nowhere", read_symbol, _symbol("Flatten", entry))
    add("a symbol whose inputs are cycles or point nowhere", read_symbol, b"[" * (1 << 20))
    head = struct.pack("<QQQ", 0x112, 0, 1)
    for array in (struct.pack("<IiI2q", 0xF993FAC9, 0, 2, 1 << 40, 1 << 40),
                  struct.pack("<Iii", 0xF993FAC9, 0, 1 << 30),
                  struct.pack("<IiI1qiii", 0xF993FAC9, 0, 1, -5, 1, 0, 0),
                  struct.pack("<IiI", 0xF993FAC9, 2, 1)):
        add("a .params whose header lies", read_arrays, head + array)
    add("a .params whose header lies", read_arrays, struct.pack("<QQQ", 0x112, 0, 1 << 62))
    image = np.zeros((64, 64, 3), np.uint8)
    for ending in (".jpg", ".png", ".bmp", ".ppm"):
        body = bytearray(cv2.imencode(ending, image)[1].tobytes())
        if ending == ".jpg":
            struct.pack_into(">HH", body, body.index(b"\xff\xc0") + 5, 60_000, 60_000)
        elif ending == ".ppm":
            body = bytearray(body.replace(b"64 64", b"60000 60000"))
        else:
            struct.pack_into(">II" if ending == ".png" else "<ii", body, 16 if ending == ".png" else 18, 60_000, 60_000)
        add("an image of a few hundred bytes that says it is 60,000 x 60,000", _decode, bytes(body))
    return found


def try_hostile(name: str, files: Sequence[tuple[Callable[[Path], object], Path]], marker: Path, times: int) -> Row:
    kept, tried, slowest, most = 0, 0, 0.0, 0
    for _ in range(times):
        for read, path in files:
            tried += 1
            kept += (found := _alone(read, path))[0] and not marker.exists()
            slowest, most = max(slowest, found[1]), max(most, found[2])
    return Row(name, tried, REFUSED, kept, f"{kept} refused in one line, the slowest in {slowest:.2f} s, with at most "
               f"{most >> 20} MB more than before")


def _alone(read: Callable[[Path], object], path: Path) -> tuple[bool, float, int]:
    """Read a file in a process of its own. Returns True if it was refused within the limits, and its seconds and bytes.
    """
    here, there = os.pipe()
    child = os.fork()
    if not child:
        code, began = 1, time.process_time()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            with open("/proc/self/statm") as file:
                size = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + MOST_BYTES,) * 2)
            resource.setrlimit(resource.RLIMIT_CPU, (int(MOST_SECONDS) + 1,) * 2)
            read(path)
        except UserError:
            code = 0
        finally:
            taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
            os.write(there, struct.pack("<dq", time.process_time() - began, taken))
            os._exit(code)
    os.close(there)
    _, status = os.waitpid(child, 0)
    with os.fdopen(here, "rb") as pipe:
        said = pipe.read()
    seconds, taken = struct.unpack("<dq", said) if len(said) == 16 else (MOST_SECONDS, 0)
    return status == 0, seconds, taken


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m faults.hostile_files", description=__doc__)
    parser.add_argument("--times", type=int, default=10, help="each file (default 10)")
    parser.add_argument("--record", action="store_true", help="write the table of docs/records/reliability.md")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place:
        marker = Path(place, "it-ran")
        rows = [try_hostile(name, files, marker, args.times)
                for name, files in hostile(Path(place), marker).items()]
    return report("hostile-files", f"python -m faults.hostile_files --times {args.times} --record", rows,
                  args.record)


if __name__ == "__main__":
    raise SystemExit(main())
