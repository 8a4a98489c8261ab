# SPDX-License-Identifier: Apache-2.0
"""Invented rows that meet a feature's conditions, and what is told where there are none."""

import json
from pathlib import Path

import pytest

from feature_cross import Engine
from feature_cross.author.cli import main
from feature_cross.author.guard.edge import EDGE_ROWS, WITNESSES_MAX, edge_rows, witness_rows
from feature_cross.author.guard.golden import check_golden, freeze
from feature_cross.config.loader import load_text

CONFIG = """\
entities:
  u:
    attributes:
      id: {type: int}
      country: {type: string, normalise: [strip, lower]}
      spend: {type: float}
      score: {type: float, buckets: {edges: [0.5]}}
      paid: {type: bool}
      hour: {type: date, column: at, part: hour}
      weekday: {type: date, column: at, part: weekday}
      year: {type: date, column: at, part: year}
      born: {type: date, age: {column: now, unit: week}, buckets: {edges: [0, 52]}}
      tags: {type: string, list: true}
      seen: {type: int, list: true, recency: {times: times, within: 30, unit: day, column: now}, weights: w}
features:
  f: {kind: categorical, of: [u.id, u.tags], when: WHEN}
"""

MET = [
    '{u.country: {any_of: [" NO ", SE]}}',
    "{u.country: {any_of: [se, dk], none_of: [dk]}}",
    "{u.id: {any_of: [424242]}}",
    "{u.id: {at_least: 5000.5, below: 5002}}",
    "{u.id: {below: -5000000000}}",
    "{u.spend: {at_least: 17.25, below: 17.5}}",
    "{u.score: {at_least: 0.75}, u.paid: {any_of: [false]}}",
    "{u.hour: {at_least: 22}, u.weekday: {any_of: [6]}}",
    "{u.year: {any_of: [1999]}}",
    "{u.born: {at_least: 3, below: 4}}",
    "{u.tags: {any_of: [sale], none_of: [a]}}",
    "{u.seen: {any_of: [31337]}}",
    "{u.seen: {present: false}, u.country: {any_of: [se]}}",
    "{u.country: {any_of: [se]}, u.id: {any_of: [99]}, u.spend: {below: -77}, u.tags: {any_of: [x, y]}}",
]


@pytest.mark.parametrize("when", MET)
def test_a_feature_with_simple_conditions_is_frozen_with_rows_that_meet_them(when: str) -> None:
    engine = Engine(load_text(CONFIG.replace("WHEN", when)))
    batch = edge_rows(engine)
    made = engine.transform(batch)
    assert len(made["f"][0]) > 0
    assert EDGE_ROWS <= len(batch) <= EDGE_ROWS + WITNESSES_MAX
    golden = freeze(engine, batch)
    assert check_golden(engine, golden).passed
    rows = batch.slice(EDGE_ROWS).to_pylist()
    assert len({repr(row) for row in rows}) == len(rows), "no row twice"


def test_a_golden_file_of_invented_rows_shows_a_changed_feature_under_rare_conditions() -> None:
    text = CONFIG.replace("WHEN", "{u.country: {any_of: [se]}, u.spend: {at_least: 17.25, below: 17.5}}")
    engine = Engine(load_text(text))
    golden = freeze(engine, edge_rows(engine))
    for changed in (
        text.replace("kind: categorical", "kind: categorical, seed: g"),
        text.replace("17.5}", "17.3}"),
    ):
        assert changed != text and not check_golden(Engine(load_text(changed)), golden).passed


def test_conditions_of_what_a_feature_derives_from_are_met_too() -> None:
    text = CONFIG.replace("WHEN", "{u.country: {any_of: [se]}}, emit: false") + (
        "  deep: {kind: categorical, of: [f, u.paid], when: {u.spend: {at_least: 9.5, below: 9.75}}}\n"
    )
    engine = Engine(load_text(text))
    assert len(engine.transform(edge_rows(engine))["deep"][0]) > 0


def test_conditions_that_the_usual_rows_meet_get_no_more() -> None:
    engine = Engine(load_text(CONFIG.replace("WHEN", "{u.spend: {at_least: 0}}")))
    assert len(edge_rows(engine)) == EDGE_ROWS


@pytest.mark.parametrize(
    "when",
    [
        "{u.country: {any_of: [se], none_of: [se]}}",
        "{u.hour: {any_of: [25]}}",
        "{u.hour: {any_of: [23]}, u.year: {any_of: [1999]}}",  # of one column
        "{u.id: {present: false}}",
    ],
)
def test_where_no_row_is_found_that_is_told(
    when: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = CONFIG.replace("WHEN", when)
    engine = Engine(load_text(text))
    assert witness_rows(engine, "f", edge_rows(engine)) is None
    (tmp_path / "c.yaml").write_text(text)
    flags = ["golden", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "g.json")]
    assert main(flags) == 0
    assert "warning: f has no id in these rows" in (said := capsys.readouterr().out)
    assert "no row meets its `when`; give DATA that has such rows" in said
    assert main([*flags, "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["uncovered"] == ["f"]
