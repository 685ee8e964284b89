# SPDX-License-Identifier: Apache-2.0
"""The memory, exchange and operations that a run will take, before it is started."""
