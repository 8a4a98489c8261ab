# SPDX-License-Identifier: Apache-2.0
"""What a result becomes: the table of goals, and plots."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import cli, figure, goal_table, profile
from benchmarks.bar import Bar, Goal, make_bar
from benchmarks.report import page
from benchmarks.result import Result, describe_run

FASTER = Goal("ratio", "at least", 2.0)
BARS = (
    make_bar("a", "pull", "M rows/s", FASTER, [4.0], "OpenEmbedding 0.1.2, C API; durability none", [1.0]),
    make_bar("b", "step", "M rows/s", FASTER, [1.0], "torch 2", [1.0], {"ours_noisy": True}),
    make_bar("c", "alone", "M rows/s", FASTER, [3.0], "the best", skipped="skipped: no network"),
    make_bar("wire.mixed.step.p99", "mixed, p99", "ms/step", None, [12.0]),
    make_bar("d", "not shown", "M rows/s", None, [1.0]),
    make_bar(
        "table.size.load", "exponent", "exponent", Goal("figure", "at most", 1.1), [0.9],
        detail={"sizes": [1000, 10_000], "seconds": [0.1, 0.8]},
    ),
)  # fmt: skip


def some_result(folder: Path, bars: tuple[Bar, ...] = BARS) -> Result:
    return Result(describe_run({"runs": 3, "seconds": 0.5}, folder), bars)


def test_the_table_has_goals_met_and_missed(tmp_path: Path) -> None:
    lines = goal_table.table(some_result(tmp_path)).splitlines()
    assert lines[0] == goal_table.BEGIN and lines[-1] == goal_table.END
    assert "| pull | 4 M rows/s | 1: OpenEmbedding 0.1.2 | 4 | ≥ 2× | yes |" in lines
    assert "| step, noisy | 1 M rows/s | 1: torch 2 | 1 | ≥ 2× | **no** |" in lines
    assert "| alone (skipped: no network) | 3 M rows/s | – | – | ≥ 2× | – |" in lines
    assert "| mixed, p99 | 12 ms/step | – | – | – | – |" in lines
    assert "2 of 3 goals that could be judged are met." in lines
    assert not any("not shown" in line for line in lines)


def test_only_what_stands_between_the_marks_changes() -> None:
    text = f"before\n{goal_table.BEGIN}\nold\n{goal_table.END}\nafter\n"
    made = f"{goal_table.BEGIN}\nnew\n{goal_table.END}"
    assert goal_table.replaced(text, made) == f"before\n{made}\nafter\n"
    for wrong in ("no marks", text + text, f"{goal_table.END}{goal_table.BEGIN}"):
        with pytest.raises(ValueError, match="once each"):
            goal_table.replaced(wrong, made)


def test_the_command_writes_and_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved, page_ = tmp_path / "r.json", tmp_path / "page.md"
    some_result(tmp_path).save(saved)
    assert cli.main(["table", str(saved)]) == 0
    printed = capsys.readouterr().out
    page_.write_text(f"x\n{goal_table.BEGIN}\n{goal_table.END}\ny\n", encoding="utf-8")
    assert cli.main(["table", str(saved), "--write", str(page_)]) == 0
    assert page_.read_text(encoding="utf-8") == f"x\n{printed}y\n"
    page_.write_text("no marks", encoding="utf-8")
    assert cli.main(["table", str(saved), "--write", str(page_)]) == 2
    assert "once each" in capsys.readouterr().err


def test_every_figure_is_drawn_where_it_has_data(tmp_path: Path) -> None:
    written = page(some_result(tmp_path), tmp_path / "page")
    names = {path.name for path in written}
    assert {"results.md", "index.html", *figure.FIGURES} == names
    html = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    for name in figure.FIGURES:
        assert f'src="{name}"' in html
        assert (tmp_path / "page" / name).read_bytes().startswith(b"\x89PNG")


def test_a_figure_without_data_is_left_out(tmp_path: Path) -> None:
    result = some_result(tmp_path, (replace(BARS[3]),))
    names = {path.name for path in page(result, tmp_path / "page")}
    assert names == {"results.md", "index.html", "bytes.png"}


@pytest.mark.parametrize("work", ["pull.zipf", "step.zipf", "cross"])
def test_a_profile_names_the_parts(
    work: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "BUILD", tmp_path / "build")
    flags = ["--seconds", "0.05", "--ids", "20000", "--scratch", str(tmp_path), "--json"]
    assert cli.main(["profile", work, *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    names = [part for part, _, _ in found["parts"]]
    assert any(name.endswith("(kernel)") for name in names) and profile.REST in names
    assert ("PushLog.append" in names) == (work == "step.zipf")
    assert sum(ms for _, _, ms in found["parts"]) == pytest.approx(found["profiled_ms"])
    assert found["batch_ms"] > 0


def test_a_clock_charges_nested_parts_to_the_inner_one() -> None:
    clock = profile.Clock()
    inner = clock.wrap("inner", lambda: time.sleep(0.02))
    clock.wrap("outer", inner)()
    assert clock.seconds["inner"] >= 0.02 > 10 * clock.seconds["outer"]
    assert clock.calls == {"inner": 1, "outer": 1}


def test_the_command_knows_every_work() -> None:
    assert tuple(profile.WORKS) == cli.PROFILED
