# SPDX-License-Identifier: Apache-2.0
"""Every option of a run: its type and default, presets, flags, devices, and users' own code."""
