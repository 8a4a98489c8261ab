# SPDX-License-Identifier: Apache-2.0
"""YAML documents: scalars, line marks, what is refused, and what is written reads back."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rowhouse.document import BYTES_MAX, DEPTH_MAX, VALUES_MAX, dump, parse_document, read_document
from rowhouse.problem import DocumentError, Problem, nearest, spelled

from feature_cross.config.loader import load_text
from ps_server.config.cluster import load_config

TEXT = """\
a: 1
b:
  - c: 2

  - - 3
    - {d: 4,
       e: 5}
"""

SCALARS: list[tuple[str, Any]] = [
    ("off", "off"), ("NO", "NO"), ("yes", "yes"), ("On", "On"), ("1e-3", 0.001), ("1e3", 1000.0),
    ("1:30", "1:30"),
    ("0x10", 16), ("0x1F", 31), ("010", 10), ("0o17", 15), ("0b11", "0b11"), ("1_000", "1_000"), ("-7", -7),
    ("+7", 7),
    ("~", None), ("null", None), ("", None), ("true", True), ("FALSE", False), ("tRue", "tRue"),
    (".inf", float("inf")), ("-.INF", float("-inf")), ("-.5", -0.5), (".5e3", 500.0), ("1.", 1.0),
    ("1.5", 1.5),
    ("2026-01-01", "2026-01-01"), ("2026-01-01 10:00:00", "2026-01-01 10:00:00"), ("12:30:45", "12:30:45"),
    ('"quoted"', "quoted"), ("'1'", "1"), ("'off'", "off"), ("''", ""), ("! 1", "1"), ("!!str 1", "1"),
    ("!!float 1", 1.0), ("!!int '7'", 7), ("<<", "<<"), ("=", "="), ("1.2.3", "1.2.3"), ("1e", "1e"),
    ("...x", "...x"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    found = parse_document(f"a: {text}\nb: [{text}]" if text not in ("", "...x") else f"a: {text}", "x").value
    assert repr(found["a"]) == repr(value) and repr(found.get("b", [value])) == repr([value])


@pytest.mark.parametrize("text", [text for text, value in SCALARS if isinstance(value, str)])
def test_text_that_looks_like_something_else_is_written_so_that_it_stays_text(text: str) -> None:
    for flow in (False, True, None):
        assert parse_document(dump({text: [text]}, flow), "x").value == {text: [text]}


def test_both_sides_read_the_same_words(tmp_path: Path) -> None:
    """A server's table and a cross's condition called NO, and a rate of 1e-3, all unquoted."""
    (tmp_path / "c.yaml").write_text(
        "data_dir: d\ndata_port: off\ntables: [{name: NO, dim: 010, freeze: off, optimizer: {kind: sgd, "
        "learning_rate: 1e-3}}]\n"
    )
    cluster = load_config(tmp_path / "c.yaml")
    table = cluster.tables[0]
    assert (cluster.data_port, table.name, table.dim, table.freeze) == ("off", "NO", 10, "off")
    assert table.optimizer.learning_rate == 0.001
    crosses = load_text(
        "entities: {e: {attributes: {on: {type: string}, "
        "a: {type: float, buckets: {edges: [1e-3, 0x10]}}}}}\n"
        "features: {f: {kind: attribute, of: e.a, when: {e.on: {any_of: [NO, off, 1:30, 2026-01-01]}}}}\n"
    )
    condition = crosses.features["f"].when["e.on"]  # type: ignore[index]
    assert list(condition.any_of or ()) == ["NO", "off", "1:30", "2026-01-01"]
    assert crosses.entities["e"].attributes["a"].buckets.edges == (0.001, 16.0)  # type: ignore[union-attr]


def test_every_path_has_its_line() -> None:
    """Invariant 1; a key's line, or an entry's, counted from 1."""
    document = parse_document(TEXT, "x.yaml")
    lines = {(): 1, ("a",): 1, ("b",): 2, ("b", 0): 3, ("b", 0, "c"): 3, ("b", 1): 5, ("b", 1, 0): 5,
             ("b", 1, 1): 6, ("b", 1, 1, "d"): 6, ("b", 1, 1, "e"): 7}  # fmt: skip
    assert document.lines == lines
    assert document.value == {"a": 1, "b": [{"c": 2}, [3, {"d": 4, "e": 5}]]}


def test_the_place_of_an_absent_key_is_its_parents() -> None:
    assert parse_document(TEXT, "x.yaml").line(("b", 1, 1, "zzz")) == 6
    assert parse_document("", "x.yaml").line(("a",)) is None
    assert parse_document("# only a comment\n", "x.yaml").value is None


def test_an_alias_is_the_anchors_value_and_has_lines() -> None:
    document = parse_document("a: &x {b: 1}\nc:\n- *x\n&k d: *k", "x")
    assert document.value == {"a": {"b": 1}, "c": [{"b": 1}], "d": "d"}
    assert document.lines["c", 0] == 3 and document.lines["c", 0, "b"] == 1
    document.value["c"][0]["b"] = 2
    assert document.value["a"] == {"b": 1}, "a copy"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3", "x:3: key 'a' is there twice; the first is on line 1"),
        ("c:\n  a: 1\n  a: 3", "x:3: c: key 'a' is there twice; the first is on line 2"),
        ("b:\n  a: &y\n    c: *y", "x:3: the anchor 'y' refers to itself"),
        ("b: *y", "x:1: not valid YAML: no anchor is called 'y'"),
        ("a: !!python/object:os.system x", "x:1: a: tag 'tag:yaml.org,2002:python/object:os.system'"),
        ("a: !!set {b}", "x:1: a: tag"),
        ("a: !x [b]", "x:1: a: tag '!x' is not allowed"),
        ("a: !!binary aaaa", "x:1: a: tag 'tag:yaml.org,2002:binary' is not allowed; a config"),
        ("a: !!int x", "x:1: a: value 'x' cannot be read as int"),
        ("a: !!bool yes", "x:1: a: value 'yes' cannot be read as bool"),
        ("a: " + "9" * 5000, "x:1: a: value '999999999999...9999999999999' cannot be read as int"),
        ("\n? [1]\n: 2", "x:2: a key is [1]; it must be text"),
        ("a: {null: 2}", "x:1: a: a key is None; it must be text, in quotes if need be"),
        ("a: b: c", "x:1: not valid YAML: mapping values are not allowed here"),
        ("a: [1", "x:1: not valid YAML"),
        ("a: 1\n--- b", "x:2: not valid YAML: a second document begins; a file holds one"),
        ("[" * 1500, f"x:1: nested deeper than {DEPTH_MAX} levels"),
        ("a: 1\nb: \x00", "x:2: not valid YAML: special characters"),
        ("a: '\ud800'", "x:1: not valid YAML: special characters"),
    ],
)  # fmt: skip
def test_refused(text: str, expected: str) -> None:
    """Invariant 2."""
    with pytest.raises(DocumentError) as caught:
        parse_document(text, "x")
    assert str(caught.value).startswith(expected)


def test_faults_that_can_be_passed_by_are_told_at_once() -> None:
    with pytest.raises(DocumentError) as caught:
        parse_document("on: 1\n5: 2\ne: {t: 1, t: 2}\nf: !x {}\nf: 1\n", "x")
    codes = [(problem.code, problem.line, problem.path) for problem in caught.value.problems]
    assert codes == [
        ("key-type", 2, ()), ("duplicate-key", 3, ("e",)), ("yaml-tag", 4, ("f",)), ("duplicate-key", 5, ()),
    ]  # fmt: skip


HOSTILE = {
    "long text": "a: '" + "x" * BYTES_MAX + "'",
    "many values": "[" + "1," * 300_000 + "1]",
    "deep flow": "[" * 100_000,
    "deep block": "\n".join(" " * n + "a:" for n in range(DEPTH_MAX + 2)),
    "alias bomb": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(
        f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "alias chain": "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 1000)),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_refused_in_bounded_time(name: str) -> None:
    """Invariant 3."""
    begin = time.process_time()
    with pytest.raises(DocumentError, match=rf"the most is|more than {VALUES_MAX} values|nested deeper than"):
        parse_document(HOSTILE[name], "x")
    assert time.process_time() - begin < 30


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    with pytest.raises(DocumentError, match=r"c\.yaml: cannot be read: No such file"):
        read_document(path)
    path.write_bytes(b"a: \xff\xfe")
    with pytest.raises(DocumentError, match=r"c\.yaml: not UTF-8: invalid start byte at byte 3"):
        read_document(path)
    path.write_bytes(b"#" * (BYTES_MAX + 1))
    with pytest.raises(DocumentError, match=rf"{BYTES_MAX + 1} bytes; the most is {BYTES_MAX}"):
        read_document(path)
    path.write_bytes("\ufeffa: ü\r\nb: 1\r\n".encode())
    document = read_document(path)
    assert document.value == {"a": "ü", "b": 1} and document.line(("b",)) == 2


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.sampled_from([text for text, _ in SCALARS]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text("ab:#-1 ~", max_size=3), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@example(value="\x85", flow=False)
@example(value={"a\u2028b": ["\u2029 x"]}, flow=None)
@given(PLAIN, st.sampled_from([False, True, None]))
def test_what_is_written_reads_back(value: Any, flow: bool | None) -> None:
    assert repr(parse_document(dump(value, flow), "x").value) == repr(value)


@given(PLAIN)
def test_json_is_yaml(value: Any) -> None:
    text = json.dumps(value)
    if "Infinity" not in text and "\\ud" not in text:
        assert repr(parse_document(text, "x").value) == repr(value)


def test_written_texts_are_laid_out_as_people_write_them() -> None:
    value = {"b": {"c": [1, 2]}, "a": [{"n": "off", "x": 1e-07}], "t": "a b " * 40}
    assert dump({"b": {"c": [1, 2]}, "a": [{"n": "off"}]}) == "b:\n  c:\n  - 1\n  - 2\na:\n- n: off\n"
    assert dump(value, None, 1000).startswith("b:\n  c: [1, 2]\na:\n- {n: off, x: 1e-07}\n")
    assert dump(["NO", {"a": 1}], True) == "[NO, {a: 1}]\n"


def test_the_name_that_was_meant() -> None:
    assert nearest("dtyp", ["dim", "dtype"]) == "did you mean 'dtype'?"
    assert nearest("zzz", ["dim", "dtype"]) == "known ones are 'dim', 'dtype'"
    assert nearest("zzz", [f"a{n}" for n in range(99)]).endswith("'a11', …")
    assert nearest("zzz", []) == "there is none"


def test_a_problem_is_a_line_for_an_editor() -> None:
    path = ("tables", 0, "dim")
    assert (
        Problem("value", "is 0; it must be more", path, 3).text("c.yaml")
        == "c.yaml:3: tables[0].dim is 0; it must be more"
    )
    assert Problem("x", "no", path).text("c.yaml") == "c.yaml: tables[0].dim: no" and spelled(()) == ""


@pytest.mark.parametrize("package", ["rowhouse", "rowhouse.problem", "ps_client"])
def test_whoever_reads_no_file_loads_no_reader(package: str) -> None:
    code = f"import sys, {package}; print([n for n in ('ruamel.yaml', 'pydantic') if n in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
