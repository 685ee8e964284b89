# SPDX-License-Identifier: Apache-2.0
"""MXNet as an engine: backbone, class centres on its devices, Horovod and KVStore."""
