# SPDX-License-Identifier: Apache-2.0
"""The communicator of PyTorch, where its processes meet, and whether a run has one."""
