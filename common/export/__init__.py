# SPDX-License-Identifier: Apache-2.0
"""Training states as arcface_torch's checkpoints."""
