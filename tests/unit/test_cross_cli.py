# SPDX-License-Identifier: Apache-2.0
"""`feature-cross` as a person and as a script meets it: outputs, files, exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from feature_cross import Engine, load
from feature_cross.author.explain import explain
from feature_cross.data.row import row_to_batch
from tests.cross_files import CONFIG, run, write_files


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return write_files(tmp_path)


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


@pytest.mark.parametrize(
    ("data", "out"),
    [
        ("t.parquet", "t.parquet"),
        ("t.parquet", "folder/../t.parquet"),
        ("t.parquet", "link.parquet"),
        (".", "t.parquet"),
        (".", "folder/new.parquet"),
        ("folder", "t.parquet"),  # the folder has a link to it
    ],
)
def test_run_never_writes_over_its_input(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: str, out: str
) -> None:
    monkeypatch.chdir(files)
    Path("folder").mkdir()
    for link in ("link.parquet", "folder/in.parquet"):
        Path(link).symlink_to(files / "t.parquet")
    before = Path("t.parquet").read_bytes()
    # the config is not there: the refusal comes before it is read
    assert run("run", data, "--config", "none.yaml", "--out", out) == 2
    assert f"--out is {Path(out)}, which is" in capsys.readouterr().err
    assert Path("t.parquet").read_bytes() == before


def test_run_into_a_pipe_prints_no_empty_line(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", files / "t.parquet", "--config", files / "c.yaml", "--out", files / "o.parquet") == 0
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.splitlines()[0].strip()
    assert "user_x_city" in printed.err


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
        (["t.parquet", "--config", "c.yaml", "--out", "o.csv"], 2, "can be written as .parquet or .arrow"),
        (["t.parquet", "--config", "c.yaml", "--out", "none/o.parquet"], 2, "there is no folder none"),
        (
            ["t.parquet", "--config", "c.yaml", "--out", "o.arrow", "--keep", "x"],
            2,
            "--keep is 'x', which is no column",
        ),
        (
            ["t.parquet", "--config", "c.yaml", "--out", "o.arrow", "--keep", "deep"],
            2,
            "no column of the data",
        ),
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
    assert run("explain", files / "t.parquet", *flags, "--row", 200) == 2
    assert "the data has 200 rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--values", "{"], 2, "is not JSON"),
        (["--values", "[" * 100_000], 2, "is not JSON"),
        (["--values", "[]"], 2, "must be an object"),
        (["--values", "{}"], 1, "is not in the row"),
        (["--values", "{}", "--feature", "none"], 2, "'none', which is no feature"),
    ],
)
def test_explain_says_what_is_wrong(
    files: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, message: str
) -> None:
    assert run("explain", "--config", files / "c.yaml", *flags) == code
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
    command = [sys.executable, "-m", "feature_cross.author.cli", "schema"]
    assert subprocess.run(command, capture_output=True, check=False, timeout=600).returncode == 0


def test_run_on_a_full_disk_says_so_and_leaves_nothing(files: Path) -> None:
    script = (
        "import resource, sys; from feature_cross.author.cli import main;"
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
    # no coverage in the child: its data file would meet the limit too
    env = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=files, timeout=1_200, env=env
    )
    assert done.returncode == 1
    assert "o.parquet: cannot be written" in done.stderr and "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in files.iterdir()) == ["c.yaml", "t.parquet"]


def test_an_interrupt_leaves_nothing(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "transform_batch", interrupted)
    out = files / "o.parquet"
    flags = ["--config", files / "c.yaml", "--out", out, "--threads", 1]
    assert run("run", files / "t.parquet", *flags) == 130
    assert "interrupted" in capsys.readouterr().err and len(list(files.iterdir())) == 2


def test_a_reader_that_stops_early_is_no_error(files: Path) -> None:
    command = f"{sys.executable} -m feature_cross.author.cli schema | head -c 10; exit ${{PIPESTATUS[0]}}"
    shell = ["bash", "-c", command]
    done = subprocess.run(shell, capture_output=True, text=True, check=False, cwd=files, timeout=1_200)
    assert done.returncode == 0 and done.stderr == "" and len(done.stdout) == 10


def test_data_without_rows_is_a_warning(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "h.csv").write_text("a\n")
    (files / "e.yaml").write_text(
        "entities: {e: {attributes: {a: {type: int}}}}\nfeatures: {f: {kind: attribute, of: e.a}}\n"
    )
    assert run("check", files / "e.yaml", "--data", files / "h.csv") == 0
    assert "warning: " in (out := capsys.readouterr().out) and "the data have no rows" in out
    assert run("run", files / "h.csv", "--config", files / "e.yaml", "--out", files / "o.parquet") == 0
    assert "has no rows" in capsys.readouterr().err


INTERRUPTED_IMPORT = """
import importlib.abc, os, signal, sys

class AtImport(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, AtImport())
from feature_cross.author.cli import main
sys.exit(main(["explain", "--config", "none.yaml", "--values", "{}"]))
"""


@pytest.mark.parametrize(
    "module", ["argparse", "numba", "pyarrow.lib", "feature_cross.config.plan", "rich.table"]
)
def test_an_interrupt_while_modules_load_is_quiet(module: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED_IMPORT, module]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1_200, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_interrupts_that_were_ignored_stay_ignored() -> None:
    ignoring = f"import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n{INTERRUPTED_IMPORT}"
    command = [sys.executable, "-c", ignoring, "numba"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1_200, check=False)
    assert done.returncode == 2 and "none.yaml: cannot be read" in done.stderr


def test_the_package_loads_nothing_large_until_it_is_used() -> None:
    code = (
        "import contextlib, io, sys, feature_cross, feature_cross.author.cli\n"
        "for words in (['--help'], ['rank', '--help'], ['rank']):\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "        with contextlib.suppress(SystemExit): feature_cross.author.cli.main(words)\n"
        "large = ('pyarrow', 'numba', 'numpy', 'pydantic', 'rich', 'yaml', 'datasketches', 'matplotlib')\n"
        "print([m for m in large if m in sys.modules])\n"
        "feature_cross.Engine, feature_cross.load\n"
        "print(set(feature_cross.__all__) <= set(dir(feature_cross)))\n"
        "print(all(getattr(feature_cross, name) for name in feature_cross.__all__))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["[]", "True", "True"]
    import feature_cross

    with pytest.raises(AttributeError, match="no attribute 'engin'"):
        feature_cross.engin  # noqa: B018


def test_a_missing_extra_is_named(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [
        n
        for n in sys.modules
        if n.startswith(("feature_cross.author.estimate", "feature_cross.author.command"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "datasketches", None)
    assert run("estimate", files / "c.yaml", files / "t.parquet") == 2
    told = "estimate needs datasketches, which is not installed: pip install 'rowhouse-ps[author]'"
    assert told in capsys.readouterr().err
