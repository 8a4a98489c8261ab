# SPDX-License-Identifier: Apache-2.0
"""`feature-cross rank`: planted interactions are found, noise is not, and the division of rows is honest."""

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from feature_cross import CrossConfig, DataError, load
from feature_cross.author.rank import ranking as ranking_module
from feature_cross.author.rank.model import StoppedError, Trainer
from feature_cross.author.rank.part import make_probe
from feature_cross.author.rank.ranking import Judgement, rank
from feature_cross.author.rank.sample import Design, Sample, read_sample
from feature_cross.config.plan import build_plan
from feature_cross.error import FlagError
from tests.cross_files import run

CONFIG = """\
ids: {slot_bits: 8}
entities:
  user:
    attributes:
      a: {type: int}
      c: {type: string, missing: own_id}
      seen: {type: int, list: true, max_length: 4}
  item:
    attributes:
      b: {type: int}
      d: {type: int}
features:
  a: {kind: attribute, slot: 1, of: user.a}
  a_x_b: {kind: interaction, slot: 10, of: [user.a, item.b]}
  a_x_d: {kind: interaction, slot: 11, of: [user.a, item.d]}
  c_x_d: {kind: interaction, slot: 12, of: [user.c, item.d]}
  c_x_b: {kind: interaction, emit: false, of: [user.c, item.b]}
  c_x_b_x_d: {kind: interaction, slot: 13, of: [c_x_b, item.d]}
  pairs: {kind: combination, form: sorted, size: 2, slot: 14, of: user.seen}
"""


def planted(rows: int, seed: int, strength: float = 1.5) -> pa.Table:
    """Log-odds of ±strength by the parity of a + b, which neither says alone; all else is noise."""
    random = np.random.default_rng(seed)
    a, b, d = (random.integers(0, 8, rows) for _ in range(3))
    c = random.integers(0, 30, rows)
    logit = strength * (1.0 - 2.0 * ((a + b) % 2))
    return pa.table(
        {
            "a": a,
            "b": b,
            "c": pa.array([None if value == 0 else f"c{value}" for value in c]),
            "d": d,
            "seen": [random.integers(0, 9, random.integers(0, 6)).tolist() for _ in range(rows)],
            "y": random.random(rows) < 1 / (1 + np.exp(-logit)),
            "time": pa.array(random.integers(0, 10**6, rows), pa.timestamp("s")),
            "visit": np.arange(rows) // 4,
        }
    )


@pytest.fixture(scope="module")
def config() -> CrossConfig:
    return load_text(CONFIG)


def load_text(text: str) -> CrossConfig:
    from feature_cross.config.loader import load_text as parse

    return parse(text, "c.yaml")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rank")
    (folder / "c.yaml").write_text(CONFIG)
    pa.parquet.write_table(planted(6000, 1), folder / "t.parquet", row_group_size=1000)
    return folder


@pytest.mark.parametrize("over", ["parts", "columns", "rest"])
def test_a_planted_interaction_is_found_and_noise_is_not(config: CrossConfig, over: str) -> None:
    ranking = rank(config, planted(6000, 1), Design(label="y"), over=over)
    first, *others = ranking.crosses
    # the derived c_x_b judged against the rest knows nothing of a, so only a_x_b can tell
    assert first.name == "a_x_b" and first.significant and first.gain.log_loss.value > 0.2
    assert first.gain.auc.value > 0.25 and first.distinct == 64 and first.known_rows == 1.0
    assert not any(one.significant for one in others)
    assert {one.name for one in ranking.crosses} == {"a_x_b", "a_x_d", "c_x_d", "c_x_b", "c_x_b_x_d", "pairs"}
    assert ranking.planned == 6 and not ranking.interrupted and sum(ranking.rows) == 6000


def test_crosses_of_noise_are_rarely_called_significant(config: CrossConfig) -> None:
    """A run of six crosses of noise errs with chance 5 % at most; then six of 60 runs err in 1 case of 13."""
    wrong = 0
    for seed in range(60):
        ranking = rank(config, planted(2500, 100 + seed, strength=0.0), Design(label="y", seed=seed))
        wrong += any(one.significant for one in ranking.crosses)
    assert wrong <= 5


def test_a_gain_on_final_rows_is_not_what_selection_saw(config: CrossConfig) -> None:
    """Labels of the final rows turned round: had a fit seen them, the cross would not lose so much."""
    table = planted(6000, 1)
    probe = make_probe(config, build_plan(config))
    sample = read_sample(probe.config, table, Design(label="y"))
    labels = sample.labels.copy()
    labels[sample.bounds[1] :] = 1 - labels[sample.bounds[1] :]
    turned = Sample(labels, sample.columns, sample.groups, sample.bounds, sample.rows_total)
    ranker = ranking_module._Ranker(turned, probe, "parts", [])
    assert ranker.judge("a_x_b").gain.log_loss.value < -0.5


def test_what_a_cross_is_judged_against(config: CrossConfig) -> None:
    probe = make_probe(config, build_plan(config))
    over = {n: {probe.labels[part] for part in parts} for n, parts in probe.parts.items()}
    assert over["a_x_b"] == {"a", "item.b"}  # the feature `a` is the column user.a: it is not read twice
    assert over["c_x_b_x_d"] == {"user.c", "item.b", "c_x_b", "item.d"}
    assert over["pairs"] == {"user.seen"}
    every = make_probe(config, build_plan(config), available=("a", "b", "c", "d", "seen"))
    names = {"user.a": "drop", "user.c": "own_id", "user.seen": "drop", "item.b": "drop", "item.d": "drop"}
    assert set(every.columns) == set(names.items())


def sample_of(config: CrossConfig, table: Any, **design: Any) -> Sample:
    return read_sample(make_probe(config, build_plan(config)).config, table, Design(label="y", **design))


def test_the_division_of_rows_follows_from_seed_and_row_number(config: CrossConfig, files: Path) -> None:
    table = planted(6000, 1)
    whole = sample_of(config, table)
    from_file = sample_of(config, files / "t.parquet")
    assert whole.bounds == from_file.bounds and (whole.labels == from_file.labels).all()
    for name, column in whole.columns.items():
        assert (column.codes == from_file.columns[name].codes).all()
        assert (column.offsets == from_file.columns[name].offsets).all()
    sizes = np.diff([0, *whole.bounds]) / 6000
    np.testing.assert_allclose(sizes, [0.6, 0.2, 0.2], atol=0.02)
    assert sample_of(config, table, seed=1).bounds != whole.bounds
    few = sample_of(config, table, rows_max=3000)
    assert 2800 < few.bounds[2] < 3200 and few.rows_total == 6000


def test_a_time_column_puts_the_newest_rows_last(config: CrossConfig) -> None:
    table = planted(6000, 1)
    times = table["time"].cast(pa.int64()).to_numpy()
    # the row's time in place of its d: codes are numbered by first occurrence, so they tell what a part holds
    table = table.set_column(table.schema.get_field_index("d"), "d", pa.array(times))
    sample = sample_of(config, table, time_column="time")
    probe = make_probe(config, build_plan(config))
    codes = sample.columns[probe.columns["item.d", "drop"]].codes
    ordered = np.sort(times)
    first, second, last = sample.bounds
    assert last == 6000 and abs(first - 3600) < 20 and abs(second - 4800) < 20
    seen_first = len(set(ordered[:first].tolist()))
    assert codes[:first].max() + 1 == seen_first and codes[first:].min() >= seen_first


@pytest.mark.parametrize("unit", ["date32", "float64", "int16"])
def test_a_time_column_may_be_a_date_or_a_number(config: CrossConfig, unit: str) -> None:
    table = planted(2000, 1)
    days = pa.array(np.arange(2000, dtype=np.int16) // 2).cast(pa.int32()).cast(pa.type_for_alias(unit))
    sample = sample_of(config, table.append_column("when", days), time_column="when")
    assert sample.bounds == (1200, 1600, 2000)


BAD = [
    ({"label": "none"}, FlagError, "--label is 'none', which is no column of the data"),
    ({"label": "b"}, FlagError, r"--label is 'b', which item\.b \(line 10 of c\.yaml\) reads"),
    ({"label": "visit"}, DataError, r"'visit' \(--label\) is 2 in row 8; it must be 0 or 1"),
    ({"label": "time"}, DataError, r"'time' \(--label\) has Arrow type timestamp\[s\]"),
    ({"label": "empty"}, DataError, r"'empty' \(--label\) is None in row 0; it must be 0 or 1"),
    ({"label": "ones"}, DataError, r"'ones' \(--label\) is 1 in all \d+ rows of the training part"),
    ({"time_column": "c"}, DataError, r"'c' \(--time-column\) has Arrow type string"),
    ({"time_column": "empty"}, DataError, r"'empty' \(--time-column\) is null in row 0"),
    ({"time_column": "ones"}, DataError, "the training part by ones has 0 rows"),
    ({"group_column": "vist"}, FlagError, "--group-column is 'vist'.*did you mean 'visit'"),
    ({"rows_max": 50}, DataError, r"the training part has \d+ rows of \d+; at least 100 are needed"),
]  # fmt: skip


@pytest.mark.parametrize(("design", "error", "message"), BAD)
def test_what_cannot_be_divided_is_named(
    config: CrossConfig, design: dict[str, Any], error: type[Exception], message: str
) -> None:
    table = planted(1000, 1).append_column("ones", pa.array(np.ones(1000)))
    table = table.append_column("empty", pa.nulls(1000, pa.int8()))
    with pytest.raises(error, match=message):
        read_sample(make_probe(config, build_plan(config)).config, table, Design(**{"label": "y", **design}))


def test_a_wrong_value_in_a_sampled_batch_has_its_own_row_number() -> None:
    strict = load_text(CONFIG.replace("missing: own_id", "missing: error"))
    table = planted(6000, 1)
    row = next(r for r, value in enumerate(table["c"].to_pylist()) if value is None)
    with pytest.raises(DataError, match=rf"has no value in row {row};"):
        sample_of(strict, table, rows_max=3000)


def test_grouped_rows_widen_the_intervals(config: CrossConfig) -> None:
    table = planted(6000, 1)
    # four copies of each row: as many rows, a quarter of the evidence
    copied = table.slice(0, 1500).take(pa.array(np.arange(6000) // 4))
    copied = copied.set_column(
        copied.schema.get_field_index("visit"), "visit", pa.array(np.arange(6000) // 4)
    )
    errors = []
    for group in (None, "visit"):
        ranking = rank(config, copied, Design(label="y", group_column=group), features=["a_x_b"])
        errors.append(ranking.crosses[0].gain.log_loss.error)
    assert errors[1] > 1.15 * errors[0]  # a hash of row numbers leaves few of a row's copies in one part


def test_rank_writes_a_table_and_json(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["rank", files / "c.yaml", files / "t.parquet", "--label", "y", "--time-column", "time"]
    assert run(*flags, "--correction", "bh") == 0
    text = capsys.readouterr().out
    assert "a_x_b" in text and "Benjamini-Hochberg" in text and "over its parts" in text
    assert (
        run(*flags, "--json", "--feature", "a_x_b", "--feature", "pairs", "--dim", "8", "--dtype", "fp16")
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    best, other = found["crosses"]
    assert best["feature"] == "a_x_b" and best["significant"] and best["over"] == ["a", "item.b"]
    assert best["distinct_ids"] == 64 and best["bytes"] == 64 * (8 + 8 * 2 + 8 * 4 + 14)
    low, high = best["log_loss_gain"]["low"], best["log_loss_gain"]["high"]
    assert 0 < low < best["log_loss_gain"]["value"] < high
    assert other["feature"] == "pairs" and not other["significant"] and found["family"] == 2
    assert (
        found["rows"]["source"] == 6000 == sum(found["rows"][k] for k in ("training", "selection", "final"))
    )


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (
            ["--feature", "a_x_c"],
            2,
            "--feature is 'a_x_c', which is no cross of the config; did you mean 'a_x_",
        ),
        (["--feature", "a"], 2, "'a', which is no cross"),
        (["--split", "60,40"], 2, "is '60,40'; it must be three numbers above 0"),
        (["--level", "95"], 2, "is 95.0; it must be from 0.5 to below 1"),
        (["--max-rows", "0"], 2, "is 0; it must be at least 1"),
        (["--max-rows", "many"], 2, "is 'many'; it must be a number"),
        (["--time-column", "tme"], 2, "did you mean 'time'"),
    ],
)
def test_rank_says_what_is_wrong(
    files: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, message: str
) -> None:
    try:
        found = run("rank", files / "c.yaml", files / "t.parquet", "--label", "y", *flags)
    except SystemExit as error:  # argparse
        found = int(str(error.code))
    assert found == code and message in capsys.readouterr().err


def test_rank_of_a_config_without_crosses(
    tmp_path: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG[: CONFIG.index("  a_x_b")])
    assert run("rank", tmp_path / "c.yaml", files / "t.parquet", "--label", "y") == 2
    assert "has no cross to rank" in capsys.readouterr().err


def test_an_interrupt_prints_what_is_known(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = ranking_module._Ranker.judge

    def interrupted(self: Any, name: str) -> Any:
        if name == "c_x_d":
            raise KeyboardInterrupt
        return judge(self, name)

    monkeypatch.setattr(ranking_module._Ranker, "judge", interrupted)
    flags = ["rank", files / "c.yaml", files / "t.parquet", "--label", "y", "--threads", 1]
    assert run(*flags, "--json") == 130
    found = json.loads(capsys.readouterr().out)
    assert found["interrupted"] and found["family"] == 6
    known = {one["feature"] for one in found["crosses"]}  # and what was under way
    assert {"a_x_b", "a_x_d"} <= known and "c_x_d" not in known
    assert run(*flags) == 130
    assert "of 6 crosses were not judged" in capsys.readouterr().out


def test_the_level_and_the_correction_are_used(config: CrossConfig) -> None:
    table = planted(6000, 1)
    narrow = rank(config, table, Design(label="y"), judgement=Judgement(0.8, "bh"))
    wide = rank(config, table, Design(label="y"), judgement=Judgement(0.99))
    assert narrow.z < wide.z
    assert all(
        n.p_adjusted <= w.p_adjusted and n.gain == w.gain
        for n, w in zip(narrow.crosses, wide.crosses, strict=True)
    )


def test_dates_divide_by_day(config: CrossConfig) -> None:
    table = planted(2000, 1)
    days = [datetime.date(2024, 1, 1) + datetime.timedelta(days=n // 100) for n in range(2000)]
    sample = sample_of(config, table.append_column("day", pa.array(days, pa.date64())), time_column="day")
    assert sample.bounds == (1200, 1600, 2000)


def test_a_config_built_from_a_mapping_ranks_too() -> None:
    built = load(
        {
            "entities": {
                "e": {"attributes": {"a": {"type": "int"}}},
                "f": {"attributes": {"b": {"type": "int"}}},
            },
            "features": {"x": {"kind": "interaction", "of": ["e.a", "f.b"]}},
        }
    )
    assert rank(built, planted(4000, 2), Design(label="y")).crosses[0].significant


def test_conditions_ages_and_weights_are_ranked_and_a_label_in_them_is_refused() -> None:
    text = CONFIG.replace("      d: {type: int}\n", """\
      d: {type: int}
      raw: {type: float, column: d_weight}
      cut: {type: float, column: d_weight, buckets: {quantiles: 4}}
      days: {type: date, column: time, age: {date: 1970-02-01, unit: day}, buckets: {edges: [20, 25]}}
""").replace("slot: 11,", "slot: 11, when: {item.raw: {at_least: 0.5}},")  # fmt: skip
    text = text.replace("c_x_d: {kind: interaction, slot: 12, of: [user.c, item.d]}",
                        "c_x_d: {kind: interaction, slot: 12, of: [user.c, item.days]}")  # fmt: skip
    table = planted(4000, 1)
    table = table.append_column("d_weight", pa.array(np.random.default_rng(1).random(4000)))
    ranking = rank(load_text(text), table, Design(label="y"))
    assert ranking.crosses[0].name == "a_x_b" and len(ranking.crosses) == 6
    plan = build_plan(load_text(text))
    probe = make_probe(load_text(text), plan, table.schema.names)
    assert {label for label, _ in probe.columns} == {
        "user.a", "user.c", "user.seen", "item.b", "item.d", "item.days",
    }  # fmt: skip
    with pytest.raises(FlagError, match=r"'d_weight', which item\.raw \(line 12 of c\.yaml\) reads"):
        rank(load_text(text), table, Design(label="d_weight"))


def test_an_interrupt_inside_a_kernel_is_an_interrupt(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def inside(*_: object) -> None:
        raise SystemError("returned a result with an exception set") from KeyboardInterrupt()

    monkeypatch.setattr(ranking_module, "read_sample", inside)
    assert run("rank", files / "c.yaml", files / "t.parquet", "--label", "y") == 130
    assert "interrupted" in capsys.readouterr().err

    def other(*_: object) -> None:
        raise SystemError("something else")

    monkeypatch.setattr(ranking_module, "read_sample", other)
    with pytest.raises(SystemError, match="something else"):
        run("rank", files / "c.yaml", files / "t.parquet", "--label", "y")


def test_a_stopped_trainer_gives_up(config: CrossConfig) -> None:
    probe = make_probe(config, build_plan(config))
    sample = read_sample(probe.config, planted(2000, 1), Design(label="y"))
    trainer = Trainer(sample)
    trainer.stop()
    with pytest.raises(StoppedError):
        trainer.fit({"a": sample.columns["a"]})
