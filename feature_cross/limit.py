# SPDX-License-Identifier: Apache-2.0
"""Every limit of the config language and the engine, each with its reason."""

from typing import Final

NAME_CHARACTERS_MAX: Final = 128
"""Length of an entity's, attribute's or feature's name: a table of people reads it."""

FEATURES_MAX: Final = 4096
"""Features of one config. Models have hundreds; a batch holds two arrays per feature."""

OPERANDS_MAX: Final = 16
"""Operands of one cross, and values of one k-subset."""

EDGES_MAX: Final = 4096
"""Edges of one attribute's buckets."""

CONDITIONS_MAX: Final = 16
"""Attributes that one feature's `when` looks at: a condition that nobody can read is no condition."""

CONDITION_VALUES_MAX: Final = 4096
"""Values of one any_of or none_of; a longer list is data, and belongs in a column."""

SLOT_BITS_MAX: Final = 32
"""Bits of the slot. Past it fewer than 32 bits of hash are left: 65,536 ids would give a collision."""

IDS_PER_ROW_MAX: Final = 65_536
"""Ids that one feature may give for one row: a list of 362 picks still has all its pairs (65,341)."""

IDS_PER_BATCH_MAX: Final = 1 << 27
"""Ids of one feature in one batch: 1 GiB. A stream halves a batch that is past it and goes on."""

BATCH_ROWS_DEFAULT: Final = 65_536
"""Rows that the engine works on at once: a column of hashes is 512 KiB and stays in a core's L2."""

KEPT_BYTES_MAX: Final = 64 * 1024 * 1024
"""Memory that a stream keeps to write in again: two batches of a config of thirty features."""

NULLS_MAX: Final = 64
"""Texts that stand for a null in one attribute; a longer list belongs in the program that made the data."""
