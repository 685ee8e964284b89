# SPDX-License-Identifier: Apache-2.0
"""Parallel on x and W: backbone replicas, class shards, and what travels between them."""
