# SPDX-License-Identifier: Apache-2.0
"""Parts of the commands that evaluate: files of IJB and MegaFace, tables, pictures."""
