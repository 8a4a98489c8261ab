# SPDX-License-Identifier: Apache-2.0
"""`feature-cross estimate` against exact counts: what it measures, sums up, prints, and refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from feature_cross import DataError, Engine, load
from feature_cross.author.estimate.collision import (
    CheckedEngine,
    ValueCheck,
    expected_collisions,
    second_hashes,
    values_behind,
)
from feature_cross.author.estimate.measure import measure
from feature_cross.author.estimate.report import Estimate, read_estimate
from feature_cross.config import loader
from tests.cross_files import run

CONFIG = """\
ids: {slot_bits: 8}
entities:
  user:
    key: id
    attributes:
      id: {type: int, column: user}
      city: {type: string, normalise: [lower]}
      seen: {type: string, list: true, max_length: 4}
  item: {attributes: {category: {type: string}, price: {type: float, buckets: {edges: [1, 10]}}}}
features:
  user: {kind: attribute, slot: 1, of: user.id}
  category: {kind: attribute, slot: 2, of: item.category}
  seen: {kind: combination, form: single, share: category, of: user.seen}
  city_x_price: {kind: interaction, emit: false, of: [user.city, item.price]}
  user_x_category: {kind: interaction, slot: 3, of: [user.id, item.category]}
  deep: {kind: weak, slot: 4, of: [city_x_price, user.seen]}
  pairs: {kind: combination, form: sorted, size: 2, slot: 5, of: user.seen}
"""
ROWS = 6000


def table(rows: int = ROWS, seed: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    words = np.array([f"c{n}" for n in range(40)])
    lengths = random.integers(0, 6, rows)
    return pa.table(
        {
            "user": random.zipf(1.4, rows).clip(0, 10**9),
            "city": pa.array([["Oslo", "OSLO", "Roma", None][n] for n in random.integers(0, 4, rows)]),
            "category": words[random.integers(0, 30, rows)],
            "price": random.random(rows) * 20,
            "seen": [list(random.choice(words[20:], n)) for n in lengths],
        }
    )


@pytest.fixture
def files(tmp_path: Path) -> Path:
    pa.parquet.write_table(table(), tmp_path / "t.parquet", row_group_size=1000)
    (tmp_path / "c.yaml").write_text(CONFIG)
    return tmp_path


def estimate(capsys: pytest.CaptureFixture[str], *arguments: object) -> Estimate:
    assert run("estimate", *arguments, "--json") in (0, 3)
    return Estimate.model_validate_json(capsys.readouterr().out)


@pytest.mark.parametrize(("batch_rows", "threads"), [(65_536, 1), (700, 1), (700, 3)])
def test_counts_are_those_of_the_engines_ids(batch_rows: int, threads: int) -> None:
    config = load_text()
    found = measure(config, table(), batch_rows=batch_rows, threads=threads)
    truth = Engine(config).transform(table())
    assert found.rows == ROWS and found.stopped is None
    for name, one in found.features.items():
        ids, offsets = truth[name]
        assert one.occurrences == len(ids)
        assert one.covered_rows == int((np.diff(offsets) > 0).sum())
        assert one.distinct.exact and one.distinct.count == len(np.unique(ids))
        growth = one.growth
        for rows, distinct in zip(growth.rows, growth.distinct, strict=True):
            assert distinct == pytest.approx(len(np.unique(ids[: offsets[int(rows)]])))
        _, counts = np.unique(ids, return_counts=True)
        assert sorted(one.sample.counts.tolist()) == sorted(counts.tolist())


def load_text(text: str = CONFIG) -> Any:
    return loader.load_text(text)


def test_a_small_sample_still_tells_growth_and_distinct_ids() -> None:
    found = measure(load_text(), table(60_000), sample_ids=1024, batch_rows=5000)
    truth = Engine(load_text()).transform(table(60_000))
    one = found.features["user_x_category"]
    ids, offsets = truth["user_x_category"]
    exact = len(np.unique(ids))
    assert one.sample.level > 0 and not one.distinct.exact
    assert one.distinct.count == pytest.approx(exact, rel=0.02)
    assert one.distinct.low <= one.distinct.count <= one.distinct.high
    half = int(np.searchsorted(one.growth.rows, 30_000))
    rows = int(one.growth.rows[half])
    assert one.growth.distinct[half] == pytest.approx(len(np.unique(ids[: offsets[rows]])), rel=0.15)


def test_features_that_share_ids_are_one_group_and_counted_once(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = estimate(capsys, files / "c.yaml", files / "t.parquet")
    truth = Engine(load_text()).transform(table())
    groups = {group.name: group for group in found.groups}
    assert groups["category"].features == ("category", "seen")
    both = np.unique(np.concatenate([truth["category"][0], truth["seen"][0]]))
    assert groups["category"].distinct == len(both) == 40
    features = {one.name: one for one in found.features}
    assert features["seen"].group == "category" and features["seen"].distinct == 20
    assert found.totals.rows == sum(group.distinct for group in found.groups)
    assert found.totals.occurrences == sum(len(truth[name][0]) for name in truth.features)


def test_the_second_hash_tells_values_apart_and_ids_are_the_engines() -> None:
    config = load_text()
    checked, plain = CheckedEngine(config), Engine(config)
    batch, truth = checked.transform(table()), plain.transform(table())
    for name in truth.features:
        assert (batch[name][0] == truth[name][0]).all()
        second = second_hashes(batch, name)
        pairs = np.unique(np.stack([batch[name][0], second]), axis=1)
        assert len(np.unique(second)) == len(np.unique(batch[name][0])) == pairs.shape[1]
    shared = {
        int(i): int(s)
        for n in ("category", "seen")
        for i, s in zip(batch[n][0], second_hashes(batch, n), strict=True)
    }
    assert len(shared) == 40, "equal values of a shared feature have equal second hashes"


def test_collisions_are_seen_and_as_many_as_expected() -> None:
    """20,000 values in 2^32 ids: 0.05 expected. 300,000: 10.5."""
    config = load(
        {
            "ids": {"slot_bits": 32},
            "entities": {"e": {"attributes": {"a": {"type": "int"}}}},
            "features": {"f": {"kind": "attribute", "slot": 1, "of": "e.a"}},
        }
    )
    data = pa.table({"a": np.arange(700_000)})
    found = measure(config, data, sample_ids=1 << 20).features["f"]
    values, ids = found.observed
    exact = len(np.unique(Engine(config).transform(data)["f"][0]))
    assert (values, ids) == (700_000, exact)
    expected = expected_collisions(700_000, 32)
    assert expected.pairs == pytest.approx(57.04, rel=1e-3)
    assert 57 - 4 * 7.6 < values - ids < 57 + 4 * 7.6
    assert found.distinct.count == exact and found.values == values


@pytest.mark.parametrize("bits", [8, 16, 32, 52, 64])
def test_the_birthday_formula(bits: int) -> None:
    """Against the plain form in exact rational arithmetic, and its inverse."""
    from fractions import Fraction

    space = 2**bits
    for values in (1, 2, 100, 300):
        lost = values - space * (1 - (1 - Fraction(1, space)) ** values)
        found = expected_collisions(values, bits)
        assert found.pairs == pytest.approx(values * (values - 1) / 2 / space)
        # exp(-n / m) stands for (1 - 1/m)^n: 1/m apart, relatively
        assert found.lost == pytest.approx(float(lost), rel=0.02 if bits > 8 else 0.1, abs=1.0 / space)
    assert expected_collisions(10**9, 52).pairs == pytest.approx(111, rel=0.01)


@pytest.mark.parametrize(("values", "bits"), [(10.0, 64), (1e6, 32), (1e10, 32), (300.0, 8)])
def test_values_are_found_again_from_ids(values: float, bits: int) -> None:
    ids = values - expected_collisions(values, bits).lost
    assert values_behind(ids, bits) == pytest.approx(values, rel=1e-3)


def test_values_are_compared_as_bytes() -> None:
    config = load_text()
    check = ValueCheck(Engine(config).plan)
    for batch in table().to_batches():
        check.add(batch)
    found = check.result()
    assert found["user.city"] == (2, 2), "after normalisation"
    assert found["item.price"] == (3, 3), "by bucket"
    assert found["user.seen"] == (20, 20)
    assert found["item.category"] == (30, 30)


def test_projections_and_bytes_are_in_the_document(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = estimate(
        capsys, files / "c.yaml", files / "t.parquet", "--rows", "1e6", "--dim", 8, "--dtype", "fp16",
        "--optimizer", "sgd", "--feature-dim", "user=32", "--budget", "1GB",
    )  # fmt: skip
    assert found.rows_projected == 10**6 and found.rows_read == found.rows_total == ROWS
    for group in found.groups:
        per_row = {"memory": 8 + 16 + 14, "store": 8 + 16 + 6 + 12}
        if group.name == "user":
            per_row = {"memory": 8 + 64 + 14, "store": 8 + 64 + 6 + 12}
        assert group.bytes_per_row == per_row
        assert group.projection is not None and group.rows == group.projection.distinct
        assert group.bytes["memory"] == pytest.approx(group.rows * per_row["memory"])
    assert found.totals.bytes["memory"] == pytest.approx(sum(g.bytes["memory"] for g in found.groups))
    assert found.budget is not None and found.budget.verdict == "fits"


@pytest.mark.parametrize(("budget", "code"), [("1GB", 0), ("10kB", 3)])
def test_a_sum_past_the_budget_is_an_exit_code(
    files: Path, budget: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("estimate", files / "c.yaml", files / "t.parquet", "--budget", budget) == code
    out = capsys.readouterr().out
    assert ("cut first: deep" in out or "cut first: pairs" in out or "cut first: user_x_category" in out) == (
        code == 3
    )
    assert ("fits" in out) or code == 3


def test_the_tables_name_every_feature(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("estimate", files / "c.yaml", files / "t.parquet", "--rows", "1e9") == 0
    out = capsys.readouterr().out
    for name in Engine(load_text()).plan.outputs:
        assert out.count(f" {name} ") + out.count(f"\n{name} ") >= 2
    assert "in category" in out and "6,000 of 6,000 rows read" in out


def test_only_the_first_rows_are_read(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = estimate(capsys, files / "c.yaml", files / "t.parquet", "--read-rows", 2500)
    assert (found.rows_read, found.rows_total, found.stopped) == (2500, ROWS, "rows_max")
    whole = estimate(capsys, files / "c.yaml", files / "t.parquet", "--read-rows", "1e7")
    assert (whole.rows_read, whole.stopped) == (ROWS, None)


def test_csv_is_read_and_its_rows_are_not_known_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(
        "entities: {e: {attributes: {a: {type: int}}}}\nfeatures: {f: {kind: attribute, of: e.a}}\n"
    )
    pa.csv.write_csv(pa.table({"a": [1, 2, 2]}), tmp_path / "t.csv")
    found = estimate(capsys, tmp_path / "c.yaml", tmp_path / "t.csv")
    assert (found.rows_read, found.rows_total, found.features[0].distinct) == (3, None, 2)


def test_a_document_that_is_none_is_refused(tmp_path: Path) -> None:
    for text in ("", "{}", "[1]", '{"format": "feature-cross-estimate", "version": 2}', "\x00"):
        (tmp_path / "e.json").write_text(text)
        with pytest.raises(DataError, match="not what `feature-cross estimate --json` prints"):
            read_estimate(tmp_path / "e.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_estimate(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--feature-dim", "nobody=4"], "--feature-dim names 'nobody'"),
        (
            ["--feature-dim", "seen=4", "--feature-dim", "category=8"],
            "[4, 8] for category, seen, which share",
        ),
    ],
)
def test_a_wrong_flag_is_named(
    files: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("estimate", files / "c.yaml", files / "t.parquet", *flags) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [["--dim", "0"], ["--rows", "x"], ["--rows", "-1"], ["--sample-ids", "3000"], ["--feature-dim", "user"],
     ["--dtype", "fp8"], ["--optimizer", "lion"], ["--rows", "1e99"]],
)  # fmt: skip
def test_a_value_out_of_bounds_is_named(
    files: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run("estimate", files / "c.yaml", files / "t.parquet", *flags)
    assert stop.value.code == 2
    assert f"argument {flags[0]}" in capsys.readouterr().err


def test_data_without_rows_or_columns_is_named(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pa.parquet.write_table(table().slice(0, 0), files / "empty.parquet")
    pa.parquet.write_table(table().drop_columns(["city"]), files / "less.parquet")
    (files / "text.parquet").write_text("no parquet")
    for name, message in [
        ("empty.parquet", "the data has no rows"),
        ("less.parquet", "column 'city'"),
        ("text.parquet", "cannot be read"),
        ("none.parquet", "no such file"),
    ]:
        assert run("estimate", files / "c.yaml", files / name) == 1
        assert message in capsys.readouterr().err


def test_a_value_that_does_not_fit_is_named_with_its_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(
        "entities: {e: {attributes: {a: {type: int, missing: error}}}}\n"
        "features: {f: {kind: attribute, of: e.a}}\n"
    )
    pa.parquet.write_table(pa.table({"a": [*range(70_000), None]}), tmp_path / "t.parquet")
    assert run("estimate", tmp_path / "c.yaml", tmp_path / "t.parquet") == 1
    assert "row 70000" in capsys.readouterr().err


def test_a_feature_that_never_has_an_id_costs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(
        "entities: {e: {attributes: {a: {type: int}, b: {type: string}}}}\n"
        "features: {f: {kind: attribute, of: e.a}, g: {kind: attribute, of: e.b}}\n"
    )
    data = pa.table({"a": pa.nulls(5000, pa.int64()), "b": ["\U0001f600" * 1000, ""] * 2500})
    pa.parquet.write_table(data, tmp_path / "t.parquet")
    found = estimate(capsys, tmp_path / "c.yaml", tmp_path / "t.parquet", "--rows", "1e6", "--budget", "1kB")
    f, g = found.features
    assert (f.distinct, f.coverage, f.seen_once_share, f.frequency, f.heavy) == (0, 0, 0, (), ())
    assert f.projection is not None and f.projection.high == 0
    assert (g.distinct, g.top_share[0].low) == (2, 0.5)
