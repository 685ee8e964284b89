# SPDX-License-Identifier: Apache-2.0
"""A trainer for face recognition on MXNet, parallel on x and W."""

__version__ = "0.1.0"
