# SPDX-License-Identifier: Apache-2.0
"""Parts of the commands that make and check data sets."""
