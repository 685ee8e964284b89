# SPDX-License-Identifier: Apache-2.0
"""Training sets, wherever their images come from."""
