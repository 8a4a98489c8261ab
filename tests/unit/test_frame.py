# SPDX-License-Identifier: Apache-2.0
"""Heads and errors of frames: the layout of the docs, every error of the tree, nothing else accepted."""

import numpy as np
import pytest
from rowhouse import frame
from rowhouse.error import InvalidRequestError, RowhouseError, error_class_names
from rowhouse.limit import MESSAGE_BYTES_MAX

CLASSES = sorted((c for c in error_class_names().values() if c.__module__ == "rowhouse.error"), key=str)


def test_a_head_has_the_layout_that_the_module_states() -> None:
    head = frame.encode_head(frame.PUSH, 0x01020304, 0x1112131415161718)
    assert head == b"rhd1\x02\0\0\0\x04\x03\x02\x01\x18\x17\x16\x15\x14\x13\x12\x11"
    assert frame.decode_head(head) == (frame.PUSH, 0x01020304, 0x1112131415161718)


@pytest.mark.parametrize("size", [0, MESSAGE_BYTES_MAX])
def test_sizes_up_to_the_bound_are_read(size: int) -> None:
    assert frame.decode_head(frame.encode_head(frame.PULL, size, 7)) == (frame.PULL, size, 7)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 100_003])
def test_a_body_ends_where_a_cache_line_does(size: int) -> None:
    body = frame.body_memory(size)
    assert len(body) == size and not body.readonly
    end = np.frombuffer(body, np.uint8).__array_interface__["data"][0] + size if size else 0
    assert end % 64 == 0


def test_another_magic_and_a_size_past_the_bound_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="begins with b'PRI '"):
        frame.decode_head(b"PRI * HTTP/2.0\r\n\r\nSM")
    with pytest.raises(
        InvalidRequestError, match=f"{MESSAGE_BYTES_MAX + 1} bytes; at most {MESSAGE_BYTES_MAX}"
    ):
        frame.decode_head(frame.encode_head(frame.PULL, MESSAGE_BYTES_MAX + 1, 0))


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_of_the_tree_travels(kind: type[RowhouseError]) -> None:
    back = frame.decode_error(memoryview(frame.encode_error(kind("tâble 'user': why"))), "shard at x:1")
    assert type(back) is kind and str(back) == "shard at x:1: tâble 'user': why"


def test_an_error_without_words_has_its_name() -> None:
    body = memoryview(frame.encode_error(InvalidRequestError()))
    assert str(frame.decode_error(body, "x")) == "x: InvalidRequestError"


@pytest.mark.parametrize("body", [b"", b"\xff", b"\x03Nonsense\0why", bytes(range(256))])
def test_a_body_that_is_no_error_is_still_one(body: bytes) -> None:
    assert isinstance(frame.decode_error(memoryview(body), "x"), RowhouseError)
