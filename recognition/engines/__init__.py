# SPDX-License-Identifier: Apache-2.0
"""The engines that compute: what the loop knows of one, and the place that chooses it."""
