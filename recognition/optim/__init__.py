# SPDX-License-Identifier: Apache-2.0
"""Margins and triplets: the mathematics, stated once, on NumPy arrays."""
