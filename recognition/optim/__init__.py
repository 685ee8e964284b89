# SPDX-License-Identifier: Apache-2.0
"""Learning rates, the factors of single parameters, AdamW's numbers and the loss scale of float16."""
