# SPDX-License-Identifier: Apache-2.0
"""The config language: what it accepts, and where each of its complaints points."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
from rowhouse.document import BYTES_MAX, DEPTH_MAX

from feature_cross import ConfigError, Engine, load
from feature_cross.config.loader import load_text
from feature_cross.limit import OPERANDS_MAX

PAGE = Path(__file__).resolve().parents[2] / "docs" / "feature_cross.md"
HEAD = """\
ids: {slot_bits: 4}
entities:
  user:
    key: id
    attributes:
      id: {type: int}
      city: {type: string}
      seen: {type: int, list: true}
  item:
    attributes:
      id: {type: int}
features:
"""
GOOD = "  f: {kind: attribute, slot: 1, of: user.id}\n"


def problems(text: str) -> list[tuple[str, int | None, str]]:
    with pytest.raises(ConfigError) as caught:
        load_text(text, "c.yaml")
    return [(problem.code, problem.line, problem.message) for problem in caught.value.problems]


CASES = [
    ("  f: {kind: atribute, slot: 1, of: user.id}", "kind", 13, "did you mean 'attribute'?"),
    ("  f: {slot: 1, of: user.id}", "kind", 13, "is missing; it must be 'attribute', "),
    (
        "  f:\n    kid: weak\n    of: user.id",
        "unknown-key",
        14,
        "unknown key; did you mean 'kind'?",
    ),
    ("  f: {slto: 1, knid: weak, of: user.id}", "unknown-key", 13, "unknown key; did you mean 'kind'?"),
    ("  f: {slto: 1, of: user.id}", "unknown-key", 13, "did you mean 'slot'?"),
    ("  f:\n    kind: attribute\n    slto: 1\n    of: user.id", "unknown-key", 15, "did you mean 'slot'?"),
    ("  f: {kind: attribute, slot: 1}", "missing-key", 13, "is missing; it must be given"),
    ("  f: {kind: attribute, of: user.id}", "missing-slot", 13, "f needs a slot: ids.slot_bits is 4"),
    ("  f: {kind: attribute, slot: 16, of: user.id}", "slot-range", 13, "slot 16 of f is past 15"),
    ("  f: {kind: attribute, slot: -1, of: user.id}", "value", 13, "greater than or equal to 0"),
    ("  f: {kind: attribute, slot: 1.5, of: user.id}", "value", 13, "is 1.5; it must be a valid integer"),
    ("  f: {kind: attribute, slot: 1, of: user.cty}", "unknown-reference", 13, "did you mean 'user.city'?"),
    ("  f: {kind: attribute, slot: 1, of: user.seen}", "family", 13, "is a list; use kind"),
    ("  f: {kind: attribute, slot: 1, of: user}", "unknown-reference", 13, "neither entity.attribute"),
    ("  f: {kind: categorical, slot: 1, of: [user.id]}", "value", 13, "at least 2 items"),
    ("  f: {kind: categorical, slot: 1, of: [user.id, item.id]}", "family", 13, "use interaction"),
    ("  f: {kind: interaction, slot: 1, of: [user.id, user.city]}", "family", 13, "use categorical"),
    ("  f: {kind: weak, slot: 1, of: [user.id, user.id]}", "repeated-operand", 13, "given twice"),
    (
        "  f: {kind: weak, slot: 1, limit: 5, of: [user.id, item.id]}",
        "useless-limit",
        13,
        "limit does nothing",
    ),
    (
        "  f: {kind: weak, slot: 1, past_limit: cut, of: [user.id, item.id]}",
        "value",
        13,
        "nothing without limit",
    ),
    ("  f: {kind: combination, slot: 1, of: user.seen}", "value", 13, "not slot"),
    ("  f: {kind: combination, of: user.seen}", "missing-slot", 13, "slots: {permutation:"),
    ("  f: {kind: combination, form: single, slot: 1, of: user.city}", "family", 13, "needs a list"),
    (
        "  f: {kind: combination, form: single, size: 2, slot: 1, of: user.seen}",
        "value",
        13,
        "apply to sorted",
    ),
    ("  f: {kind: combination, form: sorted, size: 0, slot: 1, of: user.seen}", "value", 13, "size"),
    (
        "  f: {kind: attribute, slot: 1, of: user.id, emit: false}",
        "useless-slot",
        13,
        "its slot does nothing",
    ),
    ("  f: {kind: attribute, of: user.id, emit: false}", "no-output", 12, "nothing would come out"),
    (
        GOOD + "  g: {kind: attribute, slot: 1, of: item.id}",
        "duplicate-slot",
        14,
        "slot 1 of g is already f's",
    ),
    (GOOD + GOOD, "duplicate-key", 14, "'f' is there twice; the first is on line 13"),
    (
        "  f: {kind: weak, slot: 1, of: [g, user.id]}\n  g: {kind: weak, slot: 2, of: [f, item.id]}",
        "cycle",
        13,
        "f -> g -> f",
    ),
    ("  f: {kind: weak, slot: 1, of: [f, user.id]}", "cycle", 13, "f -> f"),
    ("  f: {kind: attribute, of: user.id, share: g}", "unknown-reference", 13, "'g' is not a feature"),
    ("  f: {kind: attribute, of: user.id, share: g, slot: 2}", "value", 13, "so slot does nothing"),
    ("  f: {kind: combination, of: user.seen, share: g}", "value", 13, "declare one form"),
    (
        GOOD + "  g: {kind: attribute, of: user.city, share: f}",
        "share",
        14,
        "values of (string) against values of (int)",
    ),
    (GOOD + "  g: {kind: attribute, of: item.id, share: g}", "share", 14, "itself shares the ids of g"),
    (
        GOOD
        + "  g: {kind: attribute, of: user.id, emit: false}\n  h: {kind: attribute, of: item.id, share: g}",
        "share",
        15,
        "g has emit: false",
    ),
    (
        GOOD + "  g: {kind: combination, form: sorted, of: user.seen, share: f}",
        "share",
        14,
        "sorted of (int) against values of (int)",
    ),
    ("  ~: {kind: attribute, slot: 1, of: user.id}", "key-type", 13, "a key is None; it must be text"),
    (
        "  f: {kind: attribute, slot: 1, of: !!python/name:os.system user.id}",
        "yaml-tag",
        13,
        "is not allowed",
    ),
    ("  f: {kind: attribute, slot: [1, of: user.id}", "yaml", 13, "not valid YAML"),
    ("  5: {kind: attribute, slot: 1, of: user.id}", "key-type", 13, "a key is 5; it must be text"),
    ("  a b: {kind: attribute, slot: 1, of: user.id}", "value", 13, "match pattern"),
    (
        GOOD
        + "  g:\n    kind: attribute\n    slot: 2\n    of: user.id\n    when: {usr.city: {present: true}}",
        "unknown-reference",
        18,
        "'usr.city' is no entity.attribute; did you mean 'user.city'?",
    ),
    (
        GOOD + "  g:\n    kind: attribute\n    slot: 2\n    of: user.id\n"
        "    when:\n      user.city: {any_of: [false]}",
        "condition",
        19,
        "False is a bool, and the attribute is a string",
    ),
    (
        GOOD + "  g: {kind: attribute, slot: 2, of: user.id, when: {user.id: {any_of: ['7']}}}",
        "condition",
        14,
        "user.id: '7' is a str, and the attribute is an int",
    ),
    (
        GOOD + "  g: {kind: attribute, slot: 2, of: user.id, when: {user.city: {below: 3}}}",
        "condition",
        14,
        "compare numbers, and the attribute is a string",
    ),
    (
        GOOD + "  g: {kind: attribute, slot: 2, of: user.id, when: {user.seen: {below: 3}}}",
        "condition",
        14,
        "compare one number, and the attribute is a list",
    ),
    (
        GOOD
        + "  g: {kind: attribute, slot: 2, of: user.id, when: {user.id: {any_of: [99999999999999999999]}}}",
        "condition",
        14,
        "does not fit in 64 bits",
    ),
    (
        GOOD + "  g: {kind: attribute, slot: 2, of: user.id, when: {user.id: {}}}",
        "value",
        14,
        "give one of any_of",
    ),
    (GOOD + "  g: {kind: attribute, slot: 2, of: user.id, when: {}}", "value", 14, "at least 1 item"),
    (
        GOOD + "  g: {kind: attribute, slot: 2, of: user.id, when: {user.id: {bellow: 3}}}",
        "unknown-key",
        14,
        "did you mean 'below'?",
    ),
    (
        GOOD + "  g: {kind: attribute, slot: 2, of: user.id, when: {user.id: {at_least: 3, below: 3}}}",
        "value",
        14,
        "no number is at least 3 and below 3",
    ),
    (
        GOOD + "  g: {kind: attribute, slot: 2, of: user.id, when: {user.id: {present: true, below: 3}}}",
        "value",
        14,
        "present must be the only key",
    ),
    (
        GOOD + "  g: {kind: attribute, slot: 2, of: user.id, when: {user.id: {below: .inf}}}",
        "value",
        14,
        "is inf; it must be a number from",
    ),
    (
        GOOD + "  g: {kind: attribute, slot: 2, of: user.id, when: {user.id: {any_of: 3}}}",
        "value",
        14,
        "must be a list of 1 to 4096 values",
    ),
    ("  - {kind: attribute, slot: 1, of: user.id}", "value", 12, "must map names to declarations"),
]


@pytest.mark.parametrize(("features", "code", "line", "message"), CASES)
def test_each_fault_is_named_at_its_line(features: str, code: str, line: int, message: str) -> None:
    found = problems(HEAD + features + "\n")
    assert any((c, at) == (code, line) and message in text for c, at, text in found), found


ATTRIBUTES: list[tuple[dict[str, Any], str]] = [
    ({"type": "float"}, "e.a is a raw float"),
    ({"type": "float", "buckets": {"quantiles": 4}}, "e.a has 4 quantiles without edges"),
    ({"type": "float", "buckets": {"quantiles": 1}}, "greater than or equal to 2"),
    ({"type": "float", "buckets": {"quantiles": 4, "log": {"base": 2, "start": 1, "stop": 9}}}, "give one"),
    ({"type": "date"}, "needs a part"),
    ({"type": "date", "part": "hour", "buckets": {"edges": [1]}}, "no other date has them"),
    ({"type": "date", "age": {"column": "b", "unit": "day"}}, "the age of a date needs buckets"),
    ({"type": "date", "part": "day", "age": {"column": "b", "unit": "day"}}, "a part (year, month"),
    ({"type": "int", "age": {"column": "b", "unit": "day"}}, "age does not apply to type int"),
    ({"type": "date", "age": {"unit": "day"}, "buckets": {"edges": [1]}}, "exactly one of column and date"),
    (
        {"type": "date", "age": {"date": "soon", "unit": "day"}, "buckets": {"edges": [1]}},
        "'soon'; it must be ISO",
    ),
    (
        {"type": "date", "age": {"column": "b", "unit": "month"}, "buckets": {"edges": [1]}},
        "is 'month'; it must be ",
    ),
    (
        {"type": "int", "recency": {"times": "t", "column": "c", "unit": "day", "within": 1}},
        "recency applies to lists only",
    ),
    (
        {"type": "int", "list": True, "recency": {"times": "t", "column": "c", "unit": "day", "within": 0}},
        "greater than 0",
    ),
    ({"type": "int", "part": "hour"}, "part does not apply to type int"),
    ({"type": "int", "normalise": ["strip"]}, "normalise does not apply to type int"),
    ({"type": "int", "empty_is_missing": True}, "empty_is_missing does not apply"),
    (
        {"type": "int", "nulls": ["NA"]},
        "nulls are texts, and type int reads text with cast only; set cast: true",
    ),
    ({"type": "string", "nulls": "NA"}, "nulls"),
    ({"type": "string", "buckets": {"edges": [1]}}, "buckets does not apply to type string"),
    ({"type": "string", "normalise": ["strip", "strip"]}, "given twice"),
    ({"type": "string", "normalise": ["stirp"]}, "did you mean 'strip'?"),
    ({"type": "string", "max_length": 3}, "apply to lists only"),
    ({"type": "string", "list": True, "keep": "last"}, "nothing without max_length"),
    ({"type": "float", "buckets": {"edges": [2, 1]}}, "edges must rise; 1.0 follows 2.0"),
    ({"type": "float", "buckets": {"edges": [1, float("inf")]}}, "edges must be finite"),
    ({"type": "float", "buckets": {"edges": []}}, "at least 1 item"),
    ({"type": "float", "buckets": {}}, "exactly one of edges and log, or quantiles"),
    ({"type": "float", "buckets": {"log": {"base": 1, "start": 1, "stop": 2}}}, "greater than 1"),
    ({"type": "float", "buckets": {"log": {"base": 2, "start": 3, "stop": 2}}}, "stop"),
    (
        {"type": "float", "buckets": {"log": {"base": 1.0001, "start": 1, "stop": 1e9}}},
        "more than 4096 edges",
    ),
    ({"type": "integer"}, "did you mean 'int'?"),
    ({"type": "int", "missing": "skip"}, "'drop', 'own_id' or 'error'"),
]


@pytest.mark.parametrize(("attribute", "message"), ATTRIBUTES)
def test_an_attribute_that_means_nothing_is_refused(attribute: dict[str, Any], message: str) -> None:
    entities = {"e": {"attributes": {"a": attribute}}}
    with pytest.raises(ConfigError, match=re.escape(message)):
        load({"entities": entities, "features": {"f": {"kind": "attribute", "of": "e.a"}}})


def test_unknown_keys_everywhere_name_the_nearest() -> None:
    text = (
        "vresion: 1\nids: {slot_bit: 3}\nentities:\n  e:\n    kye: a\n    attributes:\n"
        "      a: {type: float, buckets: {edge: [1]}}\n      b: {type: float, buckets: {log: {bas: 2}}}\n"
        "features:\n  c: {kind: combination, of: e.a, slots: {permutations: 1}}\n"
    )
    hints = re.findall(r"did you mean '(\w+)'", "\n".join(m for _, _, m in problems(text)))
    assert set(hints) == {"version", "slot_bits", "key", "edges", "base", "permutation"}


def test_all_problems_are_reported_at_once_in_the_order_of_lines() -> None:
    found = problems(
        HEAD + GOOD + "  g: {kind: attribute, slot: 1, of: user.x}\n  h: {kind: weak, of: [g, f]}\n"
    )
    assert [code for code, _, _ in found] == ["duplicate-slot", "unknown-reference", "missing-slot"]
    lines = [line or 0 for _, line, _ in found]
    assert lines == sorted(lines)


def test_an_entitys_key_and_clashing_names_are_checked() -> None:
    text = (
        "entities:\n  l: {key: sinlge, attributes: {single: {type: int, list: true}}}\n"
        "features:\n  l: {kind: combination, of: l.single}\n"
    )
    found = problems(text)
    assert [(code, line) for code, line, _ in found] == [("unknown-attribute", 2), ("ambiguous-name", 4)]
    assert "did you mean 'single'?" in found[0][2] and "'l.single' is both" in found[1][2]


def test_a_mapping_and_a_path_are_loaded_alike(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="config: entities is missing; it must be given"):
        load({"features": {}})
    large = tmp_path / "large.yaml"
    large.write_text("#" * (BYTES_MAX + 1))
    with pytest.raises(ConfigError, match="the most is"):
        load(large)
    with pytest.raises(ConfigError, match="must map names to declarations"):
        load({"entities": [], "features": {}})


def test_operands_are_bounded() -> None:
    attributes = {f"a{n}": {"type": "int"} for n in range(OPERANDS_MAX + 1)}
    of = [f"e.{name}" for name in attributes]
    with pytest.raises(ConfigError, match=f"at most {OPERANDS_MAX} items"):
        load(
            {
                "entities": {"e": {"attributes": attributes}},
                "features": {"f": {"kind": "categorical", "of": of}},
            }
        )


def test_the_documented_configs_load() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        Engine(load_text(block))


def test_every_key_of_the_language_is_documented() -> None:
    page = PAGE.read_text()
    schema = __import__("feature_cross").CrossConfig.model_json_schema()
    for definition in [schema, *schema["$defs"].values()]:
        for key in definition["properties"]:
            assert key in page, f"{definition['title']}.{key} is not in docs/feature_cross.md"


def test_a_file_is_read_and_named(tmp_path: Path) -> None:
    path = tmp_path / "crosses.yaml"
    path.write_text(HEAD + GOOD)
    assert load(path).source == str(path)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "none.yaml")
    path.write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(path)


HOSTILE = {
    "big": "a: '" + "x" * BYTES_MAX + "'",
    "ten megabytes": "- a\n" * 2_500_000,
    "many values": "[" + "1," * 300_000 + "1]",
    "deep flow": "[" * 100_000,
    "deep block": "\n".join(" " * n + "a:" for n in range(DEPTH_MAX + 2)),
    "alias bomb": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(
        f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "alias to itself": "a: &a [*a]",
    "merge": "a: &a {b: 1}\nc:\n  <<: *a",
    "binary": "a: !!binary aGVsbG8=",
    "huge int": "version: " + "9" * 5000,
    "control characters": "a: \x07",
    "two documents": "a: 1\n---\nb: 2",
    "empty": "",
    "list": "[1, 2]",
    "text": "hello",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_refused_in_bounded_time(name: str) -> None:
    begin = time.process_time()
    with pytest.raises(ConfigError):
        load_text(HOSTILE[name])
    assert time.process_time() - begin < 10


def test_every_problem_code_is_documented_and_raised_somewhere() -> None:
    contract = PAGE.parents[1] / "proto" / "rowhouse"
    paths = [*(PAGE.parents[1] / "feature_cross").rglob("*.py"), contract / "document.py"]
    sources = "\n".join(path.read_text() for path in [*paths, contract / "validation.py"])
    calls = r'(?:\b_?add|_add_once|_warning|_fail|Problem)\(\s*(?:config,\s*)?"([a-z-]+)"'
    raised = set(re.findall(calls, sources)) | set(re.findall(r'yield "([a-z-]+)", ', sources))
    listed = PAGE.read_text().partition("What `check` finds, by code.")[2].partition("\n\n")[0]
    assert len(raised) > 25
    assert raised == set(re.findall(r"`([a-z]+(?:-[a-z]+)*)`", listed)) - {"load"}
