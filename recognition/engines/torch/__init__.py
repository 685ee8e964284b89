# SPDX-License-Identifier: Apache-2.0
"""PyTorch as an engine: networks, optimisers, shards and communicators in its tensors."""
