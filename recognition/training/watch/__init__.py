# SPDX-License-Identifier: Apache-2.0
"""The log, history, TensorBoard events, profile and report of a run."""
