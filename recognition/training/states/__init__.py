# SPDX-License-Identifier: Apache-2.0
"""Training states: all that a run needs to go on."""
