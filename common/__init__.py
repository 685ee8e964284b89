# SPDX-License-Identifier: Apache-2.0
"""Commands that users run by hand, and their parts in folders."""
