# SPDX-License-Identifier: Apache-2.0
"""Weights of arcface_torch's networks under our names, and back."""
