# SPDX-License-Identifier: Apache-2.0
"""Batch norm, PReLU and the sum behind it as Triton kernels."""
