# SPDX-License-Identifier: Apache-2.0
"""Image files: finding, reading, checking and decoding them."""
