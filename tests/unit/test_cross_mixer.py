# SPDX-License-Identifier: Apache-2.0
"""The Cartesian engine with TensorFlow's mixer, as a test-only hasher, gives TensorFlow's published ids.

TensorFlow's crossed_column (SparseCross, SparseCrossHashed) takes integers as they are and texts as their
FarmHash Fingerprint64, and folds them from the left with its FingerprintCat64, starting at the hash key:

    id = cat(cat(cat(key, a), b), c) mod buckets        mod 2^63 - 1 without buckets
    cat(x, y): K = 0xc6a4a7935bd1e995; r = (x ^ K) ^ shift(y * K) * K; r = r * K; r = shift(r) * K; shift(r)
    shift(x) = x ^ (x >> 47), everything modulo 2^64; the default key is 0xDECAFCAFFE

(FIELD.md's "reference values from outside"; the product runs over the columns as itertools.product does.)
Each fold here is the engine's: `fold_product` and `product_offsets` of feature_cross/kernel/fold.py, compiled
again around this mixer, so rows, order, limits and jagged layout are the engine's own code.
"""

import inspect
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from numpy.typing import NDArray

from feature_cross.kernel import fold

M = (1 << 64) - 1
K = 0xC6A4A7935BD1E995
KEY = 0xDECAFCAFFE
NO_BUCKETS = (1 << 63) - 1


def shift(x: int) -> int:
    return x ^ (x >> 47)


def cat(x: int, y: int) -> int:
    r = x ^ K
    r ^= shift(y * K & M) * K & M
    r = r * K & M
    r = shift(r) * K & M
    return shift(r)


def tensorflow_ids(columns: list[list[int]], key: int, buckets: int) -> list[int]:
    """The formula, in plain Python."""
    found = []
    for values in itertools.product(*columns):
        state = key
        for value in values:
            state = cat(state, value & M)
        found.append(state % (buckets or NO_BUCKETS))
    return found


@njit
def cat_kernel(x: Any, y: Any) -> Any:
    k = np.uint64(0xC6A4A7935BD1E995)
    s = np.uint64(47)
    z = np.uint64(y) * k
    r = (np.uint64(x) ^ k) ^ ((z ^ (z >> s)) * k)
    r = r * k
    r = (r ^ (r >> s)) * k
    return r ^ (r >> s)


def with_mixer(kernel: Any) -> Any:
    """The engine's product kernel with `mix(state ^ hash)` replaced, and nothing else."""
    source = inspect.getsource(kernel.py_func)
    changed = source.replace("mix(states[i] ^ hashes[j])", "cat_kernel(states[i], hashes[j])")
    assert changed != source, "the kernel folds by another expression; this test must follow it"
    body = changed[changed.index("def ") :]
    space: dict[str, Any] = {"cat_kernel": cat_kernel, "NDArray": NDArray, "np": np, "Any": Any}
    exec(body, space)
    return njit(space[kernel.py_func.__name__])


fold_product = with_mixer(fold.fold_product)


def engine_ids(rows: list[list[list[int]]], key: int, buckets: int) -> list[list[int]]:
    """As Run._product: rows of columns of values, one column after another."""
    count = len(rows)
    states, offsets = np.full(count, key, np.uint64), np.arange(count + 1)
    alive = np.array([all(columns) for columns in rows], np.uint8)
    for number in range(len(rows[0])):
        lists = [columns[number] for columns in rows]
        values = np.array([v & M for row in lists for v in row], np.uint64)
        value_offsets = np.cumsum([0, *map(len, lists)])
        out_offsets, past = fold.product_offsets(offsets, value_offsets, alive, 65_536, False)
        assert past == -1
        out = np.empty(out_offsets[-1], np.uint64)
        fold_product(states, offsets, values, value_offsets, out, out_offsets)
        states, offsets = out, out_offsets
    ids = (states % np.uint64(buckets or NO_BUCKETS)).tolist()
    return [ids[a:b] for a, b in itertools.pairwise(offsets)]


VALUES = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3)


@given(
    st.integers(1, 4).flatmap(
        lambda n: st.lists(
            st.lists(st.lists(VALUES, max_size=3), min_size=n, max_size=n), min_size=1, max_size=4
        )
    ),
    st.sampled_from([KEY, 0, M, 0xFFFFFFFFF]),
    st.sampled_from([0, 1, 1000, 2**20, NO_BUCKETS - 1]),
)
@settings(max_examples=150, deadline=None)
def test_the_engines_products_are_tensorflows(rows: list[list[list[int]]], key: int, buckets: int) -> None:
    wanted = [tensorflow_ids(columns, key, buckets) for columns in rows]
    assert engine_ids(rows, key, buckets) == wanted


INTEGERS = [[1, 2], [3], [4, 5, 6]]
FROZEN = [
    (KEY, 0, [714436992244595670, 847281864239754140, 8800918594554790120, 9098636870006543715,
              7976994937636002925, 2844147318025252863]),
    (KEY, 1000, [477, 947, 927, 715, 732, 863]),
    (0xFFFFFFFFF, 2**20, [672179, 100932, 822215, 276669, 978775, 972889]),
]  # fmt: skip
"""A three-way cross of integers, computed with the formula above: keys and modulo included."""


@pytest.mark.parametrize(("key", "buckets", "wanted"), FROZEN)
def test_a_three_way_cross_of_integers(key: int, buckets: int, wanted: list[int]) -> None:
    assert tensorflow_ids(INTEGERS, key, buckets) == wanted
    assert engine_ids([INTEGERS], key, buckets) == [wanted]


def fingerprint(text: str) -> int:
    """FarmHash Fingerprint64 of 1 to 3 or 8 to 16 bytes, after its definition (farmhashna, HashLen0to16)."""
    data = text.encode()
    k2 = 0x9AE16A3B2F90404F
    if len(data) < 4:
        y = data[0] + (data[len(data) >> 1] << 8)
        z = len(data) + (data[-1] << 2)
        return shift((y * k2 & M) ^ (z * 0xC3A5C85C97CB3127 & M)) * k2 & M

    def rotated(x: int, bits: int) -> int:
        return (x >> bits | x << (64 - bits)) & M

    factor = (k2 + 2 * len(data)) & M
    a = (int.from_bytes(data[:8], "little") + k2) & M
    b = int.from_bytes(data[-8:], "little")
    c = (rotated(b, 37) * factor + a) & M
    d = (rotated(a, 25) + b) * factor & M
    x = shift((c ^ d) * factor & M)
    return shift((d ^ x) * factor & M) * factor & M


TEXTS = [[fingerprint(f"batch1-FC{number}-F1")] for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("key", "buckets", "published"),
    [(KEY, 0, 1971693436396284976), (KEY + 1, 0, 4847552627144134031), (KEY, 100, 83)],
)
def test_ids_that_tensorflow_publishes_for_three_texts(key: int, buckets: int, published: int) -> None:
    """From the expected values of its sparse_cross_op_test.py (hashed output)."""
    assert tensorflow_ids(TEXTS, key, buckets) == [published]
    assert engine_ids([TEXTS], key, buckets) == [[published]]


def test_ids_that_tensorflow_publishes_for_integers_crossed_with_texts() -> None:
    """From feature_column_test.py: a bucketized (2,) column (integers, no fingerprint) x three text columns.

    crossed_column([bucketized, "c", crossed_column(["d1", "d2"], 10)], 15, hash_key=5), flattened to its
    four leaves; bucket b of element i of the bucketized column is the integer b + 3 i.
    """
    names = {"c": (["cA"], ["cB", "cC"]), "d1": (["d1A"], ["d1B", "d1C"]), "d2": (["d2A"], ["d2B", "d2C"])}
    numbers = ([0, 4], [1, 5])
    rows = [[numbers[r], *([fingerprint(t) for t in named[r]] for named in names.values())] for r in (0, 1)]
    published = [[6, 14], [0, 13, 8, 8, 10, 12, 2, 0, 1, 9, 8, 12, 2, 0, 10, 11]]
    assert [tensorflow_ids(row, 5, 15) for row in rows] == published
    assert engine_ids(rows, 5, 15) == published


@pytest.mark.parametrize("bits", [7, 46, 47, 48, 63])
def test_the_mixers_two_forms_agree_at_every_width(bits: int) -> None:
    for x, y in ((0, 0), (1, (1 << bits) - 1), (M, 1 << bits), (KEY, M)):
        assert int(cat_kernel(np.uint64(x), np.uint64(y))) == cat(x, y)
