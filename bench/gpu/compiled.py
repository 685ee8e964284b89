# SPDX-License-Identifier: Apache-2.0
"""Compiles the Triton kernels for a card that need not be here, and tells registers, spills and shared memory.

    python -m bench.gpu.compiled 90        # compute capability 9.0; the head for D = 512, batch norm, SGD, draw
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

from recognition.engines.torch.triton import draw, kernels, sgd
from recognition.engines.torch.triton.batch_norm import kernels as batch_norm
from recognition.engines.torch.triton.batch_norm.function import MERGED, MOST_PARTS, USUAL, WIDEST
from recognition.engines.torch.triton.tiles import rows_of_update, tiles_for, width_of

SHARED_MEMORY = {80: 166912, 86: 101376, 89: 101376, 90: 232448}  # bytes a block, by compute capability
INDICES = {"selected": "i64", "targets": "i32", "nearest": "i32", "grown": "i32"}
MAPS = ("x", "y", "d_x", "d_y", "added")
INTEGERS = {"batch", "classes", "width", "first", "last", "tiles", "key", "key2", "threshold", "first_row", "rows",
            "channels", "parts"}
EVEN = {"channels"}  # multiples of 16
NUMBERS = {"mu", "scale", "ceiling", "gain", "factor", "rate", "decay", "beta1", "beta2", "move", "eps", "room"}


def compile_kernel(kernel: Any, card: int, kinds: dict[str, str], constants: dict[str, Any], warps: int, stages: int
                   ) -> str:
    """Machine code for a card; returns the line of what it takes.

    :param kinds: Triton's names of the types that arrays hold, where it is not float32.
    """
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in INTEGERS | NUMBERS:
            signature[name] = "i32" if name in INTEGERS else "fp32"
            if name in EVEN:
                attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name], attributes[(place,)] = f"*{kinds.get(name, 'fp32')}", [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(name),): value for name, value in constants.items()},
                       attributes)
    made = triton.compile(source, target=GPUTarget("cuda", card, 32),
                          options={"num_warps": warps, "num_stages": stages})
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(made.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    return f"{found[1]} registers and {found[2]} bytes of stack a thread, {made.metadata.shared} bytes of shared memory"


def of_the_head(card: int, dim: int) -> None:
    """W in float32, then in bfloat16."""
    tiles, rows = tiles_for(2, SHARED_MEMORY[card]), rows_of_update(dim)
    print(f"compute capability {card / 10}: {tiles}, {rows} rows in the update")
    of_rows = {"ROWS": rows, "WIDTH": width_of(dim)}
    of_tiles = {"FILTERED": False, "WIDENED": False, "K": 1, "PADDED": 1, "BATCH": tiles.batch,
                "COLUMNS": tiles.columns, "DEPTH": tiles.depth}
    for stored in ("fp32", "bf16"):
        low, scaled = ("bf16", True) if stored == "bf16" else ("fp16", False)
        kinds = {**INDICES, **dict.fromkeys(("x", "units", "operand", "weights"), low),
                 **dict.fromkeys(("centres", "first_moment", "second_moment"), stored)}
        for kernel, own in {
                kernels.exponentials: {**of_tiles, "AGAIN": False}, kernels.slopes: of_tiles,
                kernels.advance: {"DEPTH": 64}, kernels.collect: {}, kernels.renew: of_rows,
                kernels.update: {**of_rows, "ADAMW": False, "ROUNDED": scaled, "MEASURED": False},
        }.items():
            constants = {name: value for name, value in {"dim": dim, "SCALED": scaled, **own}.items()
                         if name in kernel.arg_names}
            warps, stages = (tiles.warps, tiles.stages) if "COLUMNS" in constants else (4, 3)
            more = {"total": "fp64"} if kernel in (kernels.advance, kernels.collect) else {}
            line = compile_kernel(kernel, card, {**kinds, **more}, constants, warps, stages)
            print(f"{kernel.__name__}, W as {stored}: {line}", flush=True)


def of_batch_norm(card: int) -> None:
    """Compile batch norm with PReLU and a sum, for maps of float16 of 64 channels or more."""
    tile = {"ROWS": USUAL.numbers // WIDEST, "CHANNELS": WIDEST, "STAGES": USUAL.stages}
    merged, both = {"PARTS": MOST_PARTS, "CHANNELS": MERGED}, {"ACTIVE": True, "ADDED": True}
    print(f"batch norm: {USUAL}")
    for kernel, constants in (
            (batch_norm.measure, tile), (batch_norm.merge_moments, {**merged, "ROWS": tile["ROWS"]}),
            (batch_norm.normalise, {**tile, **both}), (batch_norm.sum_gradients, {**tile, "ACTIVE": True}),
            (batch_norm.merge_sums, {**merged, "ACTIVE": True}), (batch_norm.differentiate, {**tile, **both})):
        line = compile_kernel(kernel, card, dict.fromkeys(MAPS, "fp16"), constants, USUAL.warps, USUAL.stages)
        print(f"{kernel.__name__}: {line}", flush=True)


def of_sgd(card: int) -> None:
    """The backbone's update, whose arrays are addresses."""
    kinds = {**dict.fromkeys(("weights", "gradients", "momenta"), "i64"),
             **dict.fromkeys(("sizes", "tensors", "starts"), "i32")}
    print(f"sgd: {compile_kernel(sgd.sgd, card, kinds, {'NUMBERS': sgd.NUMBERS}, warps=4, stages=3)}", flush=True)


def of_draw(card: int) -> None:
    """The hashes of a sample."""
    line = compile_kernel(draw.draw, card, {"chosen": "u8"}, {"CLASSES": draw.CLASSES}, warps=4, stages=3)
    print(f"draw: {line}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.compiled", description=__doc__)
    parser.add_argument("card", type=int, choices=list(SHARED_MEMORY), help="compute capability, 90 for 9.0")
    parser.add_argument("--dim", type=int, default=512)
    options = parser.parse_args()
    of_the_head(options.card, options.dim)
    of_batch_norm(options.card)
    of_sgd(options.card)
    of_draw(options.card)
    return 0


if __name__ == "__main__":
    sys.exit(main())
