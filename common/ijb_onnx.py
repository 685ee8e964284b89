# SPDX-License-Identifier: Apache-2.0
"""The recipes' command for IJB-B and IJB-C with a network in ONNX: common.ijb_11, which knows its flags.

    python common/ijb_onnx.py --model-file backbone.onnx --image-path IJB_release/IJBC --result-dir . --target IJBC
"""
from __future__ import annotations

from common.ijb_11 import main

if __name__ == "__main__":
    raise SystemExit(main())
