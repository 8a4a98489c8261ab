# SPDX-License-Identifier: Apache-2.0
"""Ids in plain Python, written from docs/id_format.md; it shares no code with the package."""

import struct
from typing import Any

import xxhash

M = (1 << 64) - 1


def mixed(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & M
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & M
    x = (x ^ x >> 27) * 0x94D049BB133111EB & M
    return x ^ x >> 31


def folded(seed: int | str, operation: int, hashes: tuple[int, ...]) -> int:
    seed = seed if isinstance(seed, int) else xxhash.xxh64_intdigest(seed.encode())
    state = mixed(mixed(seed) ^ (operation << 32 | len(hashes)))
    for h in hashes:
        state = mixed(state ^ h)
    return state


def int_hash(value: int) -> int:
    return xxhash.xxh64_intdigest(b"\x01" + struct.pack("<q", value))


def text_hash(value: str) -> int:
    return xxhash.xxh64_intdigest(b"\x03" + value.encode())


def bucket_hash(value: float, edges: list[float]) -> int:
    lower = max([-float("inf"), *(edge for edge in edges if edge <= value)])
    return xxhash.xxh64_intdigest(b"\x05" + struct.pack("<d", lower))


def part_hash(part: int, value: int) -> int:
    return xxhash.xxh64_intdigest(bytes([6, part]) + struct.pack("<q", value))


def null_hash() -> int:
    return xxhash.xxh64_intdigest(b"\x00")


Row = dict[str, Any]
