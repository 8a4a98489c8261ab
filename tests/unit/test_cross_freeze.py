# SPDX-License-Identifier: Apache-2.0
"""`feature-cross golden`: what is frozen reads back as it was, and any change of an id is named."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from feature_cross import DataError, Engine, load
from feature_cross.author.cli import main
from feature_cross.author.guard.edge import EDGE_ROWS, edge_rows
from feature_cross.author.guard.golden import check_golden, freeze, read_golden
from feature_cross.config.loader import load_text
from feature_cross.error import FlagError

CONFIG = """\
ids: {slot_bits: 8}
entities:
  user:
    attributes:
      id: {type: int}
      city: {type: string, normalise: [strip, lower], missing: own_id}
      seen: {type: string, list: true, max_length: 3}
      score: {type: float, buckets: {edges: [0.1, 0.5]}, missing: own_id}
      days: {type: date, part: date, list: true}
  item:
    attributes:
      new: {type: bool}
      at: {type: date, part: hour}
      visit: {type: date, part: weekday, column: at}
features:
  id: {kind: attribute, slot: 1, of: user.id}
  city_x_new: {kind: interaction, slot: 2, of: [user.city, item.new]}
  seen: {kind: combination, of: user.seen, slots: {permutation: 3, single: 4, sorted: 5}}
  score_x_at: {kind: interaction, slot: 6, of: [user.score, item.at]}
  days_x_visit: {kind: weak, slot: 7, of: [user.days, item.visit]}
"""


def table() -> pa.Table:
    utc = pa.timestamp("ns", "UTC")
    return pa.table(
        {
            "id": pa.array([2**64 - 1, 0, 7, None], pa.uint64()),
            "city": pa.array([" Zürich", None, "Oslo", "Oslo"]).dictionary_encode(),
            "seen": pa.array([["b", None, "a"], [], None, ["x"] * 5], pa.large_list(pa.large_string())),
            "score": pa.array([float("nan"), 0.1, float("-inf"), None]),
            "days": pa.array([[0, 19000], [None], [], [-1]], pa.list_(pa.date32())),
            "new": [True, False, None, True],
            "at": pa.array([10**18 + 1, 0, -1, None], utc),
            "extra": ["not read"] * 4,
        }
    )


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "c.yaml").write_text(CONFIG)
    pa.parquet.write_table(table(), tmp_path / "t.parquet")
    return tmp_path


def run(files: Path, *flags: object) -> int:
    return main(["golden", str(files / "c.yaml"), *map(str, flags)])


def test_a_golden_file_holds_the_ids_and_the_rows(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = files / "g.json"
    assert run(files, files / "t.parquet", "--out", out, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["rows"] == 4 and said["ids"]["seen.single"] == 5
    body = json.loads(out.read_text())
    engine = Engine(load(files / "c.yaml"))
    made = engine.transform(table())
    for name in made.features:
        ids, offsets = made[name]
        rows = [[f"0x{i:016x}" for i in ids[offsets[r] : offsets[r + 1]].tolist()] for r in range(4)]
        assert body["features"][name] == rows
    assert "extra" not in body["columns"] and body["columns"]["days"]["values"][0] == [
        "1970-01-01",
        "2022-01-08",
    ]
    # a line per column and per feature: a review shows what changed
    assert len(out.read_text().splitlines()) == 1 + 5 + 1 + 7 + 1 + 1 + len(made.features) + 1 + 1 + 1
    assert run(files, "--check", out) == 0
    assert "ids are as frozen, 4 rows" in capsys.readouterr().out


def test_a_frozen_batch_reads_back_with_its_types(files: Path) -> None:
    engine = Engine(load(files / "c.yaml"))
    golden = freeze(engine, table().combine_chunks().to_batches()[0])
    (files / "g.json").write_text(golden.text())
    again = read_golden(files / "g.json")
    assert again.batch.schema == golden.batch.schema
    for name in golden.batch.schema.names:
        left, right = (batch.column(name).to_string(window=99) for batch in (golden.batch, again.batch))
        assert left == right, name  # as text: NaN is not NaN
    assert again.features == golden.features and check_golden(engine, again).passed


CHANGES = [
    ("id: {kind: attribute, slot: 1,", "id: {kind: attribute, slot: 1, seed: 5,", "id", 3),
    ("normalise: [strip, lower]", "normalise: [lower]", "city_x_new", 1),
    ("edges: [0.1, 0.5]", "edges: [0.2, 0.5]", "score_x_at", 1),
    ("max_length: 3", "max_length: 2", "seen.single", 1),
    ("slot: 7", "slot: 70", "days_x_visit", 1),
    ("missing: own_id}\n      seen", "missing: drop}\n      seen", "city_x_new", 1),
]


@pytest.mark.parametrize(("old", "new", "feature", "rows"), CHANGES)
def test_a_change_is_named_with_feature_and_row(
    files: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, feature: str, rows: int
) -> None:
    assert run(files, files / "t.parquet", "--out", files / "g.json") == 0
    assert old in CONFIG
    (files / "c.yaml").write_text(CONFIG.replace(old, new))
    capsys.readouterr()
    assert run(files, "--check", files / "g.json", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    mine = [one for one in found["mismatches"] if one["feature"] == feature]
    assert len(mine) == rows and not found["passed"] and mine[0]["frozen"] != mine[0]["found"]
    assert run(files, "--check", files / "g.json") == 1
    text = capsys.readouterr().out
    assert f"{feature}: row {mine[0]['row']} (" in text and "ids have changed" in text
    assert f"{feature}: {rows} of 4 rows have other ids" in text


def test_a_feature_that_is_gone_fails_and_a_new_one_does_not(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(files, "--out", files / "g.json") == 0
    more = CONFIG.replace("      new: {type: bool}", "      new: {type: bool}\n      later: {type: int}")
    (files / "c.yaml").write_text(more + "  hour: {kind: attribute, slot: 9, of: item.later}\n")
    assert run(files, "--check", files / "g.json") == 0
    assert "hour: new, not frozen in" in capsys.readouterr().out
    (files / "c.yaml").write_text(CONFIG.replace("  id: {kind", "  user_id: {kind"))
    assert run(files, "--check", files / "g.json") == 1
    assert "id: frozen in" in capsys.readouterr().out


def test_a_file_that_was_changed_by_hand_is_refused(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = files / "g.json"
    assert run(files, "--out", out) == 0
    whole = out.read_text()
    for wrong, message in (
        (whole.replace('"Oslo"', '"oslo"').replace(" Oslo ", "Oslo"), "does not fit its text"),
        (whole.replace("0x0", "0x1", 1), "does not fit its text"),
        (whole.replace('"version": 1', '"version": 2'), "has version 2; this package reads 1"),
        (whole[:-5], "is not a golden file"),
        ("[" * 100_000, "is not a golden file"),
        ('{"kind": "other"}', "its kind is not feature_cross.golden"),
    ):
        assert wrong != whole
        out.write_text(wrong)
        assert run(files, "--check", out) == 1
        assert message in capsys.readouterr().err
    assert run(files, "--check", files / "none.json") == 1
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["t.parquet", "--check", "g.json"], "DATA does nothing with --check"),
        (["--check", "g.json", "--rows", "5"], "--rows does nothing with --check"),
        (["--check", "g.json", "--force"], "--force does nothing with --check"),
        (["--out", "n.json", "--rows", "5"], "--rows does nothing without DATA"),
        (["--out", "g.json"], "exists: frozen ids are overwritten with --force only"),
        (["t.parquet", "--out", "t.parquet", "--force"], "which is the input"),
    ],
)
def test_flags_that_cannot_be_are_refused(
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(files)
    assert run(files, "--out", "g.json") == 0
    assert run(files, *flags) == 2
    assert message in capsys.readouterr().err


def test_force_overwrites_and_rows_are_taken_evenly(files: Path) -> None:
    rows = table().take(pa.array(np.arange(1000) % 4))
    pa.parquet.write_table(rows.set_column(0, "id", pa.array(np.arange(1000))), files / "t.parquet")
    assert run(files, "--out", files / "g.json") == 0
    assert run(files, files / "t.parquet", "--out", files / "g.json", "--force", "--rows", 10) == 0
    golden = read_golden(files / "g.json")
    assert golden.batch.column("id").to_pylist() == list(range(0, 1000, 100))


def test_invented_rows_reach_every_edge() -> None:
    engine = Engine(load_text(CONFIG))
    batch = edge_rows(engine)
    assert len(batch) == EDGE_ROWS
    ids = set(batch.column("id").to_pylist())
    assert {None, 0, -1, 2**63 - 1, -(2**63)} <= ids
    scores = {value for value in batch.column("score").to_pylist() if value is not None}
    assert {0.1, np.nextafter(0.1, -1), 0.5} <= scores
    lists = batch.column("seen").to_pylist()
    assert None in lists and [] in lists and max(map(len, filter(None, lists))) > 3
    made = engine.transform(batch)
    assert all(len(made[name][0]) > 0 for name in made.features)
    buckets = len(set(made["score_x_at"][0].tolist()))
    assert buckets > 3


def test_a_config_that_invented_rows_do_not_fit_asks_for_data() -> None:
    text = """\
entities:
  e: {attributes: {a: {type: int, column: x}, b: {type: string, column: x}}}
features:
  a: {kind: attribute, of: e.a}
  b: {kind: attribute, of: e.b}
"""
    with pytest.raises(FlagError, match=r"no rows can be invented for this config .*; give DATA to freeze"):
        edge_rows(Engine(load_text(text)))


def test_a_column_that_cannot_be_written_is_named() -> None:
    class Reading:
        columns = ("a",)

    engine: Any = Reading()
    batch = pa.record_batch({"a": pa.array([b"x"], pa.binary(1))})
    with pytest.raises(DataError, match="column 'a' has Arrow type fixed_size_binary"):
        freeze(engine, batch)
    with pytest.raises(DataError, match="'a'"):
        freeze(engine, pa.record_batch({"a": pa.array([{"k": 1}])}))


def test_an_empty_source_is_refused(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pa.parquet.write_table(table().slice(0, 0), files / "t.parquet")
    assert run(files, files / "t.parquet", "--out", files / "g.json") == 1
    assert "the data has no rows to freeze" in capsys.readouterr().err


def test_a_feature_without_ids_in_the_rows_is_a_warning(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pa.parquet.write_table(table().slice(1, 1), files / "t.parquet")
    assert run(files, files / "t.parquet", "--out", files / "g.json") == 0
    assert "warning: seen.single has no id in these rows" in capsys.readouterr().out


def test_invented_rows_have_the_columns_beside_a_value() -> None:
    text = """\
entities:
  u:
    attributes:
      seen: {type: int, list: true, recency: {times: at, within: 400, unit: day, column: now}, weights: w}
      born: {type: date, age: {column: now, unit: week}, buckets: {edges: [0, 52]}}
      raw: {type: float}
      a: {type: int, weights: one}
features:
  seen: {kind: combination, form: single, of: u.seen}
  born: {kind: attribute, of: u.born, when: {u.raw: {at_least: 0}}}
  a: {kind: attribute, of: u.a}
"""
    engine = Engine(load_text(text))
    golden = freeze(engine, edge_rows(engine))
    assert all(any(rows) for rows in golden.features.values())
    assert any(not ids for ids in golden.features["born"])
    changed = Engine(load_text(text.replace("at_least: 0", "at_least: 9")))
    (first, *_) = check_golden(changed, golden).mismatches
    assert first.feature == "born" and set(first.values) == {"born", "now", "raw"}


def test_what_a_frozen_feature_derives_from_and_shares_is_checked_with_it() -> None:
    text = """\
ids: {slot_bits: 8}
entities:
  u: {attributes: {a: {type: int}, b: {type: int}, c: {type: int}}}
features:
  a: {kind: attribute, slot: 1, of: u.a}
  twin: {kind: attribute, share: a, of: u.b}
  hidden: {kind: categorical, emit: false, of: [u.a, u.b]}
  deep: {kind: categorical, slot: 2, of: [hidden, u.c]}
"""
    golden = freeze(Engine(load_text(text)), edge_rows(Engine(load_text(text))))
    golden = replace(golden, features={name: golden.features[name] for name in ("twin", "deep")})
    assert check_golden(Engine(load_text(text)), golden).new == ("a",)
    changed = check_golden(Engine(load_text(text.replace("emit: false", "emit: false, seed: x"))), golden)
    assert {one.feature for one in changed.mismatches} == {"deep"}
    changed = check_golden(Engine(load_text(text.replace("slot: 1,", "slot: 3,"))), golden)
    assert {one.feature for one in changed.mismatches} == {"twin"}
    gone = check_golden(Engine(load_text(text.replace("twin:", "t:").replace("deep:", "d:"))), golden)
    assert gone.absent == ("twin", "deep") and not gone.passed
