# SPDX-License-Identifier: Apache-2.0
"""Texts with other values: only what differs is written anew, and what comes out reads as it should."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rowhouse.document import dump, parse_document
from rowhouse.edit import edit
from rowhouse.problem import DocumentError

TEXT = """\
# head
a: {x: 1,   # of x
    "y": [1, 2,
          3]}   # of a
b:   # block
    - 1
    # inside
    - {q: 'NO'}

c:
  d: 'text'   # of d
  e: |
    two
    lines

  # about f
  f: {}
# tail
"""


def changed(change: Callable[[Any], Any], text: str = TEXT) -> str:
    wanted = parse_document(text, "x").value
    change(wanted)
    made = edit(text, "x", wanted)
    assert repr(parse_document(made, "x").value) == repr(wanted)
    return made


def put(*path: Any) -> Callable[[Any], Any]:
    def change(root: Any) -> None:
        for key in path[:-2]:
            root = root[key]
        root[path[-2]] = path[-1]

    return change


def drop(*path: Any) -> Callable[[Any], Any]:
    def change(root: Any) -> None:
        for key in path[:-1]:
            root = root[key]
        del root[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "old", "new"),
    [
        (lambda root: None, "", ""),
        (put("a", "x", 5), "x: 1,", "x: 5,"),
        (put("a", "y", ["NO", None]), "[1, 2,\n          3]", '["NO", null]'),
        (put("a", "z", "off"), "3]}", "3], z: off}"),
        (drop("a", "y"), '{x: 1,   # of x\n    "y": [1, 2,\n          3]}', "{x: 1}"),
        (drop("a", "x"), 'x: 1,   # of x\n    "y"', '"y"'),
        (put("b", [2]), "- 1\n    # inside\n    - {q: 'NO'}", "[2]"),
        (put("c", "d", "1"), "'text'", "'1'"),
        (put("c", "e", "one line"), "|\n    two\n    lines", "one line"),
        (drop("c", "e"), "  e: |\n    two\n    lines\n", ""),
        (drop("c", "d"), "  d: 'text'   # of d\n", ""),
        (put("c", "g", {"h": [1]}), "  f: {}\n", "  f: {}\n  g: {h: [1]}\n"),
        (put("d", None), "  f: {}\n", "  f: {}\nd: null\n"),
        (drop("a"), TEXT[TEXT.index("a:") : TEXT.index("b:")], ""),
        (put("c", "f", {"k": 1}), "f: {}", "f: {k: 1}"),
        (put("c", "f", None), "f: {}", "f: null"),
        (lambda root: [root.pop(key) for key in "ab"], TEXT[TEXT.index("a:") : TEXT.index("\nc:")], ""),
    ],
)  # fmt: skip
def test_only_what_differs_is_written(change: Callable[[Any], Any], old: str, new: str) -> None:
    new = new.replace('["NO", null]', "[NO, null]")
    assert TEXT.count(old) == 1 or not old
    assert changed(change) == (TEXT.replace(old, new) if old else TEXT)
    windows = changed(change, TEXT.replace("\n", "\r\n"))
    assert windows == (TEXT.replace(old, new) if old else TEXT).replace("\n", "\r\n")


def test_new_keys_take_the_place_of_those_that_go() -> None:
    wanted = parse_document(TEXT, "x").value
    renamed = {("bb" if key == "b" else key): value for key, value in wanted.items()}
    made = edit(TEXT, "x", {"first": 1, **renamed}, {("bb",): "why", ("first",): "one"})
    assert made == TEXT.replace(
        "b:   # block\n    - 1\n    # inside\n    - {q: 'NO'}\n", "# why\nbb: [1, {q: NO}]\n"
    ).replace("a: {x", "# one\nfirst: 1\na: {x")


def test_json_stays_json() -> None:
    value = {"a": {"b": 1, "c": [1, 2], "d": None}, "e": "ü"}
    text = json.dumps(value, indent=1)
    made = changed(put("a", "n", {"q": "off", "r": True}), text)
    assert json.loads(made)["a"]["n"] == {"q": "off", "r": True}
    made = changed(drop("a", "b"), text)
    assert json.loads(made) == {"a": {"c": [1, 2], "d": None}, "e": "ü"}
    made = changed(drop("a", "d"), json.dumps(value))
    assert json.loads(made)["a"] == {"b": 1, "c": [1, 2]}


def test_an_alias_follows_its_anchor_or_is_written_apart() -> None:
    text = "a: &x {k: 1}   # of a\nb: *x\nc: [*x]\n"
    assert changed(lambda root: [root[k].update(n=2) for k in "ab"], text) == (
        "a: &x {k: 1, n: 2}   # of a\nb: *x\nc: [{k: 1}]\n"
    )
    assert changed(put("a", "n", 2), text) == "a: &x {k: 1, n: 2}   # of a\nb: {k: 1}\nc: [{k: 1}]\n"
    assert changed(put("b", "k", 3), text) == "a: &x {k: 1}   # of a\nb: {k: 3}\nc: [*x]\n"
    assert changed(drop("a"), text) == "b: {k: 1}\nc: [{k: 1}]\n"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", {"a": 1}),
        ("# c\n", {"a": 1}),
        ("a: 1\nb: 2", {"b": 2, "a": 1}),
        ("? a\n: 1\n? b\n: 2\n", {"a": 1}),
        ("- a: 1\n  b: 2\n- 5\n", [{"b": 2}, 5]),
        ("a: 1\n", {}),
        ("a: 1\n", [1]),
        ("a:\nb: {c, d: }\n", {"a": 1, "b": {"c": 1, "d": 2}}),
        ("a: 1", {"a": 1, "b": [2]}),
        ("a: 1", {"b": [2]}),
        ("a: 1\nb: 1", {"a": True, "b": 1.0}),
        ("{a: 1}", {"z": 1, "a": 1}),
        ("!!map {a: 1}", {"a": 2}),
        ("--- # x\na: 1\n...\n", {"a": 1, "b": 2}),
        ("a: 1 # x", {"b": 1}),
        ("a: 1\nb: 2\nc: 3\n", {"c": 3}),
    ],
)
def test_whatever_the_text_it_reads_as_it_should(text: str, wanted: Any) -> None:
    assert repr(parse_document(edit(text, "x", wanted), "x").value) == repr(wanted)


def test_the_first_lines_go_whole() -> None:
    assert edit("a: 1\nb: 2\nc: 3 # c\n", "x", {"c": 3}) == "c: 3 # c\n"
    assert edit("a: 1\nb: 2\n", "x", {"n": 0, "b": 2}) == "n: 0\nb: 2\n"


def test_a_text_that_cannot_be_read_is_not_edited() -> None:
    with pytest.raises(DocumentError, match="x:1: not valid YAML"):
        edit("a: [", "x", {})


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(["off", "1", "a b", "", "#x", "é", "a: b", "\n"])
)
TREES = st.dictionaries(
    st.sampled_from("abcdef"),
    st.recursive(
        LEAVES,
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from("abcd"), inner, max_size=4),
        max_leaves=10,
    ),
    min_size=1,
)  # fmt: skip


@given(TREES, TREES, st.sampled_from([False, True, None]))
@settings(max_examples=300, deadline=None)
def test_any_text_becomes_any_other(old: Any, new: Any, flow: bool | None) -> None:
    text = "".join(f"{line}   # {n}\n" for n, line in enumerate(dump(old, flow, 1000).splitlines()))
    if parse_or_none(text) != old:
        text = dump(old, flow, 1000)  # a comment fell into a text of several lines
    made = edit(text, "x", new)
    assert repr(parse_document(made, "x").value) == repr(new)


def parse_or_none(text: str) -> Any:
    try:
        return parse_document(text, "x").value
    except DocumentError:
        return None


@given(TREES, st.data())
@settings(max_examples=200, deadline=None)
def test_comments_of_what_stays_stay(tree: Any, data: st.DataObject) -> None:
    """A key more and a key less at the top: every comment line between the others is there as before."""
    text = (
        "# head\n"
        + "".join(f"# before {key}\n{dump({key: value})}" for key, value in tree.items())
        + "# tail\n"
    )
    if parse_or_none(text) != tree:
        return  # a comment became a part of a block of text
    gone = data.draw(st.sampled_from(sorted(tree)))
    wanted = {key: value for key, value in tree.items() if key != gone} | {"new": 1}
    made = edit(text, "x", wanted)
    if len(tree) > 1:
        comments = [line for line in text.splitlines() if line.startswith("#")]
        assert [line for line in made.splitlines() if line.startswith("#")] == comments
    assert parse_document(made, "x").value == wanted
