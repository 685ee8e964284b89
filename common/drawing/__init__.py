# SPDX-License-Identifier: Apache-2.0
"""The look of pictures, and sheets of images."""
