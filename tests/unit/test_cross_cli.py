# SPDX-License-Identifier: Apache-2.0
"""`feature-cross` as a person and as a script meets it: outputs, files, exit codes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from feature_cross import Engine, load
from feature_cross.cli import main
from feature_cross.explain import explain
from feature_cross.row import row_to_batch

CONFIG = """\
ids: {slot_bits: 6}
entities:
  user:
    key: id
    attributes:
      id: {type: int, column: user}
      city: {type: string, normalise: [strip, lower], missing: own_id}
      seen: {type: string, list: true, max_length: 3, keep: last}
  item:
    attributes:
      price: {type: float, buckets: {edges: [1, 10]}}
      day: {type: date, part: weekday}
      new: {type: bool}
features:
  user_x_city: {kind: categorical, slot: 1, of: [user.id, user.city]}
  city_x_price: {kind: interaction, slot: 2, of: [user.city, item.price]}
  deep: {kind: weak, slot: 3, of: [city_x_price, item.day, item.new]}
  seen: {kind: combination, of: user.seen, slots: {permutation: 4, single: 5, sorted: 6}}
  pairs: {kind: combination, form: sorted, size: [2, 3], multiset: true, slot: 7, of: user.seen}
  seen_x_day: {kind: weak, slot: 8, of: [user.seen, item.day], limit: 2, past_limit: cut}
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    rows = 200
    random = np.random.default_rng(1)
    user = random.integers(0, 50, rows)
    table = pa.table(
        {
            "user": user,
            "city": pa.array([[" Oslo", "ROMA", None][u % 3] for u in user]),
            "seen": [list(random.choice(["a", "b", "c"], random.integers(0, 6))) for _ in range(rows)],
            "price": random.random(rows) * 20,
            "day": pa.array(random.integers(0, 10**9, rows), pa.timestamp("s")),
            "new": random.random(rows) < 0.5,
            "label": random.integers(0, 2, rows),
        }
    )
    pa.parquet.write_table(table, tmp_path / "t.parquet", row_group_size=64)
    (tmp_path / "c.yaml").write_text(CONFIG)
    return tmp_path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize("threads", [1, 3])
def test_run_writes_the_ids_of_the_engine_and_the_columns_kept(
    files: Path, suffix: str, threads: int
) -> None:
    out = files / f"o.{suffix}"
    flags = [
        "--config",
        files / "c.yaml",
        "--out",
        out,
        "--keep",
        "label",
        "--batch-rows",
        7,
        "--threads",
        threads,
    ]
    assert run("run", files / "t.parquet", *flags) == 0
    written = pa.parquet.read_table(out) if suffix == "parquet" else pa.feather.read_table(out)
    source = pa.parquet.read_table(files / "t.parquet")
    wanted = Engine(load(files / "c.yaml")).transform(source).to_arrow()
    assert written.schema.metadata[b"feature_cross.id_format"] == b"1"
    assert written["label"].to_pylist() == source["label"].to_pylist()
    for name in wanted.schema.names:
        assert written[name].to_pylist() == wanted.column(name).to_pylist()
    assert sorted(p.name for p in files.iterdir()) == sorted(["c.yaml", "t.parquet", out.name])


def test_run_reports_as_json(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = files / "o.parquet"
    assert run("run", files / "t.parquet", "--config", files / "c.yaml", "--out", out, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows"] == 200 and report["ids"]["user_x_city"] == 200


def test_run_that_fails_leaves_nothing_and_keeps_what_was_there(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = files / "o.parquet"
    out.write_text("precious")
    strict = CONFIG.replace("price: {type: float", "price: {missing: error, type: float")
    (files / "c.yaml").write_text(strict)
    table = pa.parquet.read_table(files / "t.parquet")
    price = pa.array([1.0] * 199 + [None])
    broken = table.set_column(table.schema.get_field_index("price"), "price", price)
    pa.parquet.write_table(broken, files / "t.parquet")
    flags = ["--config", files / "c.yaml", "--out", out, "--batch-rows", 50]
    assert run("run", files / "t.parquet", *flags) == 1
    assert "column 'price' (item.price) has no value in row 199" in capsys.readouterr().err
    assert out.read_text() == "precious" and len(list(files.iterdir())) == 3


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["t.parquet", "--config", "none.yaml", "--out", "o.parquet"], 2, "cannot be read"),
        (["none.parquet", "--config", "c.yaml", "--out", "o.parquet"], 1, "no such file"),
        (["t.parquet", "--config", "c.yaml", "--out", "o.csv"], 1, "can be written as .parquet or .arrow"),
        (["t.parquet", "--config", "c.yaml", "--out", "none/o.parquet"], 1, "cannot be written"),
        (["t.parquet", "--config", "c.yaml", "--out", "o.arrow", "--keep", "x"], 1, "'x' (--keep) is not in"),
        (["t.parquet", "--config", "c.yaml", "--out", "o.arrow", "--keep", "deep"], 1, "not in the data"),
    ],
)
def test_run_explains_what_is_wrong(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    flags: list[str], code: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(files)
    assert run("run", *flags) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [["run"], ["run", "t", "--batch-rows", "0"], ["frobnicate"], ["explain", "--row", "-1"]]
)
def test_wrong_flags_are_exit_code_2(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(*flags)
    assert stopped.value.code == 2


@pytest.mark.parametrize("command", ["run", "check", "explain", "schema"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(command, "--help")
    assert stopped.value.code == 0
    assert f"example:\n  feature-cross {command}" in capsys.readouterr().out


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
    assert code == 1 and [(p["code"], p["line"]) for p in found["problems"]] == [("duplicate-slot", 16)]
    assert run("check", files / "c.yaml") == 1
    text = capsys.readouterr().out
    assert "c.yaml:16: features.city_x_price.slot: slot 1" in text and "1 errors, 0 warnings" in text


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
    assert code == 1 and found["problems"][-1]["code"] == "data"
    assert "(user.city) has no value in row" in found["problems"][-1]["message"]
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


def test_explain_gives_the_engines_ids_for_every_row(files: Path) -> None:
    engine = Engine(load(files / "c.yaml"))
    table = pa.parquet.read_table(files / "t.parquet").combine_chunks()
    batch, ids = table.to_batches()[0], engine.transform(table)
    for row in range(60):
        steps = explain(engine, batch, row)
        for name in engine.plan.outputs:
            made, offsets = ids[name]
            assert [s.id for s in steps if s.feature == name] == made[
                offsets[row] : offsets[row + 1]
            ].tolist()


def test_explain_shows_values_bytes_and_hashes(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = '{"user": 7, "city": " Oslo", "seen": ["b", "a"], "price": 3.5, "day": null, "new": true}'
    flags = ["--config", files / "c.yaml", "--values", values]
    assert run("explain", *flags, "--json", "--feature", "city_x_price") == 0
    (step,) = json.loads(capsys.readouterr().out)
    city, price = step["operands"]
    assert city["value"] == "oslo" and city["bytes"] == "03 6f 73 6c 6f"
    assert price["value"] == "[1, 10)" and price["bytes"] == "05 00 00 00 00 00 00 f0 3f"
    assert len(step["states"]) == 3 and int(step["id"], 16) >> 58 == 2
    assert run("explain", *flags) == 0
    text = capsys.readouterr().out
    assert "user.city = 'oslo'" in text and "deep: no id in this row" in text and "slot 2" in text


def test_explain_takes_any_row_of_a_file(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--config", files / "c.yaml", "--feature", "user_x_city", "--json"]
    assert run("explain", files / "t.parquet", *flags, "--row", 150) == 0
    value = json.loads(capsys.readouterr().out)[0]["operands"][0]["value"]
    assert value == pa.parquet.read_table(files / "t.parquet")["user"][150].as_py()
    assert run("explain", files / "t.parquet", *flags, "--row", 200) == 1
    assert "the data has 200 rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--values", "{"], "is not JSON"),
        (["--values", "[]"], "must be an object"),
        (["--values", "{}"], "is not in the row"),
        (["--values", "{}", "--feature", "none"], "'none' is not a feature"),
    ],
)
def test_explain_says_what_is_wrong(
    files: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert run("explain", "--config", files / "c.yaml", *flags) == 1
    assert message in capsys.readouterr().err


def test_explain_shows_a_null_with_an_id_of_its_own(files: Path) -> None:
    text = CONFIG.replace("seen: {type: string,", "seen: {type: string, missing: own_id,")
    (files / "c.yaml").write_text(text)
    engine = Engine(load(files / "c.yaml"))
    row = {"user": 1, "city": None, "seen": None, "price": float("nan"), "day": None, "new": False}
    steps = {step.feature: step for step in explain(engine, row_to_batch(row, engine.plan.attributes))}
    assert steps["seen.single"].operands[0].canonical == b"\x00"
    assert steps["user_x_city"].operands[1].value is None and "city_x_price" not in steps


def test_schema_is_a_json_schema_of_the_language(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("schema", "--json") == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) == {"version", "ids", "entities", "features"}
    assert schema["$defs"]["WeakFeature"]["additionalProperties"] is False


def test_the_command_is_installed() -> None:
    command = [sys.executable, "-m", "feature_cross.cli", "schema"]
    assert subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0


def test_run_on_a_full_disk_says_so_and_leaves_nothing(files: Path) -> None:
    script = (
        "import resource, sys; from feature_cross.cli import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); sys.exit(main(sys.argv[1:]))"
    )
    flags = [
        "run",
        "t.parquet",
        "--config",
        "c.yaml",
        "--out",
        "o.parquet",
        "--batch-rows",
        "20",
        "--threads",
        "1",
    ]
    command = [sys.executable, "-c", script, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=files, timeout=120)
    assert done.returncode == 1
    assert "o.parquet: cannot be written" in done.stderr and "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in files.iterdir()) == ["c.yaml", "t.parquet"]


def test_an_interrupt_leaves_nothing(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "transform_batch", interrupted)
    out = files / "o.parquet"
    flags = ["--config", files / "c.yaml", "--out", out, "--threads", 1]
    assert run("run", files / "t.parquet", *flags) == 130
    assert "interrupted" in capsys.readouterr().err and len(list(files.iterdir())) == 2


def test_a_reader_that_stops_early_is_no_error(files: Path) -> None:
    command = f"{sys.executable} -m feature_cross.cli schema | head -c 10; exit ${{PIPESTATUS[0]}}"
    shell = ["bash", "-c", command]
    done = subprocess.run(shell, capture_output=True, text=True, check=False, cwd=files, timeout=120)
    assert done.returncode == 0 and done.stderr == "" and len(done.stdout) == 10


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
