# SPDX-License-Identifier: Apache-2.0
"""Tools that users run by hand and that the training loop reuses."""
