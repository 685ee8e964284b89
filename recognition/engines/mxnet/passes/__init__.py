# SPDX-License-Identifier: Apache-2.0
"""Graph passes: how MXNet runs a network, never what it computes."""
