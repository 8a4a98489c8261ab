# SPDX-License-Identifier: Apache-2.0
"""Crosses beside their peers: the process of a peer, peers that are missing, small runs of the workloads."""

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cross_peer, cross_throughput
from benchmarks.bar import Goal, Settings
from benchmarks.catalog import select
from benchmarks.cross_peer import ENVIRONMENT, KERAS, PEERS, RemoteRun, find_peers, peer_name
from benchmarks.cross_throughput import take_turns
from benchmarks.peer.environment import Ready, Unavailable
from benchmarks.peer.roster import QUICK

NAIVE = "tests.naive_crossing"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("ROWHOUSE_PEER_CACHE", str(tmp_path / "peers"))
    return Settings(
        runs=2, seconds=0.01, warmup_batches=1, ids=1, rows=1, log_bytes=1,
        cache=tmp_path, scratch=tmp_path, peers=(),
    )  # fmt: skip


@pytest.fixture
def this_interpreter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cross_peer, "prepare", lambda *_, **__: Ready(Path(sys.executable), tmp_path))


@pytest.mark.usefixtures("this_interpreter")
def test_a_peer_in_its_own_process_takes_turns(settings: Settings) -> None:
    peer = RemoteRun([np.arange(1, 4), np.array([b"x", b"y", b"z"])], NAIVE)
    try:
        done, spent_s = peer.turn(0.05, 2)
        assert done > 2 and spent_s >= 0.05
        assert peer.turn(0.0, 3)[0] == 3
        mine, theirs, detail = take_turns(settings, lambda: sum(range(1000)), peer, (1000, 20_000))
    finally:
        peer.close()
    assert len(mine) == len(theirs) == 2 and min(*mine, *theirs) > 0 and detail["rows"] == 1000


@pytest.mark.usefixtures("this_interpreter")
def test_a_peer_that_does_not_start_says_why() -> None:
    with pytest.raises(Unavailable, match="keras ended with 1: no first column"):
        RemoteRun([np.zeros(3, np.int64)], NAIVE)


def test_peers_that_are_missing_are_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_peer, "_importable", lambda form: form.package == "pandas")
    found, why = find_peers(settings.peers)
    assert found == ["pandas", "pandas-rows"]
    assert "not installed: polars, polars-struct, polars-rows, scikit-learn, keras, keras-integers" in why
    assert "cross: its environment is not in" in why and "keras: its environment is not in" in why


def test_keras_is_made_for_a_full_run_only(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def prepare(environment: object, _cache: Path, install: bool) -> Ready:
        asked[environment] = install
        raise Unavailable("nothing here")

    monkeypatch.setattr(cross_peer, "prepare", prepare)
    monkeypatch.setattr(cross_peer, "_importable", lambda _form: False)
    for wanted, cross, keras in (((), False, False), (QUICK, True, False), ((*QUICK, "ray"), True, True)):
        asked.clear()
        assert find_peers(wanted)[0] == []
        assert asked == {ENVIRONMENT: cross, KERAS: keras}


def test_every_form_is_pinned_and_named() -> None:
    for requirement in (*ENVIRONMENT.packages, *KERAS.packages):
        assert "==" in requirement
    assert peer_name("keras") == "keras 3.15.1, HashedCrossing of text"
    assert {form.package for form in PEERS.values() if form.asked} == {
        "polars",
        "pandas",
        "scikit-learn",
        "keras",
    }


def test_every_cross_of_the_catalog_runs(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_throughput, "ROWS", 2000)
    monkeypatch.setattr(cross_throughput, "find_peers", lambda _wanted: (["one"], "the rest"))
    form = cross_peer.Form(package="p", how="h", make=lambda table: lambda: table.num_rows, rows=100)
    monkeypatch.setattr(cross_throughput, "PEERS", {"one": form})
    monkeypatch.setattr(cross_throughput, "peer_name", str)
    for workload in select(["cross.*_way*"]):
        bars = {bar.id: bar for bar in workload.measure(settings)}
        alone, beside = bars[workload.name], bars[f"{workload.name}.one"]
        assert alone.figure and alone.figure > 0 and alone.skipped == "the rest"
        assert beside.ratio and beside.goal == "≥ 20×" and beside.peer == "one"
        few = [bar for id_, bar in bars.items() if ".one_row_per_value" in id_]
        assert len(few) == 2 * workload.name.endswith("_million")
        for bar in few:
            assert bar.detail["rows"] == 2000 and alone.detail["rows"] == 20_000 and bar.goal != "≥ 20×"
    assert len(select(["cross.*_way*"])) == 4
    assert Goal("ratio", "at least", 20.0).met_by(20.0)
