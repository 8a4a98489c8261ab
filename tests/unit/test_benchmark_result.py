# SPDX-License-Identifier: Apache-2.0
"""Bars, goals, timing in turns, result files, comparisons and reports of the benchmarks."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import report, result
from benchmarks.bar import Bar, Goal, Settings, make_bar
from benchmarks.batch import load_batches
from benchmarks.contest import BATCHES_MIN, contest
from benchmarks.embedded import require_equal
from benchmarks.worker import settings_from, settings_json

FASTER = Goal("ratio", "at least", 2.0)
CHEAPER = Goal("figure", "at most", 30.0)


def settings_in(folder: Path) -> Settings:
    return Settings(
        runs=3, seconds=0.001, warmup_batches=2, ids=100, rows=100, log_bytes=100,
        cache=folder / "cache", scratch=folder / "scratch",
    )  # fmt: skip


def test_a_ratio_is_taken_run_by_run() -> None:
    bar = make_bar("b", "work", "M rows/s", FASTER, [4.0, 9.0, 2.0], "peer", [2.0, 3.0, 2.0])
    assert (bar.figure, bar.low, bar.high) == (4.0, 2.0, 9.0)
    assert (bar.ratio, bar.ratio_low, bar.ratio_high) == (2.0, 1.0, 3.0)
    assert bar.met is True
    assert bar.goal == "≥ 2×"


@pytest.mark.parametrize(("figure", "met"), [(30.0, True), (30.1, False)])
def test_a_goal_on_the_figure(figure: float, met: bool) -> None:
    assert make_bar("b", "work", "s", CHEAPER, [figure]).met is met


def test_a_fixed_figure_may_stand_for_a_peer() -> None:
    bar = make_bar("b", "work", "B/row", Goal("ratio", "at most", 1.35), [90.0], ratio_to=72.0)
    assert bar.ratio == 1.25
    assert bar.met is True


def test_a_ratio_goal_without_a_peer_is_not_judged() -> None:
    assert make_bar("b", "work", "M rows/s", FASTER, [4.0], skipped="peer not installed").met is None


def test_the_sides_take_turns_over_the_same_batches(tmp_path: Path) -> None:
    batches = load_batches("uniform", tmp_path, ids=100, batches=3)
    calls: list[tuple[str, int]] = []

    def side(name: str) -> object:
        return lambda batch: calls.append((name, batches.index(batch)))

    one, two = contest([side("a"), side("b")], batches, settings_in(tmp_path))  # type: ignore[list-item]
    assert len(one.ids_per_s) == len(two.ids_per_s) == 3
    timed = [name for name, _ in calls[4:]]  # after two batches of warm-up each
    turns = [name for i, name in enumerate(timed) if i == 0 or timed[i - 1] != name]
    assert turns == ["a", "b"] * 3
    order = [place for name, place in calls[4:] if name == "a"]
    assert order == [i % 3 for i in range(len(order))]
    assert len(one.batch_s) == len(order) >= 3 * BATCHES_MIN


def test_wrong_answers_are_not_timed() -> None:
    rows = np.zeros((3, 2), np.float32)
    assert require_equal("pull", rows, rows + np.float32(1e-7), 1e-6) == pytest.approx(1e-7)
    with pytest.raises(ValueError, match=r"pull: answers differ by 1; at most 1e-06"):
        require_equal("pull", rows, rows + np.float32(1), 1e-6)
    with pytest.raises(ValueError, match="shapes"):
        require_equal("pull", rows, rows[:2], 1.0)
    with pytest.raises(ValueError, match="differ by nan"):
        require_equal("pull", rows, rows * np.nan, 1.0)


def test_settings_survive_the_way_to_the_worker(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    assert settings_from(json.loads(json.dumps(settings_json(settings)))) == settings


BARS = (
    make_bar("a", "work", "M rows/s", FASTER, [4.0, 4.1, 3.9], "peer", [2.0, 2.0, 2.0]),
    make_bar("b", "load", "s", CHEAPER, [40.0, 41.0, 39.0], detail={"ours_noisy": True}),
    Bar(id="c", what="wire", unit="", goal="≥ 1×", peer="other", skipped="skipped: redis is not installed"),
)


def test_a_result_file_reads_back(tmp_path: Path) -> None:
    head = result.describe_run({"runs": 3}, tmp_path)
    path = tmp_path / "deep" / "r.json"
    result.Result(head, BARS).save(path)
    found = result.load(path)
    assert found.bars == BARS
    assert found.head == head
    assert head["commit"] == "unknown"  # tmp_path is no checkout
    assert {"cpu", "cores", "memory_gib", "system"} == set(head["machine"])


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 1, "bars": [{"no": 1}]}', '{"format": 9, "bars": []}']
)
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"r\.json"):
        result.load(path)


def test_compare_tells_a_change_from_noise() -> None:
    slower = make_bar("a", "work", "M rows/s", FASTER, [3.0, 3.1, 2.9], "peer", [2.0, 2.0, 2.0])
    near = make_bar("a", "work", "M rows/s", FASTER, [3.9, 4.0, 3.8], "peer", [2.0, 2.0, 2.0])
    quicker = make_bar("b", "load", "s", CHEAPER, [20.0, 21.0, 19.0])
    assert [c.verdict for c in result.compare(BARS, [slower, quicker])] == ["worse", "better", "gone"]
    assert [c.verdict for c in result.compare([BARS[0]], [near, quicker])] == ["same", "new"]
    worse, *_ = result.compare(BARS, [slower])
    assert worse.change == pytest.approx(-0.25)
    wide = replace(slower, ratio_low=0.5, ratio_high=3.0)
    assert result.compare(BARS, [wide])[0].verdict == "same"


def test_the_report_marks_what_was_missed_and_what_is_missing(tmp_path: Path) -> None:
    found = result.Result(result.describe_run({"runs": 3}, tmp_path), BARS)
    text = report.markdown(found)
    assert "| a | 4 (3.9–4.1) | M rows/s | 2 | 2 (1.95–2.05) | ≥ 2× | yes | peer |" in text
    assert "| b | 40 (39–41) noisy | s | – | – | ≤ 30 | NO |" in text
    assert "skipped: redis is not installed" in text
    written = report.page(found, tmp_path / "page")
    assert sorted(p.name for p in written) == ["bytes.png", "index.html", "ratio.png", "results.md"]
    assert (tmp_path / "page" / "ratio.png").read_bytes().startswith(b"\x89PNG")
    assert "≥ 2×" in (tmp_path / "page" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ("its environment is not in /home/me/.cache/rowhouse/peer; --peers", "not in …/peer; --peers"),
        ("failed: '/opt/bin/python', File \"/a/b/bar.py\", line 3", "'…/python', File \"…/bar.py\", line 3"),
        ("no route to https://index.example:8080/simple/ray/", "no route to https://…"),
        ("2 M rows/s; and/or 1/2", "2 M rows/s; and/or 1/2"),
    ],
)
def test_a_result_holds_no_place_of_the_machine(told: str, kept: str) -> None:
    bar = Bar(id="w", what="", unit="", skipped=told)
    assert bar.to_json()["skipped"].endswith(kept)
