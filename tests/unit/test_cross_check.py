# SPDX-License-Identifier: Apache-2.0
"""`feature-cross check`: what it finds in a config, alone and against data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from feature_cross import Engine, load
from tests.cross_files import CONFIG, run, write_files


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return write_files(tmp_path)


def check(files: Path, capsys: pytest.CaptureFixture[str], *flags: object) -> tuple[int, Any]:
    code = run("check", files / "c.yaml", "--json", *flags)
    return code, json.loads(capsys.readouterr().out)


def test_check_finds_a_futile_cross_and_confirms_it_on_data(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = check(files, capsys)
    assert code == 0
    assert [(p["code"], p["line"], p["severity"]) for p in found["problems"]] == [
        ("futile-cross", 15, "warning")
    ]
    code, found = check(files, capsys, "--data", files / "t.parquet")
    assert code == 0 and "measured: distinct(cross) / distinct(id) = 1.000" in found["problems"][0]["message"]
    assert found["survey"]["rows"] == 200
    batch = Engine(load(files / "c.yaml")).transform(pa.parquet.read_table(files / "t.parquet"))
    for name, measured in found["survey"]["features"].items():
        ids, offsets = batch[name]
        covered = int((np.diff(offsets) > 0).sum())
        assert measured == {"covered_rows": covered, "ids": len(ids), "distinct": len(set(ids.tolist()))}


def test_check_drops_the_warning_where_data_refutes_it(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pa.parquet.read_table(files / "t.parquet")
    city = pa.array([str(number) for number in range(200)])
    pa.parquet.write_table(table.set_column(1, "city", city), files / "t.parquet")
    code, found = check(files, capsys, "--data", files / "t.parquet")
    assert code == 0 and found["problems"] == []
    assert found["survey"]["futile_ratios"][0]["ratio"] == pytest.approx(200 / 50, rel=0.1)


LINTS = [
    (
        "seen: {type: string, list: true, max_length: 3, keep: last}",
        "seen: {type: string, list: true}",
        "unbounded-product",
    ),
    ("ids: {slot_bits: 6}", "ids: {}", None),
    ("  deep: {kind: weak, slot: 3,", "  deep: {kind: weak, slot: 3, seed: city_x_price,", None),
    ("      new: {type: bool}", "      new: {type: bool}\n      old: {type: bool}", "unused-attribute"),
]


@pytest.mark.parametrize(("old", "new", "code"), LINTS)
def test_check_warns(
    files: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, code: str | None
) -> None:
    assert old in CONFIG
    (files / "c.yaml").write_text(CONFIG.replace(old, new))
    _, found = check(files, capsys)
    assert [p["code"] for p in found["problems"] if p["code"] != "futile-cross"] == ([code] if code else [])


def test_check_warns_of_shared_seeds_without_slots(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = CONFIG.replace("ids: {slot_bits: 6}\n", "").replace(
        "{kind: weak, slot: 3,", "{kind: weak, seed: city_x_price,"
    )
    (files / "c.yaml").write_text(text)
    _, found = check(files, capsys)
    assert "deep has the seed of city_x_price" in [p["message"] for p in found["problems"]][-1]


def test_check_reports_errors_with_exit_code_1(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "c.yaml").write_text(CONFIG.replace("slot: 2", "slot: 1"))
    code, found = check(files, capsys)
    places = [(p["code"], p["line"]) for p in found["problems"]]
    assert code == 1 and places == [("futile-cross", 15), ("duplicate-slot", 16)]  # neither hides the other
    assert run("check", files / "c.yaml") == 1
    text = capsys.readouterr().out
    assert "c.yaml:16: features.city_x_price.slot: slot 1" in text and "1 error, 1 warning" in text
    (files / "c.yaml").write_text(CONFIG.replace("slot: 2", "slot: 1").replace("slot: 3", "slot: 1"))
    assert run("check", files / "c.yaml") == 1
    assert "c.yaml: 2 errors, 1 warning" in capsys.readouterr().out


def test_check_reports_columns_that_do_not_fit(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "c.yaml").write_text(CONFIG.replace("column: user", "column: price"))
    code, found = check(files, capsys, "--data", files / "t.parquet")
    last = found["problems"][-1]
    assert code == 1 and (last["code"], last["line"]) == ("mistyped-column", 6)
    assert "column 'price' (user.id) has Arrow type double; type int takes integers" in last["message"]
    (files / "c.yaml").write_text(CONFIG.replace("column: user", "column: uesr"))
    code, found = check(files, capsys, "--data", files / "t.parquet")
    last = found["problems"][-1]
    assert code == 1 and (last["code"], last["line"]) == ("unknown-column", 6)
    assert "did you mean 'user'?" in last["message"]


def test_check_reports_a_value_that_does_not_fit(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "c.yaml").write_text(CONFIG.replace("missing: own_id", "missing: error"))
    code, found = check(files, capsys, "--data", files / "t.parquet")
    (wrong,) = [problem for problem in found["problems"] if problem["code"] == "data"]
    assert code == 1 and "(user.city) has no value in row" in wrong["message"] and wrong["line"]
    assert run("check", files / "c.yaml", "--data", files / "none.parquet", "--json") == 1
    assert "no such file" in json.loads(capsys.readouterr().out)["problems"][-1]["message"]


def test_check_reports_a_feature_that_gives_nothing(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pa.parquet.read_table(files / "t.parquet")
    pa.parquet.write_table(table.set_column(4, "day", pa.nulls(200, pa.timestamp("s"))), files / "t.parquet")
    _, found = check(files, capsys, "--data", files / "t.parquet")
    empty = [p["message"] for p in found["problems"] if p["code"] == "empty-feature"]
    assert empty == ["deep gives no id in 200 rows", "seen_x_day gives no id in 200 rows"]


def test_check_prints_a_table_for_people(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", files / "c.yaml", "--data", files / "t.parquet") == 0
    assert "seen.sorted" in capsys.readouterr().out


def test_check_follows_bounds_through_derived_features(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = """\
entities:
  e: {attributes: {a: {type: int, list: true}, b: {type: int, list: true, max_length: 2}, c: {type: int}}}
features:
  bounded: {kind: weak, of: [e.b, e.c]}
  limited: {kind: weak, of: [e.a, e.c], limit: 9}
  open: {kind: weak, of: [e.a, e.c]}
  fine: {kind: weak, of: [bounded, limited]}
  wide: {kind: weak, of: [bounded, open]}
  whole: {kind: combination, form: sorted, of: e.a}
  one: {kind: weak, of: [whole, e.c]}
  subsets: {kind: combination, form: sorted, size: 2, of: e.a}
"""
    (files / "c.yaml").write_text(text)
    code, found = check(files, capsys)
    assert code == 0
    named = [(p["code"], p["path"][1]) for p in found["problems"]]
    assert named == [("unbounded-product", "wide"), ("unbounded-product", "subsets")]


LINES = """\
entities:
  user:
    key: id
    attributes:
      id: {type: int}
      city: {type: string}
      country: {type: string}
      seen: {type: int, list: true}
      old: {type: bool}
  item:
    attributes:
      tags: {type: int, list: true}
features:
  futile: {kind: categorical, of: [user.id, user.city]}
  place:
    kind: categorical
    of: [user.city, user.country]
  wide: {kind: weak, of: [user.seen, item.tags]}
  city: {kind: attribute, of: user.city}
  town:
    kind: attribute
    of: user.country
    seed: city
"""


def test_every_warning_points_at_its_line(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "c.yaml").write_text(LINES)
    wanted = [("unused-attribute", 9), ("futile-cross", 14), ("unbounded-product", 18), ("shared-seed", 23)]
    _, found = check(files, capsys)
    assert [(p["code"], p["line"]) for p in found["problems"]] == wanted
    cities = np.arange(200) % 20
    table = pa.table(
        {
            "id": np.arange(200) % 50,
            "city": pa.array(np.char.add("c", cities.astype(str))),
            "country": pa.array(np.char.add("n", (cities % 5).astype(str))),
            "seen": pa.array([[1]] * 200),
            "tags": pa.array([[]] * 200, pa.list_(pa.int64())),
        }
    )
    pa.parquet.write_table(table, files / "t.parquet")
    _, found = check(files, capsys, "--data", files / "t.parquet")
    wanted = sorted([*wanted, ("determined-attribute", 17)], key=lambda each: each[1])
    wanted = [each for each in wanted if each[0] != "futile-cross"]
    wanted.insert(wanted.index(("unbounded-product", 18)) + 1, ("empty-feature", 18))
    assert [(p["code"], p["line"]) for p in found["problems"]] == wanted
    message = next(p["message"] for p in found["problems"] if p["code"] == "determined-attribute")
    assert message == (
        "user.city determines user.country (measured: 20 values, 20 with user.country),"
        " so user.country adds nothing to user.city in place; leave one out"
    )


def test_a_value_seen_once_determines_nothing() -> None:
    from feature_cross.author.check.lint import PairCount

    assert PairCount(rows=100, left=50, right=5, both=50).determined() is None
    assert PairCount(rows=150, left=50, right=5, both=50).determined() == "right"
    assert PairCount(rows=1000, left=5, right=50, both=52).determined() == "left"
    assert PairCount(rows=1000, left=5, right=50, both=53).determined() is None
    assert PairCount(rows=1000, left=20, right=1, both=20).determined() == "right"
    assert PairCount(rows=0, left=0, right=0, both=0).determined() is None
