# SPDX-License-Identifier: Apache-2.0
"""Figures of a config and of its estimate; nothing else of feature_cross imports matplotlib (extra `plot`).

docs/estimate.md shows how to read them.
"""
