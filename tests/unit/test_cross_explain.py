# SPDX-License-Identifier: Apache-2.0
"""`explain` says why a feature has no id in a row, and the weights of those that it has."""

import json
from pathlib import Path

import pytest

from tests.cross_files import run

CHOSEN = """\
entities:
  user:
    attributes:
      city: {type: string, normalise: [lower]}
      age: {type: int}
      seen: {type: int, list: true, weights: minutes}
features:
  part: {kind: categorical, of: [user.city, user.age], when: {user.age: {at_least: 18}}}
  whole: {kind: weak, of: [part, user.seen]}
  seen: {kind: combination, form: single, of: user.seen}
  oslo: {kind: weak, of: [user.age, user.seen], when: {user.city: {any_of: [Oslo, Rome]}}}
"""


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"age": 7}, "part: no id in this row: when user.age {at_least: 18} is not met: it is 7"),
        ({"age": 7}, "whole: no id in this row: part has none: when user.age {at_least: 18} is not met"),
        ({"city": None}, "part: no id in this row: user.city has no value (missing: drop)"),
        ({"seen": [], "minutes": []}, "seen: no id in this row: user.seen has no value (missing: drop)"),
        ({"city": "Paris"}, 'when user.city {any_of: ["Oslo", "Rome"]} is not met: it is "Paris"'),
        ({}, "weight 2.5"),
    ],
)  # fmt: skip
def test_explain_says_why_there_is_no_id_and_the_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: dict[str, object], said: str
) -> None:
    (tmp_path / "c.yaml").write_text(CHOSEN)
    row = {"city": "Oslo", "age": 30, "seen": [1, 2], "minutes": [0.5, 2.5], **values}
    assert run("explain", "--config", tmp_path / "c.yaml", "--values", json.dumps(row)) == 0
    assert said in capsys.readouterr().out


def test_explain_gives_the_engines_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text(CHOSEN)
    row = '{"city": "Oslo", "age": 30, "seen": [1, 2], "minutes": [0.5, 2.5]}'
    assert run("explain", "--config", tmp_path / "c.yaml", "--values", row, "--json") == 0
    steps = json.loads(capsys.readouterr().out)
    assert [(step["feature"], step.get("weight")) for step in steps] == [
        ("part", None), ("whole", 0.5), ("whole", 2.5), ("seen", 0.5), ("seen", 2.5), ("oslo", 0.5),
        ("oslo", 2.5),
    ]  # fmt: skip
