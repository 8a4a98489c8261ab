# SPDX-License-Identifier: Apache-2.0
"""Frozen ids, and the rows that they are of."""
