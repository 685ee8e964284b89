# SPDX-License-Identifier: Apache-2.0
"""Sizes that the shards of all engines compute with and that plans count with."""
from __future__ import annotations

# On CPUs: rows whose gradient a thread holds at once, 0.8 MB at D = 512, so that it stays near the processor; ranges
# with sums of their own at most, and the fewest rows of one; columns of the narrower tile.
ROWS_A_PIECE, MOST_GROUPS, LEAST_ROWS_A_GROUP, COLUMNS_A_TILE = 384, 32, 192, 16
MXNET_ROWS_A_CHUNK = 65536  # rows whose gradient is held at once: 128 MB at D = 512
# PyTorch's, by its kinds of devices. On GPUs logits of 128 MB at B = 1024, a gradient of 64 MB at D = 512; on CPUs
# 2 MB, which stay near the processor.
TORCH_ROWS_A_CHUNK = {"cuda": 32768, "cpu": 1024}
TRITON_ROWS_A_CHUNK = 1 << 17
WEIGHTS_A_CHUNK = 1 << 27  # of Triton's kernels at most: 256 MB
WIDEST = 2048  # numbers of a feature: rows of more do not fit into the registers of Triton's update
