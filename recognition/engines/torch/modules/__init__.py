# SPDX-License-Identifier: Apache-2.0
"""Networks of the user's own: a Python file, and a ``torch.nn.Module`` as a graph."""
