# SPDX-License-Identifier: Apache-2.0
"""`feature-cross fit`: edges from data, and the config's text around them."""

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from feature_cross import ConfigError, DataError, Engine, load
from feature_cross.author import fit as fit_module
from feature_cross.author.cli import main
from feature_cross.author.fit import fit, quantile_edges

FLOW = """\
# ids of a shop
entities:
  item:
    attributes:
      price: {type: float, buckets: {quantiles: 4}}   # euros
      sold: {type: int, buckets: {"quantiles": 2}}
features:
  price: {kind: attribute, of: item.price}
  sold: {kind: attribute, of: item.sold}
"""
BLOCK = """\
entities:
  user:
    attributes:
      age:
        type: date
        column: joined
        age: {column: now, unit: day}
        buckets:
          quantiles: 4  # of users

      seen:
        type: float
        list: true
        buckets:
          edges:
            - 1.0
            # two
            - 2.0
          # counts
          quantiles: 3
features:
  age: {kind: attribute, of: user.age}
  seen: {kind: combination, form: single, of: user.seen}
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "c.yaml").write_text(FLOW)
    table = pa.table({"price": np.arange(1000) / 1e9, "sold": np.arange(1000) % 10, "label": [0] * 1000})
    pa.parquet.write_table(table, tmp_path / "t.parquet")
    return tmp_path


def test_edges_are_written_into_the_text_and_nothing_else_changes(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="`feature-cross fit` writes the edges"):
        load(shop / "c.yaml")
    assert main(["fit", str(shop / "c.yaml"), "--data", str(shop / "t.parquet")]) == 0
    assert "item.price: 4 buckets from 1,000 values" in capsys.readouterr().out
    wanted = FLOW.replace("quantiles: 4", "quantiles: 4, edges: [2.5e-07, 5e-07, 7.5e-07]")
    assert (shop / "c.yaml").read_text() == wanted.replace('"quantiles": 2', '"quantiles": 2, "edges": [5]')
    rows = pa.table({"price": [0.0, 2.4e-7, 2.5e-7, 1.0], "sold": [0] * 4})
    ids, _ = Engine(load(shop / "c.yaml")).transform(rows)["price"]
    assert [ids.tolist().index(i) for i in ids.tolist()] == [0, 0, 2, 3]
    assert main(["fit", str(shop / "c.yaml"), "--data", str(shop / "t.parquet")]) == 0
    assert "--refit moves those that are there" in capsys.readouterr().out
    assert sorted(path.name for path in shop.iterdir()) == ["c.yaml", "t.parquet"]


def test_blocks_lists_and_ages_are_fitted_and_refitted(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(BLOCK)
    now = datetime.datetime(2024, 1, 9)
    table = pa.table(
        {
            "joined": [now - datetime.timedelta(days=n) for n in range(8)],
            "now": [now] * 8,
            "seen": [[1.0, 2.0, None], None, [], [3.0, 4.0], [5.0], [6.0], [float("nan")], [0.5]],
        }
    )
    done = fit(tmp_path / "c.yaml", table)
    assert done.text == BLOCK.replace("# of users", "# of users\n          edges: [2.0, 4.0, 6.0]")
    assert done.values == {"user.age": 8}
    again = fit(tmp_path / "c.yaml", table, refit=True)
    assert again.edges == {"user.age": [2.0, 4.0, 6.0], "user.seen": [2.0, 4.0]}
    assert "edges:\n            [2.0, 4.0]\n          # counts\n          quantiles: 3\n" in again.text
    assert (tmp_path / "c.yaml").read_text() == BLOCK, "fit() writes nothing"


def test_json_configs_are_fitted(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attribute = {"type": "float", "buckets": {"quantiles": 2}}
    config = {
        "entities": {"e": {"attributes": {"price": attribute}}},
        "features": {"f": {"kind": "attribute", "of": "e.price"}},
    }
    (shop / "c.json").write_text(json.dumps(config, indent=1))
    out = shop / "fitted.json"
    flags = ["--data", str(shop / "t.parquet"), "--out", str(out), "--json"]
    assert main(["fit", str(shop / "c.json"), *flags]) == 0
    assert json.loads(capsys.readouterr().out)["edges"] == {"e.price": [5e-07]}
    assert json.loads(out.read_text())["entities"]["e"]["attributes"]["price"]["buckets"]["edges"] == [5e-07]


def test_buckets_that_two_attributes_share_by_an_alias_are_written_apart(shop: Path) -> None:
    shared = FLOW.replace("{quantiles: 4}", "&q {quantiles: 4}").replace('{"quantiles": 2}', "*q")
    (shop / "c.yaml").write_text(shared)
    done = fit(shop / "c.yaml", shop / "t.parquet")
    assert done.text == shared.replace("4}", "4, edges: [2.5e-07, 5e-07, 7.5e-07]}").replace(
        "*q", "{quantiles: 4, edges: [2, 5, 7]}"
    )


@pytest.mark.parametrize("count", [2, 3, 10, 100])
def test_buckets_have_about_equal_counts(count: int) -> None:
    values = np.random.default_rng(1).standard_normal(10_000)
    edges = quantile_edges(values, count)
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=count)
    assert len(edges) == count - 1 and counts.max() - counts.min() <= 1
    assert set(edges) <= set(values.tolist())


def test_equal_and_least_values_give_fewer_edges() -> None:
    assert quantile_edges(np.array([0] * 90 + list(range(10))), 10) == [1]
    assert quantile_edges(np.array([0] * 4 + [1] * 2 + [2] * 2), 8) == [1, 2]
    assert quantile_edges(np.array([7, 7, 7]), 4) == []
    assert quantile_edges(np.empty(0), 4) == []
    assert str(quantile_edges(np.array([-1.0, -0.0, 1.0]), 3)) == "[0.0, 1.0]"


def test_a_sample_is_even_and_does_not_depend_on_batches(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "SAMPLE_MAX", 20_000)
    values = np.random.default_rng(2).permutation(200_000) / 1e3
    table = pa.table({"price": values, "sold": np.arange(200_000)})
    first = fit(shop / "c.yaml", table).edges
    assert first["item.price"] == pytest.approx([50, 100, 150], abs=2)
    assert fit(shop / "c.yaml", table.to_batches(max_chunksize=999)).edges == first
    assert fit(shop / "c.yaml", table).values == {"item.price": 200_000, "item.sold": 200_000}


def test_what_cannot_be_fitted_is_named(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def table(**columns: Any) -> pa.Table:
        return pa.table({"price": [1.0, 2.0], "sold": [1, 2]} | columns)

    with pytest.raises(
        DataError, match=r"column 'price' \(item.price\) has 2 values but not two different ones"
    ):
        fit(shop / "c.yaml", table(price=[1.0, 1.0]))
    with pytest.raises(DataError, match=r"column 'price' \(item.price\) has Arrow type string"):
        fit(shop / "c.yaml", table(price=["a", "b"]))
    with pytest.raises(DataError, match=r"column 'sold' .* is not in the data"):
        fit(shop / "c.yaml", pa.table({"price": [1.0]}))
    assert main(["fit", str(shop / "none.yaml"), "--data", str(shop / "t.parquet")]) == 2
    (shop / "c.yaml").write_text(FLOW)
    flags = ["--data", str(shop / "t.parquet"), "--out", str(shop / "none" / "c.yaml")]
    assert main(["fit", str(shop / "c.yaml"), *flags]) == 2
    assert "there is no folder" in capsys.readouterr().err
