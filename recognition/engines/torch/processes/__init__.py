# SPDX-License-Identifier: Apache-2.0
"""What processes of PyTorch exchange: where they meet, the communicator, and which one a run has."""
