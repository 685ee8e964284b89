# SPDX-License-Identifier: Apache-2.0
"""Flags of commands that run a checkpoint, and files of embeddings."""
