# SPDX-License-Identifier: Apache-2.0
"""The error tree and gRPC statuses, both ways, for every class."""

import re

import grpc
import pytest
from rowhouse import error
from rowhouse.error import RowhouseError, error_class_names, from_status

TREE = {n: c for n, c in error_class_names().items() if c.__module__ == "rowhouse.error"}
CLASSES = sorted(TREE.values(), key=lambda c: c.__name__)


@pytest.mark.parametrize("kind", CLASSES)
def test_code_and_name_give_the_class_back(kind: type[RowhouseError]) -> None:
    back = from_status(kind.code, "table 'user': why", kind.__name__)
    assert type(back) is kind and str(back) == "table 'user': why"


@pytest.mark.parametrize("kind", CLASSES)
def test_the_code_alone_gives_a_class_of_that_code(kind: type[RowhouseError]) -> None:
    """A proxy may drop trailing metadata; then the nearest class of the code stands in."""
    back = from_status(kind.code, "why")
    assert back.code is kind.code and str(back) == "why"


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_code_gives_an_error_that_agrees_on_retrying(code: grpc.StatusCode) -> None:
    """Without the name a retry is promised only for codes that mean it: a push may be retried safely."""
    transient = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED", "ABORTED"}
    assert from_status(code.value[0], "why").retryable == (code.name in transient)


def test_codes_have_the_names_and_numbers_of_grpc() -> None:
    known = {code.name: code.value[0] for code in grpc.StatusCode}
    assert {code.name: known[code.name] for code in error.StatusCode} == error.StatusCode.__members__


def test_an_unknown_name_falls_back_to_the_code() -> None:
    assert (
        type(from_status(grpc.StatusCode.DATA_LOSS.value[0], "x", "ErrorOfTomorrow")) is error.CorruptionError
    )


def test_an_unknown_code_is_the_base_class() -> None:
    assert type(from_status(grpc.StatusCode.UNIMPLEMENTED.value[0], "x")) is RowhouseError


def test_the_drawn_tree_is_the_tree() -> None:
    """The module docstring draws every class under its parent."""
    drawn: dict[str, str] = {}
    parents: dict[int, str] = {}
    for line in (error.__doc__ or "").splitlines():
        found = re.match(r"^    (?P<lead>[ │├└─]*)(?P<name>[A-Z]\w+(?:Error))\b", line)
        if found:
            depth = len(found["lead"]) // 4
            parents[depth] = found["name"]
            drawn[found["name"]] = parents[depth - 1] if depth else ""
    bases = {n: c.__bases__[0].__name__ for n, c in TREE.items() if c is not RowhouseError}
    assert drawn == {"RowhouseError": "", **bases}


def test_all_is_sorted_and_complete() -> None:
    names = [n for n in error.__all__ if n.endswith("Error")]
    assert names == sorted(TREE)


@pytest.mark.parametrize("kind", CLASSES)
def test_exit_codes_are_usable_by_a_script(kind: type[RowhouseError]) -> None:
    assert 0 < kind.exit_code < 126
