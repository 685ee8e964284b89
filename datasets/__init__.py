# SPDX-License-Identifier: Apache-2.0
"""Training sets: how to get them, and the generator of the demo set."""
