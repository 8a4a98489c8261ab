# SPDX-License-Identifier: Apache-2.0
"""From an id back to names: what a dictionary holds, what a look-up says, what both refuse."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from feature_cross import DataError, Engine, load
from feature_cross.author import dictionary as dictionary_module
from feature_cross.author.dictionary import DictionaryReport, look_up, parse_id, write_dictionary
from feature_cross.error import FlagError
from tests.cross_files import run

CONFIG = """\
ids: {slot_bits: 8}
entities:
  user: {attributes: {id: {type: int, column: user}, city: {type: string, normalise: [lower]}}}
  item: {attributes: {seen: {type: string, list: true}}}
features:
  user: {kind: attribute, slot: 1, of: user.id}
  user_x_city: {kind: categorical, slot: 2, of: [user.id, user.city]}
  pairs: {kind: combination, form: sorted, size: 2, slot: 3, of: item.seen}
  deep: {kind: weak, slot: 4, of: [user_x_city, item.seen]}
"""


def table(rows: int = 300) -> pa.Table:
    random = np.random.default_rng(0)
    return pa.table(
        {
            "user": random.integers(0, 40, rows),
            "city": [["Oslo", "ROMA", None][n] for n in random.integers(0, 3, rows)],
            "seen": [list(random.choice(["a", "b", "ü€"], n)) for n in random.integers(0, 4, rows)],
        }
    )


@pytest.fixture
def files(tmp_path: Path) -> Path:
    pa.parquet.write_table(table(), tmp_path / "t.parquet")
    (tmp_path / "c.yaml").write_text(CONFIG)
    return tmp_path


def make(files: Path, rows_max: int = 10_000, batch_rows: int = 65_536) -> DictionaryReport:
    engine = Engine(load(str(files / "c.yaml")))
    out = files / "d.parquet"
    return write_dictionary(engine, str(files / "t.parquet"), out, rows_max=rows_max, batch_rows=batch_rows)


def test_every_id_of_the_rows_is_named(files: Path) -> None:
    report = make(files)
    assert (report.rows_read, report.rows_sampled, report.stopped) == (300, 300, None)
    batch = Engine(load(str(files / "c.yaml"))).transform(table())
    ids = {name: Counter(batch[name][0].tolist()) for name in batch.features}
    assert report.names == sum(map(len, ids.values()))
    for name, counts in ids.items():
        for id_, count in list(counts.items())[:20]:
            (one,) = look_up(files / "d.parquet", [id_])
            assert (one.id, one.feature, one.count) == (id_, name, count)
    user = table()["user"][0].as_py()
    (one,) = look_up(files / "d.parquet", [int(batch["user"][0][0])])
    assert one.names == (("user.id", user),)
    deep = look_up(files / "d.parquet", [int(batch["deep"][0][0])])[0]
    assert [label for label, _ in deep.names] == ["user_x_city", "item.seen"]
    assert deep.names[0][1][1] in ("oslo", "roma")


def test_a_sample_is_uniform_and_the_same_whatever_the_batches(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "entities: {e: {attributes: {a: {type: int}}}}\nfeatures: {f: {kind: attribute, of: e.a}}\n"
    )
    pa.parquet.write_table(pa.table({"a": np.arange(20_000)}), tmp_path / "t.parquet", row_group_size=3000)
    reports, kept = [], []
    for batch_rows in (65_536, 777):
        reports.append(make(tmp_path, rows_max=500, batch_rows=batch_rows))
        names = pa.parquet.read_table(tmp_path / "d.parquet")["names"].to_pylist()
        kept.append(sorted(json.loads(text)[0][1] for text in names))
    assert kept[0] == kept[1] and 250 <= len(kept[0]) <= 500
    assert reports[0].rows_read == 20_000 and reports[0].rows_sampled == len(kept[0])
    quarters = np.histogram(kept[0], bins=4, range=(0, 20_000))[0]
    assert quarters.min() > len(kept[0]) / 4 * 0.6


def test_commands_make_a_dictionary_and_look_an_id_up(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("dictionary", files / "c.yaml", files / "t.parquet", "--out", files / "d.parquet") == 0
    assert "300 of 300 rows" in capsys.readouterr().out
    batch = Engine(load(str(files / "c.yaml"))).transform(table())
    id_ = int(batch["user_x_city"][0][0])
    for text in (str(id_), hex(id_)):
        assert run("explain", text, "--dictionary", files / "d.parquet") == 0
        out = capsys.readouterr().out
        assert f"0x{id_:016x}  user_x_city: user.id = " in out and "user.city = " in out
    assert run("explain", hex(id_), "--dictionary", files / "d.parquet", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["feature"] == "user_x_city" and found["names"][0]["from"] == "user.id"
    assert (
        run("dictionary", files / "c.yaml", files / "t.parquet", "--out", files / "d.parquet", "--json") == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["rows_sampled"] == 300 and report["names"] > 100


def test_an_id_that_is_not_there_is_told_by_its_slot(files: Path) -> None:
    make(files)
    with pytest.raises(
        DataError, match=r"0x0300000000000001 is not in .*300 of 300 rows; its slot is 3, of pairs"
    ):
        look_up(files / "d.parquet", [3 << 56 | 1])
    with pytest.raises(DataError, match="its slot is 9, of no feature there"):
        look_up(files / "d.parquet", [9 << 56])


def test_two_values_of_one_id_are_a_collision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Among 700,000 values at 32 bits some collide; both of a pair are named."""
    text = "ids: {slot_bits: 32}\nentities: {e: {attributes: {a: {type: int}}}}\n"
    (tmp_path / "c.yaml").write_text(text + "features: {f: {kind: attribute, slot: 1, of: e.a}}\n")
    engine = Engine(load(str(tmp_path / "c.yaml")))
    ids = engine.transform(pa.table({"a": np.arange(700_000)}))["f"][0]
    order = np.argsort(ids, kind="stable")
    place = int(np.flatnonzero(ids[order][1:] == ids[order][:-1])[0])
    pair = sorted(order[place : place + 2].tolist())
    pa.parquet.write_table(pa.table({"a": pair}), tmp_path / "t.parquet")
    assert make(tmp_path).names == 2
    assert run("explain", int(ids[pair[0]]), "--dictionary", tmp_path / "d.parquet") == 0
    out = capsys.readouterr().out
    assert all(f"e.a = {value}  " in out for value in pair) and "2 values have this id: a collision" in out


@pytest.mark.parametrize(
    ("text", "value"),
    [("7", 7), ("0x1F", 31), ("-1", (1 << 64) - 1), ("18446744073709551615", (1 << 64) - 1)],
)
def test_ids_are_read_as_people_have_them(text: str, value: int) -> None:
    assert parse_id(text) == value


@pytest.mark.parametrize("text", ["", "user", "0xg", "1.5", str(1 << 64), str(-(1 << 63) - 1)])
def test_what_is_no_id_is_named(text: str) -> None:
    with pytest.raises(FlagError, match="is not an id"):
        parse_id(text)


def test_as_many_names_as_a_dictionary_holds(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dictionary_module, "NAMES_MAX", 50)
    report = make(files)
    assert (report.names, report.stopped) == (50, "names") and report.rows_sampled < 300


def test_long_values_are_cut(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "entities: {e: {attributes: {a: {type: string}}}}\nfeatures: {f: {kind: attribute, of: e.a}}\n"
    )
    pa.parquet.write_table(pa.table({"a": ["x" * 10**6]}), tmp_path / "t.parquet")
    make(tmp_path)
    id_ = int(Engine(load(str(tmp_path / "c.yaml"))).transform({"a": "x" * 10**6})["f"][0][0])
    (one,) = look_up(tmp_path / "d.parquet", [id_])
    assert one.names == (("e.a", "x" * 199 + "…"),)


def test_what_cannot_be_is_named(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, data = files / "c.yaml", files / "t.parquet"
    pa.parquet.write_table(table().slice(0, 0), files / "empty.parquet")
    for code, message, arguments in [
        (2, "a dictionary is a .parquet file", ["dictionary", config, data, "--out", files / "d.csv"]),
        (2, "which is the input", ["dictionary", config, data, "--out", data]),
        (1, "no rows", ["dictionary", config, files / "empty.parquet", "--out", files / "d.parquet"]),
        (1, "not a dictionary", ["explain", 7, "--dictionary", data]),
        (1, "cannot be read", ["explain", 7, "--dictionary", files / "none.parquet"]),
        (2, "is not an id", ["explain", "x", "--dictionary", data]),
        (2, "--dictionary takes an id", ["explain", "--values", "{}", "--dictionary", data]),
        (2, "explain needs --config", ["explain", data]),
    ]:
        assert run(*arguments) == code, arguments
        assert message in capsys.readouterr().err
    assert not (files / "d.parquet").exists()
