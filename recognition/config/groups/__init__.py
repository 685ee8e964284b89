# SPDX-License-Identifier: Apache-2.0
"""The table of all options in four groups, which ``recognition.config.options.Config`` puts together."""
