# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that plain MXNet loads, and what a run takes over from one."""
