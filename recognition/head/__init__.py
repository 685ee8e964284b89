# SPDX-License-Identifier: Apache-2.0
"""The head, parallel on x and W: margins, the softmax over shards of the class centres, triplets."""
