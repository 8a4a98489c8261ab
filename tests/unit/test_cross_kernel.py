# SPDX-License-Identifier: Apache-2.0
"""The kernels one by one, against the xxhash package and plain loops."""

import ctypes
import itertools
import math
import mmap
from typing import Any

import numpy as np
import pytest
import xxhash
from numpy.typing import NDArray

from feature_cross import id_format as f
from feature_cross.engine.bag import PLAIN
from feature_cross.kernel.fold import fold_first, fold_next, fold_pair, fold_product, lay_out, product_offsets
from feature_cross.kernel.jagged import all_ascii, compact
from feature_cross.kernel.look_up import _NEAR, largest, look_up, look_up_first, look_up_next, look_up_pair
from feature_cross.kernel.subset import count_subsets, fold_rows, fold_subsets, sort_rows
from feature_cross.kernel.xxh64 import hash_ascii, hash_integers, hash_strings, hash_strings_alone

NONE = np.empty(0, np.uint8)


def jagged(rows: list[list[int]]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    flat = np.array([value for row in rows for value in row], np.uint64)
    return flat, np.cumsum([0, *map(len, rows)], dtype=np.int64)


def rows_of(values: NDArray[np.uint64], offsets: NDArray[np.int64]) -> list[list[int]]:
    return [values[a:b].tolist() for a, b in itertools.pairwise(offsets)]


@pytest.mark.parametrize("kernel", [hash_strings, hash_strings_alone])
@pytest.mark.parametrize("lengths", ["mixed", "equal", "runs", "long"])
def test_many_strings_equal_xxhash_in_groups_and_alone(kernel: Any, lengths: str) -> None:
    random = np.random.default_rng(8)
    count = 9_001  # past two chunks of the grouped kernel, and no multiple of its lanes
    drawn = {
        "mixed": random.integers(0, 140, count),
        "equal": np.full(count, 12),
        "runs": np.repeat(random.integers(0, 50, count // 7 + 1), 7)[:count],
        "long": random.integers(100, 300, count),
    }[lengths]
    offsets = np.concatenate([[0], np.cumsum(drawn)])
    data = random.integers(0, 256, offsets[-1], np.uint8)
    out = np.zeros(count, np.uint64)
    kernel(data, offsets.astype(np.int32), 3, out)
    wanted = [xxhash.xxh64_intdigest(b"\x03" + data[a:b].tobytes()) for a, b in itertools.pairwise(offsets)]
    assert out.tolist() == wanted
    begin = 4_000  # a slice of a larger column: offsets that do not begin at 0
    part = np.zeros(count - begin, np.uint64)
    kernel(data, offsets[begin:], 3, part)
    assert part.tolist() == wanted[begin:]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mprotect"), reason="needs mprotect")
def test_no_byte_outside_of_the_buffer_is_touched() -> None:
    """Between two pages that nobody may read, for every length of the grouped kernel."""
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 3 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    for guard in (address, address + 2 * page):
        assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
    inside = np.frombuffer(memory, np.uint8, page, page)
    inside[:] = np.random.default_rng(9).integers(0, 256, page, np.uint8)
    try:
        for length in range(130):
            used = 9 * length
            offsets = np.arange(10, dtype=np.int32) * length
            for data in (inside[:used], inside[page - used :]):
                _check_hashes(data, offsets)
            # in groups: each length eight times, so that a whole vector has it, at either end
            sizes = np.tile([length, length // 2], 8)
            offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
            for data in (inside[: offsets[-1]], inside[page - offsets[-1] :]):
                _check_hashes(data, offsets)
    finally:
        for guard in (address, address + 2 * page):
            assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 3) == 0


def _check_hashes(data: NDArray[np.uint8], offsets: NDArray[Any]) -> None:
    out = np.zeros(len(offsets) - 1, np.uint64)
    hash_strings(data, offsets, 3, out)
    strings = [data[a:b].tobytes() for a, b in itertools.pairwise(offsets)]
    assert out.tolist() == [xxhash.xxh64_intdigest(b"\x03" + string) for string in strings]


@pytest.mark.parametrize("width", [np.int32, np.int64])
def test_hash_ascii_stops_at_the_chunk_that_one_must_look_at(width: type) -> None:
    count, length = 9_001, 13
    data = np.random.default_rng(10).integers(0, 128, count * length, np.uint8)
    offsets: NDArray[Any] = np.arange(count + 1, dtype=width) * length
    wanted, out = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
    hash_strings(data, offsets, 3, wanted)
    assert hash_ascii(data, offsets, 3, out) == count and out.tolist() == wanted.tolist()
    for few in (0, 1, 7, 8):
        out = np.zeros(few, np.uint64)
        assert hash_ascii(data, offsets[: few + 1], 3, out) == few and out.tolist() == wanted[:few].tolist()
    for string, done in ((0, 0), (4095, 0), (4096, 4096), (9_000, 8192)):
        marked, out = data.copy(), np.zeros(count, np.uint64)
        marked[string * length] = 0xC3
        assert hash_ascii(marked, offsets, 3, out) == done
        assert out.tolist() == [*wanted[:done].tolist(), *[0] * (count - done)]
    for place, value in ((0, -1), (5000, 0), (9_001, count * length + 1)):  # no such bytes: none are read
        broken = offsets.copy()
        broken[place] = value
        assert hash_ascii(data, broken, 3, np.zeros(count, np.uint64)) < count


@pytest.mark.parametrize("width", [np.int32, np.int64])
def test_hash_strings_equals_xxhash_at_every_length(width: type) -> None:
    random = np.random.default_rng(3)
    strings = [random.bytes(length) for length in range(300)] + [random.bytes(70_001)]
    data = np.frombuffer(b"".join(strings), np.uint8)
    offsets: NDArray[Any] = np.cumsum([0, *map(len, strings)]).astype(width)
    for tag in (0x03, 0xFF, 0x00):
        out = np.empty(len(strings), np.uint64)
        hash_strings(data, offsets, tag, out)
        assert out.tolist() == [xxhash.xxh64_intdigest(bytes([tag]) + s) for s in strings]


def test_hash_strings_reads_no_byte_past_a_string() -> None:
    for length in range(40):
        alone = np.full(length, 97, np.uint8)
        followed = np.concatenate([alone, np.full(64, 255, np.uint8)])
        offsets = np.array([0, length], np.int32)
        first, second = np.empty(1, np.uint64), np.empty(1, np.uint64)
        hash_strings(alone, offsets, 3, first)
        hash_strings(followed, offsets, 3, second)
        assert first == second


def test_hash_integers_equals_xxhash_for_both_prefixes() -> None:
    values = np.concatenate(
        [np.random.default_rng(4).integers(0, 2**64, 999, np.uint64), [np.uint64(2**64 - 1)]]
    )
    for prefix in (b"\x01", b"\x06\x08", b"\xff\xff"):
        out = np.empty(len(values), np.uint64)
        hash_integers(values, int.from_bytes(prefix, "little"), len(prefix), out)
        wanted = [xxhash.xxh64_intdigest(prefix + int(v).to_bytes(8, "little")) for v in values]
        assert out.tolist() == wanted


def test_folds_equal_the_definition() -> None:
    a, b, c = np.random.default_rng(5).integers(0, 2**64, (3, 50), np.uint64)
    for count, columns in enumerate(([a], [a, b], [a, b, c]), 1):
        begin = np.uint64(f.start(9, 1, count))
        out = np.empty(50, np.uint64)
        if count == 1:
            fold_first(begin, a, out, *PLAIN)
        else:
            fold_pair(begin, a, b, out, *PLAIN)
        for column in columns[2:]:
            fold_next(out, column, *PLAIN)
        assert out.tolist() == [
            f.feature_hash(9, 1, list(map(int, row))) for row in zip(*columns, strict=True)
        ]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 1000])
@pytest.mark.parametrize("distinct", [200, _NEAR + 1])
def test_look_ups_equal_the_folds_over_looked_up_hashes(dtype: Any, rows: int, distinct: int) -> None:
    random = np.random.default_rng(7)
    table, other = random.integers(0, 2**64, (2, distinct), np.uint64)
    last = min(distinct, np.iinfo(dtype).max + 1)
    first, second = random.integers(last - 200, last, (2, rows)).astype(dtype)
    begin, keep, top = np.uint64(f.start(9, 1, 2)), np.uint64((1 << 56) - 1), np.uint64(9 << 56)
    out, wanted = np.empty((2, rows), np.uint64)
    look_up(table, first, out)
    assert out.tolist() == [int(table[i]) for i in first]
    look_up_first(begin, table, first, keep, top, out)
    fold_first(begin, table[first], wanted, keep, top)
    assert out.tolist() == wanted.tolist()
    fold_pair(begin, table[first], other[second], wanted, keep, top)
    look_up_first(begin, table, first, *PLAIN, out)
    look_up_next(out, other, second, keep, top)
    assert out.tolist() == wanted.tolist()
    states = np.empty(distinct, np.uint64)
    fold_first(begin, table, states, *PLAIN)
    look_up_pair(states, first, other, second, keep, top, out)
    assert out.tolist() == wanted.tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_largest_is_the_largest(dtype: Any) -> None:
    values = np.random.default_rng(8).integers(0, 200, 999).astype(dtype)
    for place in (0, 500, 998):
        marked = values.copy()
        marked[place] = np.iinfo(dtype).max
        assert largest(marked) == np.iinfo(dtype).max
    assert largest(values) == max(values.tolist())
    assert largest(values[:0]) == 0


def test_lay_out_equals_the_definition() -> None:
    hashes = np.random.default_rng(6).integers(0, 2**64, 50, np.uint64)
    for bits, slot in ((1, 1), (12, 4095), (32, 7)):
        out = hashes.copy()
        lay_out(out, np.uint64((1 << (64 - bits)) - 1), np.uint64(slot << (64 - bits)))
        assert out.tolist() == [f.to_id(int(h), slot, bits) for h in hashes]


def test_product_is_itertools_product_and_cuts_to_its_first_ids() -> None:
    left, left_offsets = jagged([[1, 2, 3], [4], [], [5, 6]])
    right, right_offsets = jagged([[7, 8], [9], [1], []])
    alive = np.array([1, 1, 0, 0], np.uint8)
    assert product_offsets(left_offsets, right_offsets, alive, 5, False)[1] == 0
    for limit in (6, 5, 1):
        offsets, past = product_offsets(left_offsets, right_offsets, alive, limit, True)
        assert past == -1
        out = np.zeros(offsets[-1], np.uint64)
        fold_product(left, left_offsets, right, right_offsets, out, offsets)
        wanted = [[f.mix(a ^ b) for a in (1, 2, 3) for b in (7, 8)][:limit], [f.mix(4 ^ 9)], [], []]
        assert rows_of(out, offsets) == wanted


@pytest.mark.parametrize("multiset", [False, True])
@pytest.mark.parametrize("length", [0, 1, 2, 31, 32, 33, 200])
def test_sort_rows_on_both_sides_of_its_two_sorts(length: int, multiset: bool) -> None:
    random = np.random.default_rng(length)
    rows = [random.integers(0, high, length, np.uint64).tolist() for high in (3, 2**64 - 1)]
    wanted = [sorted(row if multiset else set(row)) for row in rows]
    assert rows_of(*sort_rows(*jagged(rows), multiset)) == wanted


@pytest.mark.parametrize("sizes", [(1,), (2,), (3,), (1, 2), (3, 1), (4, 2, 16)])
def test_subsets_equal_itertools(sizes: tuple[int, ...]) -> None:
    rows = [[], [5], [5, 5], [1, 2, 3], [1, 1, 2, 2, 2], [7] * 6, list(range(9))]
    values, offsets = jagged(rows)
    size_array = np.array(sizes, np.int64)
    starts = np.array([f.start(1, 3, size) for size in sizes], np.uint64)
    chosen = [[c for k in sizes for c in sorted(set(itertools.combinations(row, k)))] for row in rows]
    for limit in (10**6, 3):
        out_offsets, past = count_subsets(values, offsets, size_array, limit, True)
        assert past == -1
        out = np.zeros(out_offsets[-1], np.uint64)
        fold_subsets(values, offsets, size_array, starts, out, out_offsets)
        wanted = [[f.feature_hash(1, 3, list(c)) for c in row][:limit] for row in chosen]
        assert rows_of(out, out_offsets) == wanted
    most = max(map(len, chosen))
    assert count_subsets(values, offsets, size_array, most, False)[1] == -1
    if most:
        assert count_subsets(values, offsets, size_array, most - 1, False)[1] >= 0


@pytest.mark.parametrize("length", [0, 1, 5, 16, 31, 32, 33])
def test_counts_of_subsets_on_both_sides_of_the_closed_form(length: int) -> None:
    row = list(range(length))
    for size in range(1, 17):
        values, offsets = jagged([row, [*row, length, length]])
        found, past = count_subsets(values, offsets, np.array([size], np.int64), 2**40, True)
        with_pair = math.comb(length + 1, size) + (math.comb(length, size - 2) if size > 1 else 0)
        assert past == -1 and np.diff(found).tolist() == [math.comb(length, size), with_pair], size


def test_ascii_is_told_from_the_rest_and_from_offsets_that_lie() -> None:
    data = np.frombuffer("abcdeé".encode(), np.uint8)
    for offsets, wanted in (
        ([0, 2, 5], True), ([5, 5], True), ([0], True), ([0, 5, 7], False), ([5, 7], False),
        ([1, 3, 2], False), ([-1, 3], False), ([0, 8], False), ([0, 9, 3], False),
    ):  # fmt: skip
        for width in (np.int32, np.int64):
            assert all_ascii(data, np.array(offsets, width)) is wanted, offsets


def test_counting_the_subsets_of_a_long_list_does_not_overflow() -> None:
    values, offsets = jagged([list(range(100_000))])
    assert count_subsets(values, offsets, np.array([16], np.int64), 65_536, False)[1] == 0
    repeated, _ = jagged([[1] * 50_000 + [2] * 50_000])
    out_offsets, past = count_subsets(repeated, offsets, np.array([16], np.int64), 65_536, False)
    assert past == -1 and out_offsets.tolist() == [0, 17]


def test_fold_rows_gives_one_hash_per_row_that_is_not_empty() -> None:
    rows = [[1, 2], [], [3]]
    out, offsets = fold_rows(*jagged(rows), np.uint64(f.mix(8)), 2)
    assert rows_of(out, offsets) == [[f.feature_hash(8, 2, row)] if row else [] for row in rows]


@pytest.mark.parametrize("own_id", [False, True])
@pytest.mark.parametrize(("length_max", "last"), [(-1, True), (2, True), (2, False), (1, True)])
def test_compact_drops_or_names_nulls_before_it_counts(own_id: bool, length_max: int, last: bool) -> None:
    values, offsets = jagged([[1, 0, 2, 3], [], [], [0, 0]])
    nulls = (values == 0).view(np.uint8)
    null_rows = np.array([0, 1, 0, 0], np.uint8)
    out = rows_of(*compact(values, offsets, nulls, null_rows, np.uint64(99), own_id, length_max, last))
    wanted = [[1, 99, 2, 3], [99], [], [99, 99]] if own_id else [[1, 2, 3], [], [], []]
    if length_max > 0:
        wanted = [row[-length_max:] if last else row[:length_max] for row in wanted]
    assert out == wanted


def test_compact_without_masks_only_cuts() -> None:
    values, offsets = jagged([[1, 2, 3], [4]])
    assert rows_of(*compact(values, offsets, NONE, NONE, np.uint64(0), True, 2, True)) == [[2, 3], [4]]
