# SPDX-License-Identifier: Apache-2.0
"""The loop and what hangs on it: checkpoints, training states, in-loop verification, logs."""
