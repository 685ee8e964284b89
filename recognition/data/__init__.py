# SPDX-License-Identifier: Apache-2.0
"""Records, the order of an epoch, decoding, augmentation, batches and verification sets. Works without MXNet."""
