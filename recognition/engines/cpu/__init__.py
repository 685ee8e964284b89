# SPDX-License-Identifier: Apache-2.0
"""Class centres in host memory, by NumPy and Numba, for any engine."""
