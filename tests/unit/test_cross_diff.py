# SPDX-License-Identifier: Apache-2.0
"""`feature-cross diff`: each key's effect, held to what the engine then does with ids."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from feature_cross import Engine
from feature_cross.author.cli import main
from feature_cross.author.guard.diff import ConfigDiff, FeatureDiff, diff_configs
from feature_cross.author.guard.measure import measure
from feature_cross.config.loader import load_text

CONFIG = """\
ids: {slot_bits: 8}
entities:
  user:
    attributes:
      id: {type: int}
      city: {type: string}
      seen: {type: string, list: true, max_length: 4}
  item:
    attributes:
      price: {type: float, buckets: {edges: [1, 5, 10]}}
      day: {type: date, part: weekday, missing: own_id}
features:
  id: {kind: attribute, slot: 1, of: user.id}
  city: {kind: attribute, slot: 2, of: user.city}
  price: {kind: attribute, slot: 3, of: item.price}
  day: {kind: attribute, slot: 4, of: item.day}
  city_x_price: {kind: interaction, slot: 5, of: [user.city, item.price]}
  deep: {kind: interaction, slot: 6, of: [city_x_price, item.day]}
  seen: {kind: combination, of: user.seen, slots: {permutation: 7, single: 8, sorted: 9}}
  pairs: {kind: combination, form: sorted, size: [2, 3], slot: 10, of: user.seen}
"""


def table(rows: int = 500) -> pa.Table:
    random = np.random.default_rng(4)
    seen = [random.choice(list("abcdef"), random.integers(0, 6)).tolist() for _ in range(rows)]
    days = [[f"2025-01-0{1 + n % 9}" for n in range(len(row))] for row in seen]
    return pa.table(
        {
            "w": random.random(rows),
            "t": pa.array(days, pa.list_(pa.string())).cast(pa.list_(pa.timestamp("s"))),
            "id": random.integers(0, 50, rows),
            "uid": random.integers(50, 90, rows),
            "city": random.choice(["Oslo", "oslo", "Roma"], rows),
            "seen": seen,
            "price": random.random(rows) * 20,
            "day": pa.array([None if n % 9 == 0 else n * 86400 for n in range(rows)], pa.timestamp("s")),
        }
    )


def diff(*edits: tuple[str, str]) -> ConfigDiff:
    text = CONFIG
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    return diff_configs(load_text(CONFIG, "old.yaml"), load_text(text, "new.yaml"))


def named(found: ConfigDiff) -> dict[str, FeatureDiff]:
    return {one.label: one for one in found.features}


KEYS = [
    # edit, the features that it touches with their effect, the key that is named
    (("slot: 2,", "slot: 22,"), {"city": "all"}, "features.city.slot"),
    (("slot_bits: 8", "slot_bits: 9"), dict.fromkeys(
        ("id", "city", "price", "day", "city_x_price", "deep", "seen.permutation", "seen.single",
         "seen.sorted", "pairs"), "all"), "ids.slot_bits"),
    (("slot: 5,", "slot: 5, seed: x,"), {"city_x_price": "all", "deep": "all"}, "features.city_x_price.seed"),
    (("of: [user.city, item.price]", "of: [item.price, user.city]"), {"city_x_price": "all", "deep": "all"},
     "features.city_x_price.of"),
    (("of: [city_x_price, item.day]", "of: [user.id, item.day]"), {"deep": "all"}, "features.deep.of"),
    (("of: [city_x_price, item.day]", "of: [city_x_price, item.day, user.id]"), {"deep": "all"},
     "features.deep.of"),
    (("city: {type: string}", "city: {type: string, normalise: [lower]}"),
     {"city": "some", "city_x_price": "some", "deep": "some"}, "entities.user.attributes.city.normalise"),
    (("city: {type: string}", "city: {type: string, missing: own_id}"),
     {"city": "coverage", "city_x_price": "coverage", "deep": "coverage"},
     "entities.user.attributes.city.missing"),
    (("part: weekday, missing: own_id", "part: weekday"), {"day": "some", "deep": "some"},
     "entities.item.attributes.day.missing"),
    (("part: weekday, missing: own_id", "part: month"), {"day": "all", "deep": "all"},
     "entities.item.attributes.day.part"),
    (("edges: [1, 5, 10]", "edges: [1, 2, 5, 10]"),
     {"price": "coverage", "city_x_price": "coverage", "deep": "coverage"},
     "entities.item.attributes.price.buckets"),
    (("edges: [1, 5, 10]", "edges: [1, 10]"), {"price": "some", "city_x_price": "some", "deep": "some"},
     "entities.item.attributes.price.buckets"),
    (("id: {type: int}", "id: {type: int, column: uid}"), {"id": "some"},
     "entities.user.attributes.id.column"),
    (("id: {type: int}", "id: {type: string, cast: true}"), {"id": "all"},
     "entities.user.attributes.id.type"),
    (("max_length: 4", "max_length: 3"),
     {"seen.permutation": "some", "seen.single": "coverage", "seen.sorted": "some", "pairs": "coverage"},
     "entities.user.attributes.seen.max_length"),
    (("size: [2, 3]", "size: [2, 3, 4]"), {"pairs": "coverage"}, "features.pairs.size"),
    (("size: [2, 3]", "size: 2"), {"pairs": "some"}, "features.pairs.size"),
    (("size: [2, 3]", "size: [2, 3], multiset: true"), {"pairs": "coverage"}, "features.pairs.multiset"),
    (("slot: 10,", "slot: 10, limit: 2, past_limit: cut,"), {"pairs": "coverage"}, "features.pairs.limit"),
    (("slot: 3,", "slot: 3, when: {user.id: {at_least: 10}},"), {"price": "coverage"}, "features.price.when"),
    (("id: {type: int}", "id: {type: int, weights: w}"), {"id": "none"},
     "entities.user.attributes.id.weights"),
    (("max_length: 4", "max_length: 4, recency: {times: t, within: 7, unit: day, date: 2025-01-10}"),
     {"seen.permutation": "some", "seen.single": "coverage", "seen.sorted": "some", "pairs": "coverage"},
     "entities.user.attributes.seen.recency"),
    (("day: {type: date, part: weekday, missing: own_id}",
      "day: {type: date, age: {date: 2025-01-10, unit: day}, buckets: {edges: [0]}}"),
     {"day": "all", "deep": "all"}, "entities.item.attributes.day.buckets"),
    (("deep: {kind: interaction", "deep: {kind: weak"), {"deep": "none"}, "features.deep.kind"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "effects", "key"), KEYS)
def test_each_key_has_its_effect(edit: tuple[str, str], effects: dict[str, str], key: str) -> None:
    """The effect told from the configs alone is what the ids then do."""
    found = diff(edit)
    touched = {label: one.effect for label, one in named(found).items() if one.changes}
    assert touched == effects
    assert all(key in {change.key for change in named(found)[label].changes} for label in effects)
    new_text = CONFIG.replace(*edit)
    engines = [Engine(load_text(text)) for text in (CONFIG, new_text)]
    measured = measure(engines[0], engines[1], found.features, table(), 500)
    assert measured.rows == 500
    for label, m in measured.features.items():
        effect = touched.get(label, "none")
        lost = m.old_ids - m.kept_ids
        if effect == "none":
            assert lost == 0 and m.changed_rows == 0 and m.new_ids == m.old_ids
        elif effect == "coverage":
            assert m.kept_ids > 0
        elif effect == "some":
            assert lost > 0
        else:
            assert m.kept_ids == 0


def test_order_comments_and_attributes_that_nobody_uses_are_no_change() -> None:
    lines = CONFIG.splitlines()
    text = "\n".join([*lines[:11], "      new: {type: bool}  # later", *lines[11:13], *reversed(lines[13:])])
    found = diff_configs(load_text(CONFIG), load_text(text))
    assert {one.status for one in found.features} == {"unchanged"} and not found.warnings
    assert len(found.features) == 10


def test_a_moved_slot_is_told_from_a_changed_feature() -> None:
    found = named(diff(("slot: 2,", "slot: 22,"), ("edges: [1, 5, 10]", "edges: [1]")))
    assert found["city"].status == "moved" and found["price"].status == "changed"
    (change,) = found["city"].changes
    assert (change.old, change.new, change.old_line, change.new_line) == (2, 22, 14, 14)


def test_added_removed_and_renamed() -> None:
    found = diff(
        (
            "  day: {kind: attribute, slot: 4, of: item.day}\n",
            "  new: {kind: attribute, slot: 30, of: item.day}\n",
        ),
        ("  pairs: {kind", "  renamed: {seed: pairs, kind"),
    )
    by_label = named(found)
    assert by_label["pairs -> renamed"].status == "renamed" and not by_label["pairs -> renamed"].rows_lost
    assert by_label["new"].status == "added" and not by_label["new"].rows_lost
    assert by_label["day"].status == "removed" and by_label["day"].rows_lost
    assert found.warnings == ()


def test_what_no_feature_alone_shows_is_a_warning() -> None:
    found = diff(
        ("  pairs: {kind", "  twos: {kind"),
        ("  id: {kind: attribute, slot: 1,", "  id: {kind: attribute, slot: 12,"),
    )
    assert found.warnings[0] == "twos is pairs but for its name; `seed: pairs` would keep its ids"
    assert "slot 10 of twos (line 20 of new.yaml) was pairs's" in found.warnings[1]
    assert named(diff(("  city: {kind: attribute, slot: 2", "  town: {kind: attribute, slot: 2")))[
        "city"
    ].rows_lost


def test_emit_and_share_follow_what_they_mean() -> None:
    shared = diff(
        (
            "slot: 2, of: user.city}",
            "slot: 2, of: user.city}\n  home: {kind: attribute, share: city, of: user.city}",
        )
    )
    assert named(shared)["home"].status == "added" and not shared.warnings
    hidden = diff(
        ("city_x_price: {kind: interaction, slot: 5,", "city_x_price: {kind: interaction, emit: false,")
    )
    assert named(hidden)["city_x_price"].status == "removed" and named(hidden)["deep"].status == "unchanged"


def test_without_slot_bits_a_slot_is_no_part_of_an_id() -> None:
    plain = CONFIG.replace("ids: {slot_bits: 8}\n", "")
    found = diff_configs(load_text(plain), load_text(plain.replace("slot: 2,", "slot: 22,")))
    assert named(found)["city"].effect == "none" and named(found)["city"].status == "unchanged"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "old.yaml").write_text(CONFIG)
    pa.parquet.write_table(table(), tmp_path / "t.parquet")
    return tmp_path


def run(files: Path, edit: tuple[str, str], *flags: object) -> int:
    assert edit[0] in CONFIG
    (files / "new.yaml").write_text(CONFIG.replace(*edit))
    return main(["diff", str(files / "old.yaml"), str(files / "new.yaml"), *map(str, flags)])


def test_diff_prints_why_and_ends_with_3_where_rows_are_lost(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit = ("edges: [1, 5, 10]", "edges: [1, 10]")
    assert run(files, edit) == 3
    text = capsys.readouterr().out
    assert "changed   price: some ids change" in text
    assert "entities.item.attributes.price.buckets: [1.0, 5.0, 10.0] -> [1.0, 10.0]" in text
    assert "new.yaml:10; some)" in text and "3 of 10 features lose trained rows" in text
    assert run(files, edit, "--allow", "price", "--allow", "deep") == 3
    assert run(files, edit, "--allow", "price", "--allow", "deep", "--allow", "city_x_price") == 0
    assert "3 of them allowed" in capsys.readouterr().out
    assert run(files, edit, "--allow", "prize") == 2
    assert "'prize', which is a feature of neither config; did you mean 'price'?" in capsys.readouterr().err
    assert run(files, ("slot: 10,", "slot: 10, limit: 9,")) == 0


def test_diff_with_data_counts_ids_and_bytes(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit = ("size: [2, 3]", "size: 2")
    assert run(files, edit, "--data", files / "t.parquet", "--json", "--dim", 4) == 3
    found = json.loads(capsys.readouterr().out)
    (pairs,) = [one for one in found["features"] if one["feature"] == "pairs"]
    seen = {tuple(sorted(set(row[-4:]))) for row in table()["seen"].to_pylist()}
    twos = {(a, b) for row in seen for a in row for b in row if a < b}
    threes = {(a, b, c) for row in seen for a in row for b in row for c in row if a < b < c}
    assert pairs["measured"]["old_ids"] == len(twos) + len(threes)
    assert pairs["measured"]["new_ids"] == pairs["measured"]["kept_ids"] == len(twos)
    assert pairs["measured"]["new_bytes"] == len(twos) * 54 and pairs["rows_lost"]
    assert found["memory"]["old_bytes"] - found["memory"]["new_bytes"] == 54 * len(threes)
    assert run(files, edit, "--data", files / "t.parquet", "--max-rows", 100) == 3
    assert "distinct ids over 100 rows" in capsys.readouterr().out


def test_a_change_that_data_does_not_show_loses_nothing(files: Path) -> None:
    edit = ("id: {type: int}", "id: {type: int, column: uid}")
    rows = table().drop_columns("uid")
    pa.parquet.write_table(rows.append_column("uid", rows["id"]), files / "t.parquet")
    assert run(files, edit) == 3
    assert run(files, edit, "--data", files / "t.parquet") == 0


def test_diff_names_a_column_that_one_config_lacks(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit = ("id: {type: int}", "id: {type: int, column: gone}")
    assert run(files, edit, "--data", files / "t.parquet") == 1
    assert "column 'gone'" in capsys.readouterr().err


def test_changes_are_shown_as_the_config_has_them(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(files, ("size: [2, 3]", "size: 2")) == 3
    shown = capsys.readouterr().out
    assert "features.pairs.size: [2, 3] -> [2]" in shown and "None" not in shown
    assert run(files, ("city: {type: string}", "city: {type: string, normalise: [lower]}")) == 3
    assert 'normalise: [] -> ["lower"]' in capsys.readouterr().out
