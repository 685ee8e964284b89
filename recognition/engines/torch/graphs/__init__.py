# SPDX-License-Identifier: Apache-2.0
"""Training passes on GPUs as CUDA graphs, and what runs beside them."""
