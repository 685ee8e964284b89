# SPDX-License-Identifier: Apache-2.0
"""Families of networks, a module each, and the pieces that they share; ``get_symbol(**options)`` makes the graph."""
