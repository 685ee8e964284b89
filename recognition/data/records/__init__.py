# SPDX-License-Identifier: Apache-2.0
"""RecordIO files, their index and layout, and what is done about records without use."""
