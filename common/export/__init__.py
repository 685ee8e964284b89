# SPDX-License-Identifier: Apache-2.0
"""PyTorch's files and iresnet."""
