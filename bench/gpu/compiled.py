# SPDX-License-Identifier: Apache-2.0
"""Compiles the head's Triton kernels for a card that need not be here, and tells registers, spills and shared memory.

    python -m bench.gpu.compiled 90        # compute capability 9.0; D = 512, W in float32, then in bfloat16
"""
from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from recognition.engines.torch.triton import kernels
from recognition.engines.torch.triton.tiles import Tiles, tiles_for

SHARED_MEMORY = {80: 166912, 86: 101376, 89: 101376, 90: 232448}  # bytes a block, by compute capability
POINTERS = {"x": "low", "operand": "low", "centres": "stored", "first_moment": "stored", "second_moment": "stored",
            "selected": "i64", "targets": "i32", "nearest": "i32"}
INTEGERS = {"batch", "classes", "tiles_a_part", "key", "key2", "first_row"}
NUMBERS = {"scale", "ceiling", "gain", "factor", "rate", "decay", "beta1", "beta2", "move", "eps"}


def compile_kernel(kernel: Any, card: int, tiles: Tiles, dim: int, low: str, stored: str, constants: dict[str, Any]
                   ) -> str:
    """Machine code for a card; returns the line of what it takes. ``low`` and ``stored``: types of operands and W."""
    kinds = {"low": low, "stored": stored}
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in INTEGERS | NUMBERS:
            signature[name] = "i32" if name in INTEGERS else "fp32"
        else:
            kind = POINTERS.get(name, "fp32")
            signature[name], attributes[(place,)] = f"*{kinds.get(kind, kind)}", [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(name),): value for name, value in constants.items()},
                       attributes)
    made = triton.compile(source, target=GPUTarget("cuda", card, 32),
                          options={"num_warps": tiles.warps, "num_stages": tiles.stages})
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(made.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    return f"{found[1]} registers and {found[2]} bytes of stack a thread, {made.metadata.shared} bytes of shared memory"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.compiled", description=__doc__)
    parser.add_argument("card", type=int, choices=list(SHARED_MEMORY), help="compute capability, 90 for 9.0")
    parser.add_argument("--dim", type=int, default=512)
    options = parser.parse_args()
    tiles = tiles_for(options.dim, 2, SHARED_MEMORY[options.card])
    common = {"dim": options.dim, "WIDTH": options.dim, "FILTERED": False, "WIDENED": False, "K": 1, "PADDED": 1}
    print(f"compute capability {options.card / 10}: {tiles}")
    for stored in ("fp32", "bf16"):
        low, scaled = ("bf16", True) if stored == "bf16" else ("fp16", False)
        for kernel, own in ((kernels.statistics, "BATCH"), (kernels.update, "COLUMNS")):
            of_update = {"ADAMW": False, "MEASURED": False, "ROUNDED": scaled} if own == "COLUMNS" else {}
            constants = {**common, **of_update, "SAMPLED": False, "SCALED": scaled, "BATCH": tiles.others,
                         "COLUMNS": tiles.others, own: tiles.own}
            line = compile_kernel(kernel, options.card, tiles, options.dim, low, stored, constants)
            print(f"{kernel.__name__}, W as {stored}: {line}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
