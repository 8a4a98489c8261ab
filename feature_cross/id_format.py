# SPDX-License-Identifier: Apache-2.0
"""The constants of the id format, version 1. docs/id_format.md is the format's page; keep the two together.

An id never changes: a constant here may be added, never altered. tests/unit/test_cross_golden.py holds
the vectors. The functions are the format's definition in plain Python; the kernels must equal them.
Thread safety: pure functions.
"""

from typing import Final

import xxhash

FORMAT_VERSION: Final = 1

TAG_NULL: Final = 0x00
TAG_INT: Final = 0x01
"""int64, little-endian two's complement."""
TAG_BIG_INT: Final = 0x02
"""uint64 from 2^63 on, little-endian."""
TAG_STRING: Final = 0x03
"""UTF-8."""
TAG_BOOL: Final = 0x04
"""One byte, 0 or 1."""
TAG_BUCKET: Final = 0x05
"""The bucket's lower edge as float64, little-endian; minus infinity for the lowest."""
TAG_DATE: Final = 0x06
"""One byte of DATE_PARTS, then int64, little-endian."""

DATE_PARTS: Final = {
    "year": 1, "month": 2, "day": 3, "date": 4, "weekday": 5, "hour": 6, "minute": 7, "hour_of_week": 8,
}  # fmt: skip

OPERATION_TUPLE: Final = 1
"""Values side by side: attribute, single, categorical, interaction, weak."""
OPERATION_ARRANGEMENT: Final = 2
"""A list in its own order: permutation."""
OPERATION_SUBSET: Final = 3
"""A list in the order of its hashes: sorted."""

MASK64: Final = (1 << 64) - 1
GAMMA: Final = 0x9E3779B97F4A7C15
MULTIPLIER_1: Final = 0xBF58476D1CE4E5B9
MULTIPLIER_2: Final = 0x94D049BB133111EB

METADATA_FORMAT: Final = b"feature_cross.id_format"
METADATA_SLOT_BITS: Final = b"feature_cross.slot_bits"
METADATA_SEED: Final = b"feature_cross.seed"
METADATA_SLOT: Final = b"feature_cross.slot"


def int_bytes(value: int) -> bytes:
    """Canonical bytes of an integer, -2^63 to 2^64 - 1."""
    if value >= 1 << 63:
        return bytes([TAG_BIG_INT]) + value.to_bytes(8, "little")
    return bytes([TAG_INT]) + value.to_bytes(8, "little", signed=True)


def value_hash(canonical: bytes) -> int:
    """xxh64, seed 0, of a value's canonical bytes."""
    return xxhash.xxh64_intdigest(canonical)


def name_seed(name: str) -> int:
    """Seed that a feature has by its name (or by a text in `seed`)."""
    return xxhash.xxh64_intdigest(name.encode())


def mix(x: int) -> int:
    """The mixer's bijection of 64-bit numbers: splitmix64's finaliser (variant 13) on x + gamma."""
    x = (x + GAMMA) & MASK64
    x = ((x ^ (x >> 30)) * MULTIPLIER_1) & MASK64
    x = ((x ^ (x >> 27)) * MULTIPLIER_2) & MASK64
    return x ^ (x >> 31)


def start(seed: int, operation: int, arity: int) -> int:
    """State before the first operand."""
    return mix(mix(seed) ^ ((operation << 32) | arity))


def feature_hash(seed: int, operation: int, hashes: list[int]) -> int:
    """64-bit hash of a feature from its operands' hashes, in order."""
    state = start(seed, operation, len(hashes))
    for value in hashes:
        state = mix(state ^ value)
    return state


def to_id(hashed: int, slot: int | None, slot_bits: int | None) -> int:
    """Layout: the slot in the top bits over the low bits of the hash; without slot_bits the hash itself."""
    if slot_bits is None or slot is None:
        return hashed
    return (slot << (64 - slot_bits)) | (hashed & ((1 << (64 - slot_bits)) - 1))
