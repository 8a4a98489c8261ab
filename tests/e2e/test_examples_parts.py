# SPDX-License-Identifier: Apache-2.0
"""The parts of the examples: logs without leakage, ids as derived, recipes that fit their files, metrics."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rowhouse.document import read_document

from examples import dataset, quickstart
from examples.click import generate as click
from examples.dota2 import log as dota2
from examples.metric import auc
from examples.recipe import EXAMPLES, MIRROR, SINGLE, Example, Run
from examples.report import arithmetic
from examples.retail import log as retail
from examples.train import parse_runs
from feature_cross import Engine
from ps_server.config.cluster import load_config


def naive_auc(labels: Any, scores: Any) -> float:
    """Over every pair of a positive and a negative."""
    wins = [
        1.0 if p > n else 0.5 if p == n else 0.0 for p in scores[labels == 1] for n in scores[labels == 0]
    ]
    return sum(wins) / len(wins)


def test_auc_is_the_chance_that_a_positive_scores_above_a_negative() -> None:
    rng = np.random.default_rng(1)
    for levels in (2, 5, 1000):  # few levels: many ties
        labels = rng.integers(0, 2, 80).astype(np.float32)
        scores = rng.integers(0, levels, 80).astype(np.float32)
        assert auc(labels, scores) == pytest.approx(naive_auc(labels, scores), abs=1e-12)
    order = rng.permutation(80)
    assert auc(labels, scores) == auc(labels[order], scores[order])


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [([1, 1], [0.1, 0.2], "both classes"), ([0, 1], [0.1, np.nan], "1 of 2 scores are not finite")],
)
def test_auc_refuses_what_has_none(labels: list[int], scores: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        auc(np.array(labels, np.float32), np.array(scores, np.float32))


def test_jagged_rows_are_taken_and_sliced_as_lists_are() -> None:
    rng = np.random.default_rng(2)
    bags = [rng.integers(-9, 9, rng.integers(0, 4)).tolist() for _ in range(50)]
    offsets = np.concatenate([[0], np.cumsum([len(bag) for bag in bags])])
    jagged = dataset.Jagged(np.array([i for bag in bags for i in bag], np.int64), offsets)

    def lists(some: dataset.Jagged) -> list[list[int]]:
        return [some.ids[a:b].tolist() for a, b in zip(some.offsets[:-1], some.offsets[1:], strict=True)]

    rows = rng.integers(0, 50, 70)
    assert lists(jagged.take(rows)) == [bags[row] for row in rows]
    assert lists(jagged.slice(7, 31)) == bags[7:31]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_examples_files_fit_one_another(name: str, tmp_path: Path) -> None:
    example = Example(name)
    declared = load_config(example.folder / "cluster.yaml")
    outputs = set(Engine(example.crosses()).schema.names)
    for table, use in example.recipe.tables.items():
        config = declared.table(table)
        assert config is not None and config.dim == (1 if use.part == "wide" else 16)
        assert set(use.features) <= outputs
    assert {t.name for t in declared.tables} == set(example.recipe.tables)
    assert outputs == set(example.recipe.features()) - {MIRROR + f for f in outputs}
    assert all(use.family == SINGLE for use in example.recipe.arm_tables("without").values())
    # a cross is declared with the family that its table reports; one list's elements alone are no cross
    features = read_document(example.folder / "crosses.yaml").value["features"]
    for use in example.recipe.tables.values():
        for feature in use.features:
            single = features[feature]["kind"] == "attribute" or features[feature].get("form") == "single"
            assert use.family == (SINGLE if single else features[feature]["kind"]), feature


def test_each_run_has_tables_of_its_own_with_its_seed(tmp_path: Path) -> None:
    runs = parse_runs("without-0,with-0,with-7", own_tables=True)
    config = load_config(Example("click").cluster(runs, tmp_path))
    names = [table.name for table in config.tables]
    assert names[:2] == ["wide_single.without-0", "deep.without-0"]
    assert len(names) == 2 + 6 + 6
    deep = config.table("deep.with-7")
    assert deep is not None and deep.seed == 7 and deep.dim == 16
    assert Run(arm="with", seed=7, own_tables=False).table("deep") == "deep"


def test_the_click_log_is_a_function_of_its_seed_and_sees_its_effects() -> None:
    log, again, other = click.generate(4000, 3), click.generate(4000, 3), click.generate(4000, 4)
    assert log.equals(again) and not log.equals(other)
    users = np.bincount(log["user_id"].to_numpy())
    assert users[0] > 10 * np.median(users[users > 0])  # Zipf
    assert all(len(set(basket)) == click.BASKET for basket in log["basket"].to_pylist())
    none = dict.fromkeys(("single", "categorical", "interaction", "combination", "permutation", "weak"), 0.0)
    strong = click.Strength(**{**none, "weak": 3.0})
    log = click.generate(20_000, 3, strong)
    cells = zip(log["top_category"].to_pylist(), log["promotion"].to_pylist(), strict=True)
    cell = np.array([" ".join(pair) for pair in cells])
    clicked = log["clicked"].to_numpy().astype(np.float64)
    rates = [clicked[cell == one].mean() for one in np.unique(cell)]
    assert np.std(rates) > 0.25  # with no effect it would be about 0.1


def invoice_lines(path: Path) -> list[dict[str, Any]]:
    """A small file with the shape of online_retail.parquet; the lines that count."""
    rng = np.random.default_rng(5)
    start = datetime.datetime(2011, 1, 1, 8)
    lines: list[dict[str, Any]] = []
    for number in range(3000):
        cancelled, known = rng.random() < 0.05, rng.random() < 0.9
        lines.append(
            {
                "InvoiceNo": f"{'C' if cancelled else ''}{500000 + number // 4}",
                "StockCode": f"S{int(rng.zipf(1.5)) % 40}",
                "InvoiceDate": start + datetime.timedelta(hours=number),
                "CustomerID": int(rng.integers(10)) if known else None,
                "Country": "France" if rng.random() < 0.2 else "Spain",
            }
        )
    schema = pa.schema(
        {
            "InvoiceNo": pa.string(), "StockCode": pa.string(), "InvoiceDate": pa.timestamp("ms"),
            "CustomerID": pa.int32(), "Country": pa.string(),
        }
    )  # fmt: skip
    pq.write_table(pa.Table.from_pylist(lines, schema), path)
    return [li for li in lines if li["CustomerID"] is not None and not li["InvoiceNo"].startswith("C")]


def test_the_retail_log_has_no_leakage(tmp_path: Path) -> None:
    path = tmp_path / "retail.parquet"
    lines = invoice_lines(path)
    train, test = retail.make(path, seed=1)
    bought: dict[tuple[int, datetime.date], list[str]] = {}
    for line in lines:
        basket = bought.setdefault((line["CustomerID"], line["InvoiceDate"].date()), [])
        if line["StockCode"] not in basket:
            basket.append(line["StockCode"])
    positives = sum(len(basket) for basket in bought.values())
    rows = [*train.to_pylist(), *test.to_pylist()]
    assert sum(row["bought"] for row in rows) == positives
    assert abs(sum(not row["bought"] for row in rows) / positives - retail.NEGATIVES) < 0.02
    for row in rows:
        day = row["time"].date()
        assert (row["item"] in bought[row["customer"], day]) == row["bought"]
        earlier = [bought[key] for key in sorted(bought) if key[0] == row["customer"] and key[1] < day]
        history = [item for basket in earlier for item in basket]
        assert row["recent"] == history[-retail.RECENT :]
    days = [[row["time"].date() for row in part.to_pylist()] for part in (train, test)]
    assert max(days[0]) < min(days[1])
    share = (max(days[1]) - min(days[1])).days / (max(days[1]) - min(days[0])).days
    assert share == pytest.approx(retail.TEST_FRACTION, abs=0.02)


def test_the_drafts_mirrored_view_swaps_the_sides(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    teams = np.stack([rng.permutation(20)[:10] for _ in range(40)])
    sides = [pa.array(side.tolist(), pa.list_(pa.int16())) for side in (teams[:, :5], teams[:, 5:])]
    plain = pa.table(
        {"win": rng.random(40) < 0.5, "mode": np.ones(40, np.int8), "radiant": sides[0], "dire": sides[1]}
    )
    path = tmp_path / "dota2.parquet"
    pq.write_table(plain, path)
    train, test = dota2.make(path)
    assert (train.num_rows, test.num_rows) == (36, 4)
    assert pa.concat_tables([train, test]).equals(plain.select(train.column_names))
    example = Example("dota2")
    engine = Engine(example.crosses())
    ids = dataset.derive(plain, engine, example.recipe)
    swapped = plain.set_column(2, "radiant", plain["dire"]).set_column(3, "dire", plain["radiant"])
    mirrored = dataset.derive(swapped, engine, example.recipe)
    for feature in ("hero", "pairs", "triples", "matchups", "mode_x_hero"):
        assert ids[MIRROR + feature].equals(mirrored[feature])
        assert not ids[MIRROR + feature].equals(ids[feature])
    dataset.write(ids, tmp_path / "ids" / "train.parquet")
    read = dataset.read(tmp_path / "ids" / "train.parquet", example.recipe.features())
    assert (
        read.features["matchups"].ids.view(np.uint64).tolist()
        == ids["matchups"].combine_chunks().flatten().to_pylist()
    )
    assert np.diff(read.features["pairs"].offsets).tolist() == [10] * 40
    assert np.diff(read.features["triples"].offsets).tolist() == [10] * 40
    assert np.diff(read.features["matchups"].offsets).tolist() == [25] * 40


def test_the_quickstart_learns_what_no_single_column_tells(tmp_path: Path) -> None:
    assert quickstart.main(str(tmp_path / "model")) == 1.0


def test_the_arithmetic_is_that_of_the_design() -> None:
    assert arithmetic(16) == {"fp32": 72, "fp16": 40}
