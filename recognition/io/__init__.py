# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or absent: arrays, checkpoints, class centres, checksums, pickles of strangers."""
