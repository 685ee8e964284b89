# SPDX-License-Identifier: Apache-2.0
"""What processes of MXNet exchange: Horovod, KVStore, and which one a run has."""
