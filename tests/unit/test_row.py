# SPDX-License-Identifier: Apache-2.0
"""The layout of a row against docs/row_format.md, its worked example included."""

import re
from pathlib import Path

import numpy as np
import pytest
from rowhouse import dtype
from rowhouse.mix import mix64

from ps_server.disk.row import LSN_BYTES, RowLayout, get_lsn, put_lsn
from ps_server.table.config import TableConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "row_format.md"


def _layout(**keys: object) -> RowLayout:
    return TableConfig.model_validate({"name": "t", "dim": 2, **keys}).layout


def test_the_worked_example_of_the_page_is_right() -> None:
    example = PAGE.read_text(encoding="utf-8").split("Worked example")[1]

    def shown(name: str) -> bytes:
        line = next(line for line in example.splitlines() if line.startswith(f"    {name} "))
        return bytes.fromhex("".join(re.findall(r"(?<= )[0-9a-f]{2}(?= |$)", line)))

    key, value = shown("key"), shown("value")
    assert int.from_bytes(key, "big") == int(mix64(np.array([7], np.uint64))[0])
    layout = _layout(dtype="fp16", optimizer={"kind": "sgd", "learning_rate": 0.1})
    values = np.zeros((1, layout.value_bytes), np.uint8)
    values[0, :4] = np.array([1.0, -2.0], "<f2").view(np.uint8)
    put_lsn(values, 258)
    assert values.tobytes() == value


@pytest.mark.parametrize(
    ("keys", "stored", "stride"),
    [
        ({"dim": 16, "optimizer": {"kind": "sgd"}}, 64, 72),
        ({"dim": 16, "dtype": "fp16", "optimizer": {"kind": "sgd"}}, 32, 40),
        ({"dim": 3, "dtype": "bf16", "optimizer": {"kind": "sgd"}}, 8, 16),
        ({"dim": 1, "dtype": "fp16", "optimizer": {"kind": "adagrad"}}, 8, 16),
        ({"dim": 16, "optimizer": {"kind": "adagrad"}}, 128, 136),
        ({"dim": 2, "optimizer": {"kind": "sgd"}, "eviction": [{"kind": "ttl", "ttl_s": 1}]}, 12, 24),
    ],
)
def test_sizes_of_records(keys: dict[str, object], stored: int, stride: int) -> None:
    layout = _layout(**keys)
    assert (layout.stored_bytes, layout.stride, layout.value_bytes) == (stored, stride, stored + LSN_BYTES)
    assert layout.state_at % 4 == 0 and layout.stride % 8 == 0


def test_metadata_words_exist_only_for_the_policies_that_need_them() -> None:
    sgd: dict[str, object] = {"optimizer": {"kind": "sgd"}}
    frequent = {"kind": "least_frequent", "max_rows": 5}
    plain, norm = _layout(**sgd), _layout(**sgd, eviction=[{"kind": "l2_norm", "min_l2_norm": 0.1}])
    assert plain == norm and plain.stored_bytes == 8
    count = _layout(**sgd, eviction=[frequent])
    assert (count.push_count_at, count.stored_bytes) == (count.state_at, 12)
    both = _layout(**sgd, eviction=[frequent, {"kind": "ttl", "ttl_s": 1}])
    assert (both.push_time_at, both.push_count_at, both.stored_bytes) == (
        both.state_at,
        both.state_at + 4,
        16,
    )


def test_lsns_have_48_bits_and_come_back() -> None:
    layout = RowLayout(dim=1, dtype=dtype.FLOAT32, state_size=0, push_time=False, push_count=False)
    lsns = np.array([0, 1, 255, 256, 2**32 + 5, 2**48 - 1], np.uint64)
    values = np.full((lsns.shape[0], layout.value_bytes), 0xEE, np.uint8)
    put_lsn(values, lsns)
    np.testing.assert_array_equal(get_lsn(values), lsns)
    assert (values[:, :4] == 0xEE).all(), "the weights are not touched"
    put_lsn(values, 77)
    assert (get_lsn(values) == 77).all()
