# SPDX-License-Identifier: Apache-2.0
"""The workload `scale`: its rows and draws, a small run that is broken off and goes on, and its report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rowhouse.mix import mix64

from benchmarks import scale, scale_report, scale_stage
from benchmarks.bar import Settings
from benchmarks.scale_table import draw, ids_in_slice, record_batches, zipf_share
from ps_server.plan.network import zipf_ranks


def test_zipf_ranks_are_as_frequent_as_their_distribution_says() -> None:
    rows, count = 1_000_000, 400_000
    ranks = zipf_ranks(np.random.default_rng(1), rows, count)
    assert ranks.min() >= 0 and ranks.max() < rows
    for hottest in (1, 10, 1_000, 100_000):
        share = zipf_share(rows, hottest)
        assert (ranks < hottest).mean() == pytest.approx(share, abs=4 * np.sqrt(share / count))
    assert zipf_share(rows, rows) == pytest.approx(1.0)


def test_rows_are_whole_and_a_hundredth_is_old() -> None:
    heard: list[int] = []
    batches = list(record_batches(600_000, heard.append))
    ids = np.concatenate([batch.column("id").to_numpy() for batch in batches])
    np.testing.assert_array_equal(ids, mix64(np.arange(600_000, dtype=np.uint64)))
    pushed = np.concatenate([batch.column("push_time").to_numpy() for batch in batches])
    assert (pushed < pushed.max()).mean() == pytest.approx(0.01)
    assert heard == [250_000, 500_000, 600_000]


def test_a_slice_holds_the_first_keys_only() -> None:
    ids = ids_in_slice(np.random.default_rng(1), 1_000_000, 0.25, 5_000)
    assert ids.shape == (5_000,) and int(mix64(ids).max()) <= 1 << 62
    assert np.isin(ids, mix64(np.arange(1_000_000, dtype=np.uint64))).all()


def settings(path: Path, rows: int) -> Settings:
    return Settings(
        runs=1,
        seconds=0.02,
        warmup_batches=1,
        ids=1,
        rows=rows,
        log_bytes=1,
        cache=path,
        scratch=path,
        folder=path,
    )


def test_a_run_that_does_not_fit_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"10,000,000,000,000 rows need [\d.,]+ GB of memory .* there are"):
        scale.measure(settings(tmp_path, 10**13), "scale", None)
    assert not (tmp_path / "data").exists()


def test_a_run_goes_on_where_it_was_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        (scale, "HOT_SHARE", 0.8), (scale, "DISK_REST", 1 << 28),
        (scale, "MEMORY_REST", 1 << 28), (scale_stage, "KILL_STEPS", 4), (scale_stage, "PREFETCH_STEPS", 2),
        (scale_stage, "RUNS", 1), (scale_stage, "WARM_PULLS", 1), (scale_stage, "DISK_PULLS", 1),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)

    def broken(_run: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    whole = dict(scale.STAGES)
    monkeypatch.setitem(scale.STAGES, "train", broken)
    with pytest.raises(KeyboardInterrupt):
        scale.measure(settings(tmp_path, 250_000), "scale", None)
    assert list(json.loads((tmp_path / "scale.json").read_text())) == ["rows", "load", "open", "pull"]
    monkeypatch.setitem(scale.STAGES, "train", whole["train"])
    monkeypatch.setitem(scale.STAGES, "load", broken)  # it is done, and not done again
    bars = {bar.id: bar for bar in scale.measure(settings(tmp_path, 250_000), "scale", None)}
    assert bars["scale.pull"].ratio is not None and bars["scale.load"].figure is not None
    (found,) = scale_report.read_runs([tmp_path])
    assert found["kill"]["rows"] == found["kill"]["rows_before"] == 252_500
    assert found["verify"]["rows"] == 252_500 - found["evict"]["evicted_rows"]
    assert found["verify"]["damage"] == []
    with pytest.raises(ValueError, match="holds a run of 250000 rows, not 300000"):
        scale.measure(settings(tmp_path, 300_000), "scale", None)
    written = scale_report.write([found], {"time": "now"}, tmp_path / "report")
    assert all(path.stat().st_size for path in written)
    text = scale_report.table([found, {**found, "rows": 2_500_000}])
    assert "| bulk load | µs/row |" in text and "| -1.00 |" in text  # the same seconds for ten times the rows


def test_a_run_that_is_not_finished_is_not_reported(tmp_path: Path) -> None:
    (tmp_path / "scale.json").write_text('{"rows": 7}')
    with pytest.raises(ValueError, match="not finished"):
        scale_report.read_runs([tmp_path])


def test_a_batch_has_as_many_ids_as_a_step_asks_for() -> None:
    for kind in ("zipf", "uniform"):
        batch = draw(kind, np.random.default_rng(2), 1_000)
        assert batch.requested.shape == (26_624,) and batch.distinct.shape[0] <= 1_000
