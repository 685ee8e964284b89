# SPDX-License-Identifier: Apache-2.0
"""The exchange between processes, and the check that all are of one run."""
