# SPDX-License-Identifier: Apache-2.0
"""What follows from a memory_budget."""

from pathlib import Path

from rowhouse import limit

MIB = 1 << 20


def test_the_largest_message_and_what_is_held_at_once_follow_from_the_budget() -> None:
    figures = {
        budget: (limit.in_flight_bytes_max(budget * MIB) // MIB, limit.message_bytes_max(budget * MIB) // MIB)
        for budget in (1, 192, 1024, 4096, 65536)
    }
    assert figures == {1: (32, 8), 192: (48, 12), 1024: (256, 64), 4096: (1024, 256), 65536: (1024, 256)}
    beyond = {budget: limit.beyond_budget_bytes(budget * MIB) // MIB for budget in (192, 1024, 4096)}
    assert beyond == {192: 488, 1024: 1216, 4096: 3904}
    page = (Path(__file__).resolve().parents[2] / "docs" / "config.md").read_text(encoding="utf-8")
    assert all(f"{figure:,} MiB" in page for figure in beyond.values())
    assert limit.message_bytes_max(1 << 40) == limit.MESSAGE_BYTES_MAX
