# SPDX-License-Identifier: Apache-2.0
"""PyTorch, imported in one place, so that an environment without it is told in one line."""
from __future__ import annotations

from recognition.errors import UserError

OLDEST = (2, 9)

try:
    import torch
except (ImportError, OSError) as error:  # OSError: a library of its own, or NVIDIA's, is missing
    raise UserError(f"engine: found no PyTorch that can be imported ({' '.join(str(error).split())}), expected 2.9 or "
                    "newer; `ENGINE=torch make demo` installs it") from None
if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST:
    raise UserError(f"engine: found PyTorch {torch.__version__}, expected 2.9 or newer")

# float32 means float32: --fp16-scale is the option that trades digits for speed. cuDNN would take TF32 by itself.
torch.backends.cudnn.allow_tf32 = False

__all__ = ["torch"]
