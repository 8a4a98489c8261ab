# SPDX-License-Identifier: Apache-2.0
"""`feature-cross suggest` and `prune`: what is planted is found and kept, and nothing else is claimed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from feature_cross import Engine, load
from feature_cross.author.check.lint import check_config
from feature_cross.author.rank.candidate import Candidate, declare
from feature_cross.author.rank.edit import add_features
from feature_cross.author.rank.pruning import Limits, _Pruner, prune
from feature_cross.author.rank.sample import Design
from feature_cross.author.rank.suggestion import Search, _Searcher, suggest
from feature_cross.config.loader import load_text
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
      gone: {type: int, column: not_in_the_data}
  item:
    attributes:
      b: {type: int}
      d: {type: int}
      twin: {type: int, column: b}
features:
  a: {kind: attribute, slot: 1, of: user.a}
  d: {kind: attribute, slot: 4, of: item.d}
"""


def planted(rows: int, seed: int, pair: float = 1.2, triple: float = 0.0, elements: float = 0.0) -> pa.Table:
    """Log-odds by the parity of a + b, of a + b + d, and of two elements that sum to 8; the rest is noise."""
    random = np.random.default_rng(seed)
    a, b, d = (random.integers(0, 6, rows) for _ in range(3))
    seen = [random.choice(9, 3, replace=False).tolist() for _ in range(rows)]
    sums = np.array([any(x + y == 8 for x in row for y in row if x < y) for row in seen])
    logit = pair * (1.0 - 2.0 * ((a + b) % 2)) + triple * (1.0 - 2.0 * ((a + b + d) % 2))
    logit += elements * (2.0 * sums - 1.0)
    return pa.table(
        {
            "a": a, "b": b, "d": d, "seen": seen,
            "c": pa.array([None if value == 0 else f"c{value}" for value in random.integers(0, 20, rows)]),
            "y": random.random(rows) < 1 / (1 + np.exp(-logit)),
        }
    )  # fmt: skip


def found_in(table: pa.Table, **search: Any) -> Any:
    return suggest(load_text(CONFIG, "c.yaml"), table, Design(label="y"), Search(**search))


def test_a_planted_pair_is_suggested_and_nothing_more_is_shown() -> None:
    found = found_in(planted(6000, 1))
    first = found.suggestions[0]
    # b and its twin are one column under two names, so either may be named
    assert set(first.candidate.operands) in ({"item.b", "user.a"}, {"item.twin", "user.a"})
    assert first.significant and first.gain.log_loss.value > 0.12 and first.distinct == 36
    assert [one.significant for one in found.suggestions] == [True] + [False] * (len(found.suggestions) - 1)
    assert first.body is not None and first.body["slot"] == 5 and first.body["kind"] == "interaction"
    reasons = {step.candidate.label: step.reason for step in found.screened}
    assert reasons["item.b x item.twin"] == "futile: 6 ids, and item.b alone has 6"
    assert reasons["item.b x item.twin x user.a"].startswith("futile: 36 ids")
    assert not any("gone" in label for label in reasons)


def test_a_planted_triple_is_found_where_the_beam_holds_every_pair() -> None:
    table = planted(8000, 2, pair=0.0, triple=1.5)
    found = found_in(table, beam=100)
    assert found.suggestions[0].significant and len(found.suggestions[0].candidate.operands) == 3
    assert {"user.a", "item.d"} < set(found.suggestions[0].candidate.operands)
    assert not any(one.significant for one in found_in(table, order=2).suggestions)


def test_two_elements_of_a_list_and_its_order_are_candidates() -> None:
    found = found_in(planted(6000, 3, pair=0.0, elements=1.0))
    assert found.suggestions[0].candidate.label == "2 of user.seen" and found.suggestions[0].significant
    assert "order of user.seen" in {step.candidate.label for step in found.screened}


def test_a_list_whose_order_counts_is_found() -> None:
    random = np.random.default_rng(4)
    seen = [random.choice(4, 3, replace=False).tolist() for _ in range(5000)]
    rising = np.array([row[0] < row[1] for row in seen])
    table = planted(5000, 4, pair=0.0)
    table = table.set_column(table.schema.get_field_index("seen"), "seen", pa.array(seen))
    label = pa.array(random.random(5000) < np.where(rising, 0.7, 0.3))
    found = found_in(table.set_column(table.schema.get_field_index("y"), "y", label))
    assert found.suggestions[0].candidate.label == "order of user.seen" and found.suggestions[0].significant


def test_noise_is_rarely_suggested() -> None:
    """20 searches of over 30 candidates; each errs with chance 5 % at most, four would be 1.6 %."""
    wrong = 0
    for seed in range(20):
        found = suggest(
            load_text(CONFIG), planted(2000, 50 + seed, pair=0.0), Design(label="y", seed=seed), Search()
        )
        wrong += any(one.significant for one in found.suggestions)
        assert found.planned >= 30
    assert wrong <= 3


def test_a_budget_bounds_what_is_suggested() -> None:
    table = planted(6000, 1, elements=1.0)
    free = found_in(table, top=2)
    assert len(free.suggestions) == 2 and all(one.significant for one in free.suggestions)
    each = {len(set(one.candidate.operands)): one.size_bytes for one in free.suggestions}
    assert each == {2: 36 * 150, 1: 36 * 150}  # a x b, and 2 of 9 elements
    tight = found_in(table, top=2, budget=40 * 150)
    assert len(tight.suggestions) == 1 and sum(one.size_bytes for one in tight.suggestions) <= 40 * 150
    left = {step.candidate.label: step.reason for step in tight.screened}
    assert left["item.b x user.c"] == "alone past the budget"
    assert found_in(table, budget=100).suggestions == ()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "c.yaml").write_text(CONFIG)
    pa.parquet.write_table(planted(6000, 1), tmp_path / "t.parquet")
    return tmp_path


def test_suggest_prints_yaml_that_can_be_pasted(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["suggest", files / "c.yaml", files / "t.parquet", "--label", "y", "--column", "user.a",
             "--column", "item.b", "--column", "item.d"]  # fmt: skip
    assert run(*flags, "--out", files / "new.yaml") == 0
    text = capsys.readouterr().out
    assert "candidates tried" in text and "all together: log loss" in text
    pasted = text[text.index("  # feature-cross suggest on") :]
    assert "b_x_a: {kind: interaction, slot: 5, of: [item.b, user.a]}" in pasted
    engine = Engine(load_text(CONFIG + pasted))
    assert engine.plan.outputs == Engine(load(files / "new.yaml")).plan.outputs == ("a", "d", "b_x_a")
    assert run(*flags, "--json", "--order", 2) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["suggestions"][0]["declaration"]["slot"] == 5 and found["candidates"] == 3
    assert found["yaml"].splitlines()[-1].strip().startswith("b_x_a:") and found["total"]["base_auc"] < 0.6


def test_suggest_says_that_nothing_is_shown(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pa.parquet.write_table(planted(2000, 9, pair=0.0), files / "t.parquet")
    flags = ["suggest", files / "c.yaml", files / "t.parquet", "--label", "y", "--out", files / "new.yaml"]
    assert run(*flags) == 0
    text = capsys.readouterr().out
    assert "no candidate helps on selection rows" in text or "no cross is shown to gain" in text
    assert (files / "new.yaml").read_text() == CONFIG


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--column", "user.aa"], "'user.aa', which is no plain column of the data; did you mean 'user.a'"),
        (["--column", "user.a"], "has 1 plain columns to cross; a search needs two"),
        (["--top", "400"], "--top is 400, but 251 slots are left above 4 (slot_bits 8)"),
        (["--out", "c.yaml"], "which is the config itself"),
        (["--out", "t.parquet"], "which is the input"),
        (["--out", "none/new.yaml"], "there is no folder none"),
        (["--budget", "2 GBB"], "--budget: is '2 GBB'; it must be a number and a unit"),
        (["--budget", "0"], "it must be at least 1 byte"),
        (["--order", "4"], "invalid choice: 4"),
    ],
)  # fmt: skip
def test_suggest_says_what_is_wrong(
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(files)
    try:
        code = run("suggest", "c.yaml", "t.parquet", "--label", "y", *flags)
    except SystemExit as error:  # argparse
        code = int(str(error.code))
    assert code == 2 and message in capsys.readouterr().err


def test_an_interrupted_search_tells_what_it_knows(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt = _Searcher._try

    def interrupted(self: Any, candidate: Any, model: Any) -> Any:
        if len(candidate.operands) == 3:
            raise KeyboardInterrupt
        return attempt(self, candidate, model)

    monkeypatch.setattr(_Searcher, "_try", interrupted)
    flags = ["suggest", files / "c.yaml", files / "t.parquet", "--label", "y", "--threads", 1]
    assert run(*flags, "--out", files / "new.yaml") == 130
    text = capsys.readouterr().out
    assert "best candidates so far" in text and "x user.a" in text and "no p goes with them" in text
    assert not (files / "new.yaml").exists()
    assert run(*flags, "--json") == 130
    assert json.loads(capsys.readouterr().out)["interrupted"]


def test_an_interrupt_while_choosing_keeps_the_steps_so_far(
    monkeypatch: pytest.MonkeyPatch, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from feature_cross.author.rank.model import Trainer

    refine, calls = Trainer.refine, []

    def interrupted(self: Any, model: Any) -> Any:
        calls.append(model)
        if len(calls) == 3:  # the base model, the first step, and then
            raise KeyboardInterrupt
        return refine(self, model)

    pa.parquet.write_table(planted(6000, 1, elements=1.0), files / "t.parquet")
    monkeypatch.setattr(Trainer, "refine", interrupted)
    assert (
        run("suggest", files / "c.yaml", files / "t.parquet", "--label", "y", "--json", "--order", 2) == 130
    )
    found = json.loads(capsys.readouterr().out)
    assert len(found["suggestions"]) == 1 and found["suggestions"][0]["significant"]


PRUNED = CONFIG + """\
  b: {kind: attribute, slot: 5, of: item.b}
  a_x_b: {kind: interaction, slot: 10, of: [user.a, item.b]}   # planted
  a_x_twin: {kind: interaction, slot: 11, of: [user.a, item.twin]}   # the same again
  c_x_d: {kind: interaction, slot: 12, of: [user.c, item.d]}
  c_x_d_x_b: {kind: interaction, slot: 13, of: [c_x_d, item.b]}
  seen: {kind: combination, of: user.seen, slots: {permutation: 20, single: 21, sorted: 22}}
"""  # fmt: skip


def test_prune_keeps_one_of_two_that_say_the_same_and_drops_noise() -> None:
    table = planted(8000, 1).append_column("not_in_the_data", pa.array(np.zeros(8000, np.int64)))
    pruned = prune(load_text(PRUNED), table, Design(label="y"), Limits(tolerance=0.02))
    kept = [one.name for one in pruned.verdicts if not one.dropped]
    assert kept in (["a_x_b"], ["a_x_twin"]) and pruned.harmless and pruned.loss is not None
    assert pruned.bytes_after == 36 * 150 < pruned.bytes_before
    assert abs(pruned.loss.log_loss.value) < pruned.margin
    assert "c_x_d_x_b" in pruned.dropped and "seen.permutation" in pruned.dropped


def test_a_suggested_product_of_lists_is_bounded() -> None:
    text = """\
entities:
  user:
    attributes:
      a: {type: int, list: true}
      b: {type: int, list: true}
      c: {type: int, list: true, max_length: 4}
  item: {attributes: {d: {type: int}}}
features:
  d: {kind: attribute, of: item.d}
"""
    config = load_text(text)
    plan = build_plan(config)
    wanted = [
        ("user.a", "user.b"),
        ("user.a", "user.a"),
        ("user.a", "item.d"),
        ("user.c", "user.c"),
        ("user.a",),
    ]
    lengths = {"user.a": 5, "user.b": 7, "user.c": 4}
    bodies = declare(config, plan, [Candidate(one) for one in wanted], lengths)
    assert [body.get("limit") for body in bodies.values()] == [64, 16, None, None, None]
    new = load_text(add_features(text, "c.yaml", bodies))
    assert not [one for one in check_config(new, build_plan(new)) if one.code == "unbounded-product"]


TWINS = """\
entities:
  user: {attributes: {a: {type: int}, twin: {type: string, column: a, cast: true}, c: {type: string}}}
  item: {attributes: {b: {type: int}, d: {type: int}}}
features:
  a_x_b: {kind: interaction, of: [user.a, item.b]}
  b_x_a: {kind: interaction, of: [item.b, user.twin]}
  text: {kind: attribute, of: user.twin}
  number: {kind: attribute, of: user.a}
  other: {kind: attribute, of: item.d}
  single: {kind: attribute, of: user.a, when: {user.c: {present: true}}}
"""


@pytest.mark.parametrize("rows", [400, 8000])  # however little the rows can show
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_prune_keeps_one_of_two_that_divide_the_rows_alike(rows: int, seed: int) -> None:
    design = Design(label="y", seed=seed, shares=(0.4, 0.3, 0.3))
    pruned = prune(load_text(TWINS), planted(rows, seed), design, Limits(tolerance=0.0))
    same = {one.name: one.same_as for one in pruned.verdicts if one.dropped == "duplicate"}
    assert same == {"b_x_a": "a_x_b", "number": "text"}  # not `single`: it covers other rows
    assert set(same) <= set(pruned.dropped)
    assert {one.name for one in pruned.verdicts} == {"a_x_b", "b_x_a", "text", "number", "other", "single"}
    kept = prune(
        load_text(TWINS), planted(rows, seed), design, Limits(tolerance=0.0, keep=("number", "text"))
    )
    assert {one.name for one in kept.verdicts if one.dropped == "duplicate"} == {"b_x_a"}


def test_prune_for_a_budget_drops_what_costs_least_per_byte() -> None:
    table = planted(6000, 1, elements=0.3)
    text = CONFIG + (
        "  a_x_b: {kind: interaction, slot: 10, of: [user.a, item.b]}\n"
        "  pairs: {kind: combination, form: sorted, size: 2, slot: 11, of: user.seen}\n"
    )
    free = prune(load_text(text), table, Design(label="y"), Limits())
    assert {one.name for one in free.verdicts if not one.dropped} >= {"a_x_b", "pairs"}
    tight = prune(load_text(text), table, Design(label="y"), Limits(budget=40 * 150))
    assert [one.name for one in tight.verdicts if not one.dropped] == ["a_x_b"]
    assert {one.name: one.dropped for one in tight.verdicts}["pairs"] == "budget"
    assert not tight.harmless and tight.loss is not None and tight.loss.log_loss.value > tight.margin
    kept = prune(load_text(text), table, Design(label="y"), Limits(budget=40 * 150, keep=("pairs",)))
    assert {one.name: one.dropped for one in kept.verdicts} == {
        "a": "harmless",
        "d": "harmless",
        "a_x_b": "budget",
    }
    for limits, message in (
        (Limits(budget=149), "--budget is 149 bytes, but the smallest feature takes 900"),
        (Limits(budget=500, keep=("pairs",)), "the features of --keep take 5400"),
        (Limits(keep=("pear",)), "--keep is 'pear', which is no feature of the config; did you mean 'pairs'"),
    ):
        with pytest.raises(FlagError, match=message):
            prune(load_text(text), table, Design(label="y"), limits)


def test_prune_writes_a_config_whose_ids_are_the_same(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "c.yaml").write_text(PRUNED.replace("  d: {kind: attribute, slot: 4, of: item.d}\n", ""))
    flags = ["prune", files / "c.yaml", files / "t.parquet", "--label", "y", "--out", files / "p.yaml"]
    assert run(*flags, "--keep", "seen.single", "--tolerance", 0.02) == 0
    text = capsys.readouterr().out
    assert "no harm" in text and "seen.single is now called seen_single; its ids are the same" in text
    table = pa.parquet.read_table(files / "t.parquet")
    before, after = (Engine(load(files / name)).transform(table) for name in ("c.yaml", "p.yaml"))
    kept = next(name for name in after.features if name.startswith("a_x_"))
    assert set(after.features) == {kept, "seen_single"}
    for old, new in ((kept, kept), ("seen.single", "seen_single")):
        assert (before[old][0] == after[new][0]).all() and (before[old][1] == after[new][1]).all()
    assert run(*flags, "--json", "--tolerance", "0.5") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["dropped"]) == len(found["features"]) - 1  # never all of them
    assert found["final"]["bound"] > 0.01 and found["harmless"]


def test_prune_without_anything_to_drop_writes_the_same_text(files: Path) -> None:
    text = CONFIG[: CONFIG.index("  a: {kind")] + "  x: {kind: interaction, slot: 9, of: [user.a, item.b]}\n"
    (files / "c.yaml").write_text(text)
    assert run("prune", files / "c.yaml", files / "t.parquet", "--label", "y", "--out", files / "p.yaml") == 0
    assert (files / "p.yaml").read_text() == text


def test_an_interrupted_prune_writes_nothing(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without = _Pruner._without

    def interrupted(self: Any, name: str) -> Any:
        if name == "c_x_d":
            raise KeyboardInterrupt
        return without(self, name)

    monkeypatch.setattr(_Pruner, "_without", interrupted)
    (files / "c.yaml").write_text(PRUNED)
    flags = ["prune", files / "c.yaml", files / "t.parquet", "--label", "y", "--out", files / "p.yaml"]
    assert run(*flags, "--threads", 1) == 130
    text = capsys.readouterr().out
    assert "interrupted: no config was written" in text and "a_x_b" in text
    assert not (files / "p.yaml").exists()
