# SPDX-License-Identifier: Apache-2.0
"""What the client refuses before anything is sent, and what the messages name."""

import numpy as np
import pytest
from rowhouse import dtype
from rowhouse.error import InvalidRequestError, LimitExceededError, UnknownTableError
from rowhouse.limit import IDS_PER_REQUEST_MAX

from ps_client.table import Table
from ps_client.validation import as_gradients, as_ids, check_learning_rate, check_out, wire_code

from .fake_shard import local_client, make_shards

USER = Table("user", 2, "fp32", {})
TWO = np.array([5, 6], np.uint64)


@pytest.mark.parametrize("kind", ["u1", "i4", "i8", "<u8", ">u8", ">i4"])
def test_integer_ids_of_any_width_are_taken(kind: str) -> None:
    ids = as_ids(USER, np.array([1, 0, 7], kind))
    assert ids.dtype == np.uint64 and ids.dtype.isnative and ids.tolist() == [1, 0, 7]


def test_uint64_ids_pass_as_they_are() -> None:
    ids = np.array([0, 2**63, 2**64 - 1], np.uint64)
    assert as_ids(USER, ids) is ids or np.shares_memory(as_ids(USER, ids), ids)
    assert as_ids(USER, [2**64 - 1, 3, 2**53 + 1]).tolist() == [2**64 - 1, 3, 2**53 + 1]
    assert as_ids(USER, []).shape == (0,)
    assert as_ids(USER, ids[::2]).flags.c_contiguous


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([1, 2, -3, -4], r"'user': ids\[2\] is -3"),
        ([1.0, 2.0], "dtype float64"),
        (np.array([1], np.float32), "dtype float32"),
        ([True], "dtype bool"),
        (["a"], "dtype <U1"),
        ([[1], [2]], r"shape \(2, 1\)"),
        (3, r"shape \(\)"),
        ([1, 2**64], r"ids\[1\] is 18446744073709551616; an id is 0 to"),
        ([2**63, -1], r"ids\[1\] is -1; an id is 0 to"),
        ([2**64, None], "dtype object"),
    ],
)
def test_bad_ids_are_named(ids: object, text: str) -> None:
    with pytest.raises(InvalidRequestError, match=text):
        as_ids(USER, ids)  # type: ignore[arg-type]


def test_too_many_ids() -> None:
    many = np.broadcast_to(np.uint64(1), (IDS_PER_REQUEST_MAX + 1,))
    with pytest.raises(
        LimitExceededError, match=f"{IDS_PER_REQUEST_MAX + 1} .* at most {IDS_PER_REQUEST_MAX}"
    ):
        as_ids(USER, many)


def test_gradients_of_any_floating_dtype_become_fp32() -> None:
    values = np.array([[1, 2], [3, 4]], np.float32)
    assert np.shares_memory(as_gradients(USER, TWO, values, dtype.FLOAT32), values)
    for kind in (np.float16, np.float64):
        given = as_gradients(USER, TWO, values.astype(kind), dtype.FLOAT32)
        assert given.dtype == np.float32 and given.tolist() == values.tolist()
    assert as_gradients(USER, TWO, values.T, dtype.FLOAT32).flags.c_contiguous


@pytest.mark.parametrize(
    ("gradients", "code", "text"),
    [
        ([[1.0, 2.0]], dtype.FLOAT32, r"shape \(1, 2\); 2 ids of dim 2 need \(2, 2\)"),
        ([[1, 2], [3, 4]], dtype.FLOAT32, "dtype int64"),
        ([[1.0, 2.0], [np.nan, 4.0]], dtype.FLOAT32, r"gradients\[1, 0\] is nan for id 6"),
        ([[1.0, np.inf], [np.nan, 4.0]], dtype.FLOAT32, r"gradients\[0, 1\] is inf for id 5"),
        ([[1.0, 2.0], [3.0, 1e39]], dtype.FLOAT32, r"gradients\[1, 1\] is inf for id 6"),
        ([[1.0, 2.0], [-7e4, 4.0]], dtype.FLOAT16, r"\[1, 0\] is -70000.0 for id 6; .*fp16 is at most 65504"),
        ([[3.4e38, 2.0], [1.0, 4.0]], dtype.BFLOAT16, r"gradients\[0, 0\] is 3.4.* for id 5; .*bf16"),
    ],
)  # fmt: skip
def test_bad_gradients_are_named(gradients: object, code: int, text: str) -> None:
    with pytest.raises(InvalidRequestError, match=text):
        as_gradients(USER, TWO, gradients, code)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("optimizer", "refused"),
    [
        ({"kind": "adagrad"}, True),
        ({"kind": "adam", "clip_value": 1e30}, True),
        ({"kind": "adam", "clip_value": None, "clip_norm": 10.0}, False),
        ({"kind": "ftrl", "clip_value": 1.0}, False),
        ({"kind": "sgd"}, False),
    ],
)
def test_a_gradient_that_would_spoil_the_state_is_named(optimizer: dict[str, object], refused: bool) -> None:
    table = Table("user", 2, "fp32", {"optimizer": optimizer})
    largest = np.nextafter(np.float32(2.0**51), np.float32(0))
    values = np.array([[1.0, 2.0], [3.0, -largest]], np.float32)
    assert np.shares_memory(as_gradients(table, TWO, values, dtype.FLOAT32), values)
    values[1, 1] = -(2.0**51)
    if not refused:
        assert np.shares_memory(as_gradients(table, TWO, values, dtype.FLOAT32), values)
        return
    text = r"gradients\[1, 1\] is -2\S+ for id 6; .* sums squares: it must be below 2.2518e\+15"
    with pytest.raises(InvalidRequestError, match=text):
        as_gradients(table, TWO, values, dtype.FLOAT32)


@pytest.mark.parametrize(
    "out",
    [
        [[0.0, 0.0]],
        np.zeros((3, 2), np.float32),
        np.zeros((2, 2)),
        np.zeros((2, 4), np.float32)[:, ::2],
        np.frombuffer(bytes(16), np.float32).reshape(2, 2),
        np.frombuffer(bytearray(17), np.float32, offset=1).reshape(2, 2),
    ],
)
def test_a_wrong_out_is_refused(out: object) -> None:
    with pytest.raises(InvalidRequestError, match=r"'user': out is .*\(2, 2\)"):
        check_out(USER, 2, out)  # type: ignore[arg-type]
    check_out(USER, 2, np.zeros((2, 2), np.float32))


@pytest.mark.parametrize("rate", [-0.1, np.nan, np.inf])
def test_a_wrong_learning_rate_is_refused(rate: float) -> None:
    with pytest.raises(InvalidRequestError, match="learning_rate is"):
        check_learning_rate(rate)
    assert check_learning_rate(0) == 0.0 and check_learning_rate(None) is None


def test_a_wrong_wire_dtype_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"'fp8'; it must be one of \['bf16', 'fp16', 'fp32'\]"):
        wire_code("fp8")


def test_nothing_is_sent_when_one_table_of_a_step_is_wrong() -> None:
    """Invariant 1 of client.py."""
    shards = make_shards(2)
    with local_client(shards) as client:
        good = (TWO, np.ones((2, 4), np.float32))
        with pytest.raises(UnknownTableError, match=r"no table is called 'itme'; did you mean 'item'\?"):
            client.push_many({"user": good, "itme": good})
        with pytest.raises(InvalidRequestError, match="table 'item': gradients have shape"):
            client.push_many({"user": good, "item": good})
        with pytest.raises(UnknownTableError, match="known ones are 'item', 'user'"):
            client.pull_many({"user": TWO, "zzz": TWO})
        with pytest.raises(InvalidRequestError, match="mode is 'on'"):
            client.freeze("user", "on")  # type: ignore[arg-type]
    assert not any(shard.pushes or shard.pulls or shard.frozen for shard in shards)


def test_a_sum_of_finite_gradients_that_overflows_is_refused() -> None:
    shards = make_shards(1)
    with local_client(shards) as client:
        with pytest.raises(InvalidRequestError, match=r"is inf for id 9"):
            client.push("item", [9, 9], np.full((2, 3), 3e38, np.float32))
        with pytest.raises(InvalidRequestError, match=r"wire of fp16 is at most 65504"):
            local_client(shards, "fp16").push("item", [9, 9], np.full((2, 3), 6e4, np.float32))
    assert not shards[0].pushes
