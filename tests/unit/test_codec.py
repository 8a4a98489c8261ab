# SPDX-License-Identifier: Apache-2.0
"""The hand-written codec against the generated stubs, both ways, and against malformed bytes."""

import contextlib
from collections import Counter

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from rowhouse import codec, dtype, message
from rowhouse.control import METHODS
from rowhouse.error import InvalidRequestError, LimitExceededError, RowhouseError
from rowhouse.v1 import rowhouse_pb2 as pb

IDS = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)


def _gradients(code: int, rate: float | None) -> message.TableGradients:
    values = np.linspace(-2, 2, 12, dtype=np.float32).reshape(4, 3)
    return message.TableGradients("täble", code, IDS, dtype.narrow(values, code), rate)


@pytest.mark.parametrize("code", sorted(dtype.NAMES))
@pytest.mark.parametrize("rate", [None, 0.0, 0.125])
def test_push_request_equals_the_stub(code: int, rate: float | None) -> None:
    ours = message.PushRequest(2**64 - 1, 7, 300, (_gradients(code, rate), _gradients(code, rate)))
    data = codec.encode_push_request(ours)
    stub = pb.PushRequest.FromString(data)
    assert stub.SerializeToString(deterministic=True) == data
    assert stub.tables[0].HasField("learning_rate") == (rate is not None)
    back = codec.decode_push_request(stub.SerializeToString())
    assert (back.map_version, back.client_id, back.sequence) == (2**64 - 1, 7, 300)
    assert back.tables[1].table == "täble" and back.tables[1].learning_rate == rate
    np.testing.assert_array_equal(back.tables[1].ids, IDS)
    np.testing.assert_array_equal(back.tables[0].gradients, ours.tables[0].gradients)


def _assigned(code: int, more: bool) -> message.TableEdit:
    values, ones = np.linspace(-2, 2, 12, dtype=np.float32).reshape(4, 3), np.ones(4, np.float32)
    weights = dtype.narrow(values, code)
    return message.TableEdit("täble", code, IDS, weights, *((values[:, :2], ones, ones) if more else ()))


EDITS = [_assigned(1, True), _assigned(2, False), message.TableEdit("t", 0, IDS)]


@pytest.mark.parametrize("edit", EDITS)
def test_rows_by_hand_equal_the_stub(edit: message.TableEdit) -> None:
    data = codec.encode_push_request(message.PushRequest(1, 2, 3, (), (edit, edit)))
    stub = pb.PushRequest.FromString(data)
    assert stub.SerializeToString(deterministic=True) == data
    assert stub.tables[0].remove == (edit.weights is None)
    request = codec.decode_push_request(data)
    assert not request.tables and request.changes == request.edits
    for name in ("ids", "weights", "state", "shows", "clicks"):
        np.testing.assert_array_equal(getattr(request.edits[1], name), getattr(edit, name))
    chosen = request.edits[0].chosen(np.array([3, 1]))
    np.testing.assert_array_equal(chosen.ids, IDS[[3, 1]])
    assert chosen.nbytes * 2 == edit.nbytes


WEIGHTS = {"dim": 3, "dtype": 1, "weights": bytes(12)}
UNFIT = [
    {"remove": True, "dim": 3}, {"remove": True, "gradients": bytes(12)}, {"remove": True, "shows": bytes(4)},
    {"remove": True, "learning_rate": 0.0}, WEIGHTS | {"gradients": b"1"}, WEIGHTS | {"weights": bytes(11)},
    WEIGHTS | {"dtype": 9}, WEIGHTS | {"state": b"123"},
    {"dim": 3, "dtype": 1, "gradients": bytes(12), "state": bytes(4)},
]  # fmt: skip


@pytest.mark.parametrize("fields", UNFIT)
def test_rows_by_hand_whose_fields_do_not_fit_are_refused(fields: dict[str, object]) -> None:
    part = pb.TableGradients(table="t", count=1, ids=bytes(8), **fields)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="table 't'"):
        codec.decode_push_request(pb.PushRequest(sequence=1, tables=[part]).SerializeToString())


def test_rows_by_hand_and_gradients_in_one_push_are_refused() -> None:
    both = [*codec.push_request_parts(message.PushRequest(1, 2, 3, (), (EDITS[2],)))]
    both += codec.push_request_parts(message.PushRequest(0, 0, 0, (_gradients(1, None),)))
    with pytest.raises(InvalidRequestError, match="not both"):
        codec.decode_push_request(b"".join(both))


@pytest.mark.parametrize("read_only", [False, True])
def test_pull_request_equals_the_stub(read_only: bool) -> None:
    empty = message.TableIds("b", 1, IDS[:0])
    ours = message.PullRequest(5, dtype.FLOAT16, read_only, (message.TableIds("a", 16, IDS), empty))
    data = codec.encode_pull_request(ours)
    stub = pb.PullRequest.FromString(data)
    assert stub.SerializeToString(deterministic=True) == data
    assert stub.read_only is read_only and stub.tables[0].count == 4
    back = codec.decode_pull_request(data)
    assert back.tables[1].ids.shape == (0,) and back.tables[1].dim == 1
    np.testing.assert_array_equal(back.tables[0].ids, IDS)


@pytest.mark.parametrize("since", [0, 300])
def test_a_pull_of_changes_equals_the_stub(since: int) -> None:
    ours = message.PullRequest(5, dtype.FLOAT16, False, (message.TableIds("a", 16, IDS),), since)
    data = codec.encode_pull_request(ours)
    stub = pb.PullRequest.FromString(data)
    assert stub.SerializeToString(deterministic=True) == data and stub.changed_since == since
    assert codec.decode_pull_request(data).changed_since == since
    rows, bits = np.arange(4, dtype=np.float32).reshape(2, 2), np.array([0b101], np.uint8)
    data = codec.encode_pull_response(message.PullResponse(9, (message.TableRows("a", 1, rows, bits),)))
    answer = pb.PullResponse.FromString(data)
    assert answer.SerializeToString(deterministic=True) == data and answer.tables[0].changed == b"\x05"
    np.testing.assert_array_equal(codec.decode_pull_response(data).tables[0].changed, bits)
    answer.tables[0].changed = b"\x07"
    with pytest.raises(InvalidRequestError, match="2 of them, and 3 are said"):
        codec.decode_pull_response(answer.SerializeToString())


def test_responses_equal_the_stubs() -> None:
    rows = message.TableRows("a", dtype.FLOAT32, np.arange(6, dtype=np.float32).reshape(3, 2))
    data = codec.encode_pull_response(message.PullResponse(9, (rows,)))
    assert pb.PullResponse.FromString(data).SerializeToString(deterministic=True) == data
    np.testing.assert_array_equal(codec.decode_pull_response(data).tables[0].rows, rows.rows)
    data = codec.encode_push_response(message.PushResponse(2**40, True))
    assert pb.PushResponse.FromString(data).lsn == 2**40
    assert codec.decode_push_response(data) == message.PushResponse(2**40, True)


def test_shows_and_clicks_travel_with_the_gradients() -> None:
    events = np.array([1, 2, 0, 0.5], np.float32)
    table = message.TableGradients("t", dtype.FLOAT32, IDS, np.ones((4, 1), np.float32), None, None, events)
    data = codec.encode_push_request(message.PushRequest(1, 2, 3, (table,)))
    assert pb.PushRequest.FromString(data).SerializeToString(deterministic=True) == data
    back = codec.decode_push_request(data).tables[0]
    assert back.shows is None and back.clicks is not None
    np.testing.assert_array_equal(back.clicks, events)


def test_a_contribution_equals_the_stub() -> None:
    member = pb.Member(group=2**64 - 1, trainer=3, trainers=4, name="höst:1", pace=pb.PACE_BSP, go_on=True)
    push = message.PushRequest(1, 2**64 - 1, 9, (_gradients(dtype.FLOAT16, 0.5),))
    for sent in (push, message.PushRequest(0, 0, 0, ())):
        data = codec.encode_contribution(message.Contribution(member, sent))
        stub = pb.ContributeRequest.FromString(data)
        assert stub.SerializeToString(deterministic=True) == data
        assert stub.HasField("push") and stub.push.sequence == sent.sequence
        back = codec.decode_contribution(data)
        assert back.member == member and len(back.push.tables) == len(sent.tables)
    np.testing.assert_array_equal(codec.decode_contribution(codec.encode_contribution(
        message.Contribution(member, push))).push.tables[0].gradients, push.tables[0].gradients)  # fmt: skip
    with pytest.raises(InvalidRequestError, match="member of a group"):
        codec.decode_contribution(b"\x0a\x02\x0a\x7f")


def test_unknown_fields_are_skipped() -> None:
    extra = b"\xf8\x07\x05" + b"\xfa\x07\x02hi"  # field 127 as varint and as bytes
    data = codec.encode_push_response(message.PushResponse(3, False)) + extra
    assert codec.decode_push_response(data).lsn == 3


REPEATED = 200_000


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (b"\x08\x01", "field 1 is there twice"),
        (b"\x78\x01", "more than 64 unknown fields"),
        (b"\x7a\x00", "more than 64 unknown fields"),
        (b"\x22\x00", "more than 1024 tables"),
    ],
)
def test_what_is_repeated_ends_the_reading_at_once(
    one: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 4, of a message and of what is nested in it."""
    read, varint = Counter[str](), codec._read_varint

    def counted(buffer: memoryview, position: int) -> tuple[int, int]:
        read["varints"] += 1
        return varint(buffer, position)

    monkeypatch.setattr(codec, "_read_varint", counted)
    body = one * REPEATED
    with pytest.raises(InvalidRequestError, match=words):
        codec.decode_push_request(body)
    with pytest.raises(InvalidRequestError, match=words):
        codec.decode_pull_request(body)
    contribution = codec._head(2, len(body)) + body
    with pytest.raises(InvalidRequestError, match=words):
        codec.decode_contribution(contribution)
    if one != b"\x22\x00":  # here: the table's ids
        nested = b"\x22" + codec._varint(len(body)) + body
        twice = "field 1 has wire type 0" if one == b"\x08\x01" else words
        with pytest.raises(InvalidRequestError, match=twice):
            codec.decode_push_request(nested)
        with pytest.raises(InvalidRequestError, match="field 5 is there twice"):
            codec.decode_push_request(b"\x22\x04\x2a\x00\x2a\x00")
    assert read["varints"] < 10_000


def test_a_control_request_is_small_and_keeps_nothing_unknown() -> None:
    join = METHODS["JoinGroup"]
    member = pb.Member(group=3, name="host").SerializeToString() + b"\xfa\x07\x02hi"
    sent = codec._head(1, len(member)) + member + b"\xfa\x07\x02hi"
    assert join.read_request(sent) == pb.JoinGroupRequest(member=pb.Member(group=3, name="host"))
    with pytest.raises(LimitExceededError, match=r"JoinGroupRequest of 16386 bytes; at most 16384"):
        join.read_request(b"\x78\x01" * 8193)
    member = codec._head(5, 20_000) + bytes(20_000)
    with pytest.raises(LimitExceededError, match=r"member of 20004 bytes; at most 16384"):
        codec.decode_contribution(codec._head(1, len(member)) + member)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x08", "inside a varint"),
        (b"\x08" + b"\xff" * 11, "longer than 10 bytes"),
        (b"\x22\x7f", "says 127 bytes"),
        (b"\x0b", "wire type 3"),
        (b"\x00\x00", "field number 0"),
        (b"\x0a\x00", "wire type 2; it must be 0"),
    ],
)
def test_malformed_bytes_are_named(data: bytes, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        codec.decode_push_request(data)


def test_a_tag_longer_than_five_bytes_is_refused_as_protobuf_does() -> None:
    overlong = b"\x88\x80\x80\x80\x80\x00\x07"  # field 1, a varint of 7
    with pytest.raises(DecodeError):
        pb.PushRequest.FromString(overlong)
    with pytest.raises(InvalidRequestError, match="tag at byte 0 is longer than 5 bytes"):
        codec.decode_push_request(overlong)


def test_what_protobuf_does_not_know_of_a_member_is_not_kept() -> None:
    member = pb.Member(group=3).SerializeToString() + b"\xf8\x07" + b"\x05"  # field 127
    decoded = codec.decode_contribution(codec._head(1, len(member)) + member)
    assert decoded.member.SerializeToString() == pb.Member(group=3).SerializeToString()


def test_count_must_match_the_bytes() -> None:
    table = pb.TableGradients(table="t", dim=2, count=2, dtype=pb.DTYPE_FLOAT32, ids=b"x" * 16)
    stub = pb.PushRequest(tables=[table])
    with pytest.raises(InvalidRequestError, match="gradients: 0 bytes"):
        codec.decode_push_request(stub.SerializeToString())
    stub.tables[0].count = 2**63
    with pytest.raises(RowhouseError):
        codec.decode_push_request(stub.SerializeToString())


@given(st.binary(max_size=200))
def test_random_bytes_never_escape_the_error_tree(data: bytes) -> None:
    for decode in (
        codec.decode_push_request, codec.decode_pull_request, codec.decode_pull_response,
        codec.decode_contribution,
    ):  # fmt: skip
        with contextlib.suppress(RowhouseError):
            decode(data)


@pytest.mark.parametrize(
    ("code", "fits", "too_large"), [(dtype.FLOAT16, 65504, 65520), (dtype.BFLOAT16, 3e38, 3.4e38)]
)
def test_what_a_narrow_wire_cannot_hold_is_refused(code: int, fits: float, too_large: float) -> None:
    values = np.array([1.0, -fits, np.inf, np.nan], np.float32)
    assert np.isfinite(dtype.widen(dtype.narrow(values, code, "rows"), code)).tolist() == [
        True,
        True,
        False,
        False,
    ]
    values[0] = -too_large
    with pytest.raises(InvalidRequestError, match=r"rows: an element is .*, too large for"):
        dtype.narrow(values, code, "rows")
    assert np.isneginf(dtype.widen(dtype.narrow(values, code), code)[0])
