# SPDX-License-Identifier: Apache-2.0
"""Verification, ROC curves, rates and ranks, on embeddings of any origin."""
