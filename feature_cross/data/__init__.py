# SPDX-License-Identifier: Apache-2.0
"""Columns and files: what is read from them, and what ids are written to."""
