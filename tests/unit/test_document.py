# SPDX-License-Identifier: Apache-2.0
"""YAML documents: scalars, line marks, and what is refused."""

from typing import Any

import pytest
from rowhouse.error import ConfigError

from ps_server.config.document import parse_document

TEXT = """\
a: 1
b:
  - c: 2

  - - 3
    - {d: 4,
       e: 5}
"""


def test_scalars_follow_yaml_1_2() -> None:
    text = "[off, yes, 1e3, 1:30, 010, 0x1F, 0o17, ~, null, true, .inf, -.5, '1', 2020-01-01, '']"
    expected: list[Any] = [
        "off",
        "yes",
        1000.0,
        "1:30",
        10,
        31,
        15,
        None,
        None,
        True,
        float("inf"),
        -0.5,
        "1",
    ]
    assert parse_document(text, "x").value == [*expected, "2020-01-01", ""]


def test_every_path_has_its_line() -> None:
    """Invariant 1; a key's line, or an entry's, counted from 1."""
    document = parse_document(TEXT, "x.yaml")
    lines = {(): 1, ("a",): 1, ("b",): 2, ("b", 0): 3, ("b", 0, "c"): 3, ("b", 1): 5, ("b", 1, 0): 5,
             ("b", 1, 1): 6, ("b", 1, 1, "d"): 6, ("b", 1, 1, "e"): 7}  # fmt: skip
    assert document.lines == lines
    assert document.value == {"a": 1, "b": [{"c": 2}, [3, {"d": 4, "e": 5}]]}


def test_the_place_of_an_absent_key_is_its_parents() -> None:
    document = parse_document(TEXT, "x.yaml")
    assert document.place(("b", 1, 1, "zzz")) == "x.yaml:6"
    assert parse_document("", "x.yaml").place(("a",)) == "x.yaml"


def test_an_alias_is_the_anchors_value() -> None:
    assert parse_document("a: &x {b: 1}\nc: *x", "x").value == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3", "x:3: key 'a' is there twice; the first is on line 1"),
        ("b:\n  a: &y\n    c: *y", "x:2: an anchor refers to itself"),
        ("a: !!python/object:os.system x", "x:1: tag 'tag:yaml.org,2002:python/object:os.system'"),
        ("a: !!set {b}", "x:1: tag"),
        ("\n? [1]\n: 2", "x:2: a key is None; it must be a string"),
        ("null: 2", "x:1: a key is None; it must be a string"),
        ("a: b: c", "x:1: not valid YAML: mapping values are not allowed here"),
        ("a: 1\n--- b", "x:2: not valid YAML"),
        ("[" * 1500, "x: not a config: it is nested hundreds of levels deep"),
        ("a: \x00", "x:1: not valid YAML: special characters"),
    ],
)
def test_refused(text: str, expected: str) -> None:
    """Invariant 2."""
    with pytest.raises(ConfigError) as caught:
        parse_document(text, "x")
    assert str(caught.value).startswith(expected)
