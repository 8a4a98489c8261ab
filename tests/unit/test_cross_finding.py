# SPDX-License-Identifier: Apache-2.0
"""`check` finds in one run all that can be found: a fault hides no other that does not depend on it."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_cross.author.check.finding import find
from feature_cross.author.cli import main
from feature_cross.config.loader import load_text
from feature_cross.error import ConfigError

CONFIG = """\
ids: {slot_bits: 6}
entities:
  user:
    key: id
    attributes:
      id: {type: int, colum: user}
      city: {type: string, normalize: [lower]}
      age: {type: int}
      band: {type: int, column: agee}
      score: {type: float}
      seen: {type: int, list: true, column: sen}
      words: {type: string, list: true}
      old: {type: int}
  item:
    keey: b
    attributes:
      b: {type: int}
      d: {type: int, column: dd}
features:
  age: {kind: attribute, slot: 1, of: user.age}
  score: {kind: attribute, slot: 2, of: user.score}
  deep: {kind: interaction, slot: 3, of: [city_x_b, user.age]}
  city_x_b: {kind: interaction, slot: 4, of: [user.city, item.b]}
  again: {kind: attribute, slot: 1, of: item.b}
  kindless: {kind: attribut, slot: 6, of: user.age}
  unknown: {kind: interaction, slot: 7, of: [user.agee, item.b]}
  family: {kind: categorical, slot: 8, of: [user.age, item.d]}
  band: {kind: attribute, slot: 9, of: user.band}
  seen: {kind: combination, form: single, slot: 10, of: user.seen}
  words: {kind: combination, form: single, slot: 11, of: user.words}
  pairs: {kind: weak, slot: 12, of: [user.words, user.seen2]}
  product: {kind: weak, slot: 13, of: [words, user.words2]}
  lists: {kind: combination, form: sorted, size: 2, slot: 14, of: user.words}
"""


def check(folder: Path, text: str, *flags: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    (folder / "c.yaml").write_text(text)
    assert main(["check", str(folder / "c.yaml"), "--json", *flags]) == 1
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["problems"]
    return found


def lines(text: str, problems: list[dict[str, Any]]) -> dict[str, str]:
    """Code and first word of the line that each problem points at."""
    rows = text.splitlines()
    return {
        f"{one['code']} {rows[one['line'] - 1].split(':')[0].strip()}": one["message"] for one in problems
    }


def test_all_classes_are_found_in_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pa.table(
        {"user": [1], "age": [1], "city": ["a"], "b": [1], "words": [["a", "b"]], "score": [0.5]}
    )
    pa.parquet.write_table(table, tmp_path / "t.parquet")
    problems = check(tmp_path, CONFIG, "--data", str(tmp_path / "t.parquet"), capsys=capsys)
    found = lines(CONFIG, problems)
    assert set(found) == {
        "unknown-key id", "unknown-key city", "unknown-key keey", "raw-float score", "duplicate-slot again",
        "kind kindless", "unknown-reference unknown", "family family", "unknown-reference pairs",
        "unknown-reference product", "unknown-column band", "unknown-column seen", "unknown-column d",
        "unbounded-product lists", "unused-attribute old",
    }  # fmt: skip
    assert len(problems) == len(found)  # nothing twice, and nothing of `deep`, whose part is wrong
    assert "did you mean 'age'" in found["unknown-column band"]
    assert [one["line"] for one in problems] == sorted(one["line"] for one in problems)


def test_every_column_that_does_not_fit_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """\
entities:
  e:
    attributes:
      a: {type: int, missing: error}
      b: {type: string, missing: error}
      c: {type: int}
      d: {type: int}
features:
  a: {kind: attribute, of: e.a}
  b: {kind: attribute, of: e.b}
  c: {kind: attribute, of: e.c}
  d: {kind: attribute, of: e.d, when: {e.d: {at_least: 9}}}
"""
    columns = {"a": [1, None], "b": ["x", None], "c": ["text", "text"], "d": [1, 2]}
    pa.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    problems = check(tmp_path, text, "--data", str(tmp_path / "t.parquet"), capsys=capsys)
    assert set(lines(text, problems)) == {"mistyped-column c", "data a", "data b", "empty-feature d"}


def test_yaml_faults_are_all_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        "entities:\n  5: {}\n  e: {attributes: {a: {type: int, type: int}}}\nfeatures: !x {}\nfeatures: 1\n"
    )
    problems = check(tmp_path, text, capsys=capsys)
    assert [(one["code"], one["line"]) for one in problems] == [
        ("key-type", 2), ("duplicate-key", 3), ("yaml-tag", 4), ("duplicate-key", 5),
    ]  # fmt: skip


def test_top_level_faults_hide_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "verson: 1\n" + CONFIG.replace("{slot_bits: 6}", "{slot_bits: 99}")
    found = lines(text, check(tmp_path, text, capsys=capsys))
    assert {"unknown-key verson", "value ids", "duplicate-slot again", "unused-attribute old"} <= set(found)


VALID = """\
entities:
  user: {attributes: {a: {type: int}, s: {type: string}, h: {type: int, list: true, max_length: 3}}}
  item: {attributes: {b: {type: int}}}
features:
  a: {kind: attribute, of: user.a}
  axb: {kind: interaction, of: [user.a, item.b]}
  deep: {kind: weak, of: [axb, user.h], when: {user.s: {any_of: [x]}}}
  all: {kind: combination, of: user.h}
"""


@given(st.data())
def test_any_damage_ends_and_says_what_load_says(data: st.DataObject) -> None:
    """A text with words replaced: `find` comes to an end, has all errors of `load`, and no exception."""
    import re
    import tempfile

    text = VALID
    for _ in range(data.draw(st.integers(1, 4))):
        words = list(re.finditer(r"[\w.]+", text))
        at = words[data.draw(st.integers(0, len(words) - 1))]
        other = data.draw(
            st.sampled_from(["x", "5", "a", "user.a", "kind", "of", "type", "[]", "{}", "null", "on"])
        )
        text = text[: at.start()] + other + text[at.end() :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.yaml"
        path.write_text(text)
        try:
            load_text(text, str(path))
            first = []
        except ConfigError as error:
            first = list(error.problems)
        try:
            errors = [one for one in find(str(path), None).problems if one.severity == "error"]
        except ConfigError as error:
            errors = list(error.problems)
    assert {(one.code, one.line) for one in first} <= {(one.code, one.line) for one in errors}
    assert bool(first) == bool(errors)
