# SPDX-License-Identifier: Apache-2.0
"""Starts several processes, here or over ssh, watches them, and ends them together."""
