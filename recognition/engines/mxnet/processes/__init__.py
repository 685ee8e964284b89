# SPDX-License-Identifier: Apache-2.0
"""The communicators of MXNet: Horovod, KVStore, and which one a run has."""
