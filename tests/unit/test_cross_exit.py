# SPDX-License-Identifier: Apache-2.0
"""Every command against every wrong flag, config and data file: the exit codes of docs/feature_cross.md.

2: what was asked for cannot be: a flag, its value, a column, row or feature that it names, or the config.
1: data that do not fit, or a file that cannot be read or written. Each message names the thing.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from feature_cross.author.cli import main

CONFIG = """\
ids: {slot_bits: 6}
entities:
  user: {attributes: {a: {type: int}, s: {type: string}}}
  item: {attributes: {b: {type: int}}}
features:
  a: {kind: attribute, slot: 1, of: user.a}
  axb: {kind: interaction, slot: 2, of: [user.a, item.b]}
"""
ROWS = 1200

COMMANDS: dict[str, Callable[[str, str], list[str]]] = {
    "run": lambda c, d: ["run", d, "--config", c, "--out", "new.parquet"],
    "check": lambda c, d: ["check", c, "--data", d],
    "explain": lambda c, d: ["explain", d, "--config", c],
    "dictionary": lambda c, d: ["dictionary", c, d, "--out", "names.parquet"],
    "estimate": lambda c, d: ["estimate", c, d],
    "plot": lambda c, d: ["plot", c, d, "--out", "figures"],
    "rank": lambda c, d: ["rank", c, d, "--label", "y"],
    "prune": lambda c, d: ["prune", c, d, "--label", "y"],
    "suggest": lambda c, d: ["suggest", c, d, "--label", "y", "--order", "2"],
    "diff": lambda c, d: ["diff", c, c, "--data", d],
    "golden": lambda c, d: ["golden", c, d, "--out", "new.json"],
    "fit": lambda c, d: ["fit", c.replace("c.yaml", "q.yaml"), "--data", d, "--out", "q2.yaml"],
}
ALL = list(COMMANDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("exit")
    (here / "c.yaml").write_text(CONFIG)
    (here / "q.yaml").write_text(CONFIG.replace("a: {type: int}", "a: {type: int, buckets: {quantiles: 3}}"))
    (here / "bad.yaml").write_text(CONFIG.replace("slot: 2", "slott: 2"))
    random = np.random.default_rng(0)
    table = pa.table(
        {
            "a": random.integers(0, 9, ROWS), "b": random.integers(0, 9, ROWS),
            "s": [f"{n}" for n in random.integers(0, 5, ROWS)], "y": random.integers(0, 2, ROWS),
            "t": np.arange(ROWS), "name": ["x"] * ROWS,
        }
    )  # fmt: skip
    pa.parquet.write_table(table, here / "t.parquet")
    whole = (here / "t.parquet").read_bytes()
    (here / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (here / "torn.parquet").write_bytes(whole[:200] + bytes(200) + whole[400:])
    pa.parquet.write_table(table.drop(["a"]), here / "lacks.parquet")
    pa.parquet.write_table(table.set_column(0, "a", pa.array(["z"] * ROWS)), here / "text.parquet")
    pa.csv.write_csv(table, here / "t.csv")
    lines = (here / "t.csv").read_text().splitlines(keepends=True)
    late = [*lines, *lines[1:] * 200]  # past the block that Arrow reads first
    for name, content in {
        "short.csv": [*lines[:100], "1,2\n", *lines[100:]], "late.csv": [*late, "1,2\n"],
        "long.csv": [*lines[:100], '1,2,"3",0,5,"x",7\n', *lines[100:]],
        "words.csv": [*lines[:100], 'x1,2,"3",0,5,"x"\n', *lines[100:]],
        "words_late.csv": [*late, 'x1,2,"3",0,5,"x"\n'], "empty.csv": [], "t.txt": ["a\n"],
        "no.parquet": ["nope"], "no.arrow": ["nope"], "other.json": ["{}"],
    }.items():  # fmt: skip
        (here / name).write_text("".join(content))
    (here / "nothing").mkdir()
    return here


def ends(command: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code, and everything that was said on one line."""
    try:
        code = main(command)
    except SystemExit as error:  # argparse
        code = int(str(error.code))
    said = capsys.readouterr()
    return code, " ".join((said.err + said.out).split())


@pytest.mark.parametrize("command", ALL)
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("none_c.yaml", "cannot be read: No such file"),
        ("nothing", "cannot be read: Is a directory"),
        ("bad.yaml", "bad.yaml:7: features.axb.slott: unknown key; did you mean 'slot'?"),
    ],
)
def test_a_wrong_config_is_2(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    command: str, config: str, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    code, said = ends(COMMANDS[command](config, "t.parquet"), capsys)
    # what `check` finds in a config is its work, and no failure
    assert code == (1 if command == "check" and config == "bad.yaml" else 2)
    assert message in said


DATA = {
    "none.parquet": "none.parquet: no such file or folder",
    "t.txt": "t.txt: cannot tell one format by suffix",
    "nothing": "nothing: cannot tell one format by suffix",
    "no.parquet": "no.parquet: cannot be read: Parquet file size is 4 bytes",
    "no.arrow": "no.arrow: cannot be read: File is too small",
    "cut.parquet": "cut.parquet: cannot be read: Parquet magic bytes not found in footer",
    "torn.parquet": "torn.parquet: cannot be read: ",
    "empty.csv": "empty.csv: cannot be read: the file is empty; its first row must name the columns",
    "short.csv": "short.csv: cannot be read: row 101, counting the header, has 2 columns, and the header 6",
    "long.csv": "long.csv: cannot be read: row 101, counting the header, has 7 columns, and the header 6",
    "words.csv": "words.csv: cannot be read: row 101, counting the header, column 'a': invalid value 'x1'",
    "late.csv": "late.csv: cannot be read: row 241202, counting the header, has 2 columns",
    "words_late.csv": "words_late.csv: cannot be read: row 241202, counting the header, column 'a': invalid",
    "lacks.parquet": "'a'",
    "text.parquet": "column 'a' (user.a) has Arrow type string; type int takes",
}


@pytest.mark.parametrize("command", ALL)
@pytest.mark.parametrize("data", DATA)
def test_wrong_data_is_1(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    command: str, data: str,
) -> None:  # fmt: skip
    if "late" in data and command in ("explain", "golden"):
        pytest.skip("reads the first rows only")
    monkeypatch.chdir(folder)
    code, said = ends(COMMANDS[command]("c.yaml", data), capsys)
    assert (code, DATA[data] in said) == (1, True), said
    assert "Traceback" not in said and "Error creating dataset" not in said


FLAGS = [
    ("run", ["--out", "o.csv"], "--out is o.csv; ids can be written as .parquet or .arrow"),
    ("run", ["--out", "nothing"], "--out is nothing, which is a folder"),
    ("run", ["--out", "none/o.arrow"], "there is no folder none"),
    ("run", ["--out", "t.parquet"], "which is the input t.parquet itself"),
    ("run", ["--keep", "nam"], "--keep is 'nam', which is no column of the data"),
    ("run", ["--keep", "nam"], "did you mean 'name'?"),
    ("run", ["--keep", "a"], "--keep is 'a', which is the name of a feature too"),
    ("run", ["--batch-rows", "x"], "argument --batch-rows: is 'x'; it must be a number"),
    ("run", ["--threads", "0"], "argument --threads: is 0; it must be at least 1"),
    ("check", ["--against", "none.yaml"], "none.yaml: cannot be read"),
    ("explain", ["--feature", "axc"], "--feature is 'axc', which is no feature of the config"),
    ("explain", ["--feature", "axc"], "did you mean 'axb'?"),
    ("explain", ["--row", "1200"], "--row is 1200, and the data has 1200 rows"),
    ("explain", ["--row", "1.5"], "argument --row: is '1.5'; it must be a whole number"),
    ("explain", ["--values", "{}"], "not allowed with argument data"),
    ("explain", ["--dictionary", "t.parquet"], "'t.parquet' is not an id"),
    ("dictionary", ["--out", "o.csv"], "--out is o.csv; a dictionary is a .parquet file"),
    ("dictionary", ["--rows", "0"], "argument --rows: is 0; it must be 1 to"),
    ("estimate", ["--feature-dim", "none=4"], "--feature-dim names 'none'"),
    ("estimate", ["--budget", "8XB"], "argument --budget: is '8XB'"),
    ("estimate", ["--read-rows", "-1"], "argument --read-rows: "),
    ("plot", ["--out", "t.parquet"], "--out is t.parquet, which is a file; name a folder"),
    ("plot", ["--format", "bmp"], "invalid choice: 'bmp'"),
    ("prune", ["--keep", "axc"], "--keep is 'axc', which is no feature of the config"),
    ("prune", ["--out", "c.yaml"], "which is the config itself"),
    ("prune", ["--budget", "1"], "--budget is 1 bytes, but the smallest feature takes"),
    ("rank", ["--feature", "axc"], "--feature is 'axc', which is no cross of the config"),
    ("suggest", ["--column", "user.x"], "--column is 'user.x', which is no plain column"),
    ("suggest", ["--top", "1000"], "--top is 1000, but 61 slots are left"),
    *[
        (command, [flag, "nam"], f"{flag} is 'nam', which is no column of the data")
        for command in ("rank", "prune", "suggest")
        for flag in ("--label", "--time-column", "--group-column")
    ],
    *[
        (command, ["--label", "a"], "--label is 'a', which user.a")
        for command in ("rank", "prune", "suggest")
    ],
    *[(command, ["--dim", "0"], "argument --dim: is 0") for command in ("estimate", "rank", "diff", "plot")],
    (
        "diff",
        ["--allow", "axc"],
        "--allow is 'axc', which is a feature of neither config; did you mean 'axb'?",
    ),
    ("golden", ["--rows", "0"], "argument --rows: is 0"),
    ("golden", ["--out", "t.csv"], "--out is t.csv, which exists"),
    ("golden", ["--check", "other.json"], "not allowed with argument --out"),
    ("fit", ["--out", "nothing"], "--out is nothing, which is a folder"),
]


@pytest.mark.parametrize(("command", "flags", "message"), FLAGS)
def test_a_wrong_flag_is_2(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    command: str, flags: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    code, said = ends([*COMMANDS[command]("c.yaml", "t.parquet"), *flags], capsys)
    assert (code, message in said) == (2, True), said


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ([], 2, "the following arguments are required: command"),
        (["nope"], 2, "invalid choice: 'nope'"),
        (["explain", "t.parquet"], 2, "explain needs --config"),
        (["explain", "5", "--dictionary", "none.parquet"], 1, "none.parquet: "),
        (["explain", "5", "--dictionary", "t.parquet"], 1, "t.parquet: not a dictionary"),
        (["golden", "c.yaml", "--check", "none.json"], 1, "none.json: cannot be read: No such file"),
        (["golden", "c.yaml", "--check", "other.json"], 1, "other.json: is not a golden file"),
        (["golden", "c.yaml", "t.parquet", "--check", "other.json"], 2, "DATA does nothing with --check"),
        (["plot", "c.yaml", "none.json", "--out", "figures"], 1, "none.json: cannot be read: No such file"),
        (["plot", "c.yaml", "other.json", "--out", "figures"], 1, "not what `feature-cross estimate --json`"),
        (["diff", "c.yaml", "none.yaml"], 2, "none.yaml: cannot be read"),
        (["lock", "none.yaml"], 2, "none.yaml: cannot be read"),
        (["lock", "c.yaml", "--out", "none/x.json"], 2, "there is no folder none"),
        (["run", "t.parquet", "--config", "c.yaml", "--out", "/proc/o.arrow"], 1,
         "/proc/o.arrow: cannot be written: No such file"),
        (["fit", "q.yaml", "--data", "t.parquet", "--out", "/proc/q.yaml"], 1, "/proc/q.yaml: cannot be wri"),
    ],
)  # fmt: skip
def test_other_failures_have_their_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    command: list[str], code: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    found, said = ends(command, capsys)
    assert (found, message in said) == (code, True), said


def test_a_csv_file_has_its_declared_types_in_suggest_and_diff(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Column s holds digits: only its declaration says that they are text."""
    monkeypatch.chdir(folder)
    assert ends(COMMANDS["suggest"]("c.yaml", "t.csv"), capsys)[0] == 0
    Path("new.yaml").write_text(CONFIG + "  s: {kind: attribute, slot: 3, of: user.s}\n")
    assert ends(["diff", "c.yaml", "new.yaml", "--data", "t.csv"], capsys)[0] == 0
