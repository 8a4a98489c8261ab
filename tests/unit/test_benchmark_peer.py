# SPDX-License-Identifier: Apache-2.0
"""Peers in processes and environments of their own: started, checked, timed, skipped with a reason."""

import io
import os
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks import table_pull
from benchmarks.bar import Goal, Settings
from benchmarks.batch import DIM, ids_of, load_batches
from benchmarks.contest import BATCHES_MIN, contest
from benchmarks.peer import environment, roster
from benchmarks.peer.environment import Environment, Unavailable, prepare
from benchmarks.peer.remote import expected_adagrad, running, write_batches
from benchmarks.wire_server import Contender, against_servers
from tests.process import wait_until

IDS = 300


@pytest.fixture(autouse=True)
def naive(monkeypatch: pytest.MonkeyPatch) -> None:
    peers = {
        name: roster.Peer(module="tests.naive_peer", environment=Environment()) for name in ("one", "two")
    }
    for module in ("benchmarks.peer.remote", "benchmarks.wire_server"):
        monkeypatch.setattr(f"{module}.PEERS", peers)


def settings_in(folder: Path) -> Settings:
    return Settings(
        runs=2, seconds=0.001, warmup_batches=1, ids=IDS, rows=1, log_bytes=1,
        cache=folder / "cache", scratch=folder / "scratch", peers=("one", "two"),
    )  # fmt: skip


def some_rows() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((IDS, DIM)).astype(np.float32)


def contender(kind: str, ours: object = None) -> Contender:
    side = ours or (lambda _batch: None)
    return Contender("w", "work", kind, side, some_rows(), Goal("ratio", "at least", 2.0), (5.0,))  # type: ignore[arg-type]


def test_every_peer_has_its_adapter() -> None:
    for name, peer in roster.PEERS.items():
        assert find_spec(peer.module), name
        for requirement in (*peer.environment.packages, *peer.environment.sources):
            assert "==" in requirement, f"{name}: {requirement} is not pinned"


@pytest.mark.parametrize(
    ("text", "quick", "names"),
    [(None, True, roster.QUICK), (None, False, tuple(roster.PEERS)), ("none", True, ()),
     ("all", True, tuple(roster.PEERS)), ("ray,paddle", True, ("ray", "paddle"))],
)  # fmt: skip
def test_peers_are_chosen_by_name(text: str | None, quick: bool, names: tuple[str, ...]) -> None:
    assert roster.chosen(text, quick) == names


def test_an_unknown_peer_is_refused() -> None:
    with pytest.raises(ValueError, match="peer 'padle' is unknown; known are openembedding"):
        roster.chosen("padle", quick=True)


def test_a_peer_loads_pulls_steps_and_takes_turns(tmp_path: Path) -> None:
    batches = load_batches("zipf", tmp_path, ids=IDS, batches=3)
    write_batches(tmp_path / "work", batches)
    rows = some_rows()
    with running("one", tmp_path / "work", "adagrad") as peer:
        assert peer.name == "a dict in work"
        assert peer.load(ids_of(0, IDS), rows)["seconds"] > 0
        np.testing.assert_array_equal(peer.pull(batches[1].requested), rows[batches[1].requested_rank])
        for number in range(3):
            peer.step(number)
        wanted = expected_adagrad(rows[batches[0].distinct_rank], batches, "adagrad")
        np.testing.assert_allclose(peer.pull(batches[0].distinct), wanted, atol=1e-5)
        (timing,) = contest([peer.side("pull")], batches, settings_in(tmp_path))
        assert len(timing.ids_per_s) == 2
        assert len(timing.batch_s) >= 2 * BATCHES_MIN
        stopped = psutil.Process(peer.process.pid)
        wait_until(lambda: stopped.status() == psutil.STATUS_STOPPED)  # between turns it costs nothing
    assert peer.process.poll() is not None


def test_the_formula_of_paddle_takes_the_sum_without_the_gradient(tmp_path: Path) -> None:
    batches = load_batches("uniform", tmp_path, ids=5, batches=2)  # every id is in each batch
    zeros = np.zeros((batches[0].distinct.shape[0], DIM), np.float32)
    first, second = (batch.gradients.astype(np.float64) for batch in batches)
    wanted = -0.01 * first - 0.01 * second * np.sqrt(0.1 / (0.1 + first**2))
    np.testing.assert_allclose(expected_adagrad(zeros, batches, "paddle"), wanted, atol=1e-9)


@pytest.mark.parametrize("kind", ["pull", "step"])
def test_the_best_server_judges_the_bar(kind: str, tmp_path: Path) -> None:
    batches = load_batches("zipf", tmp_path, ids=IDS, batches=3)
    best, *each = against_servers(contender(kind), batches, settings_in(tmp_path))
    assert best.id == "w" and best.goal == "≥ 2×" and best.met is True
    assert [bar.id for bar in each] == ["w.one", "w.two"]
    assert best.ratio == min(bar.ratio or 0.0 for bar in each)
    assert "durability none" in best.peer
    assert all(bar.met is None for bar in each)


def test_a_table_in_process_stands_beside_one_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_pull, "C_API", "one")
    settings = replace(settings_in(tmp_path), ids=40_000)
    bar, further = table_pull.measure(settings, "table.pull.zipf", "zipf", Goal("ratio", "at least", 15.0))
    assert "rocksdict" in bar.peer and bar.goal == "≥ 15×" and bar.ratio
    assert further.id == "table.pull.zipf.one" and "a dict" in further.peer and further.ratio
    assert further.detail["largest_difference"] == 0 and further.met is None
    without = table_pull.measure(
        replace(settings, peers=("two",)), "p", "zipf", Goal("ratio", "at least", 15.0)
    )
    assert [bar.id for bar in without] == ["p"]


def test_a_wrong_answer_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAIVE_FAULT", "wrong")
    batches = load_batches("zipf", tmp_path, ids=IDS, batches=3)
    with pytest.raises(ValueError, match="w: one: answers differ by 1"):
        against_servers(contender("pull"), batches, settings_in(tmp_path))


@pytest.mark.parametrize(
    ("fault", "reason"), [("die", "OSError: no such library"), ("raise", "one: KeyError: 7")]
)
def test_a_peer_that_does_not_work_is_skipped_with_its_reason(
    fault: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAIVE_FAULT", fault)
    batches = load_batches("zipf", tmp_path, ids=IDS, batches=3)
    best, one, _two = against_servers(contender("pull"), batches, settings_in(tmp_path))
    assert reason in one.skipped
    assert best.figure == 5.0 and best.met is None and "none of the servers" in best.skipped


def test_an_environment_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    wanted = Environment(name="nothing", debian=("rowhouse-no-such-package",))
    with pytest.raises(Unavailable, match="nothing: apt-get"):
        prepare(wanted, tmp_path)
    assert not (tmp_path / "nothing" / environment.STAMP).exists()  # tried again next time
    with pytest.raises(Unavailable, match=r"rowhouse_no_such_module cannot be imported by"):
        prepare(Environment(modules=("rowhouse_no_such_module",)), tmp_path)


@pytest.mark.parametrize("old", [False, True])
def test_an_archive_stays_within_its_folder(
    old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if old:  # Python 3.11.2 has no filters
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    folder = tmp_path / "folder"
    folder.mkdir()

    def pack(member: tarfile.TarInfo) -> Path:
        archive = folder / "one.tar.gz"
        with tarfile.open(archive, "w:gz") as packed:
            member.size = 0 if member.issym() else 5
            packed.addfile(member, io.BytesIO(b"words"))
        return archive

    environment._unpack("one", pack(tarfile.TarInfo("one-1.0/file")), folder)
    assert (folder / "one-1.0" / "file").read_bytes() == b"words"
    link = tarfile.TarInfo("one-1.0/link")
    link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
    for wrong in (tarfile.TarInfo("../outside"), link):
        with pytest.raises(Unavailable, match=r"one.*(outside|link)"):
            environment._unpack("one", pack(wrong), folder)
    assert not (tmp_path / "outside").exists() and not (folder / "one-1.0" / "link").is_symlink()
    (folder / "one.tar.gz").write_bytes(b"no archive")
    with pytest.raises(Unavailable, match=r"one\.tar\.gz"):
        environment._unpack("one", folder / "one.tar.gz", folder)


def test_an_environment_is_made_once_and_again_when_its_list_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Environment] = []
    monkeypatch.setattr(environment, "_make", lambda wanted, _folder: made.append(wanted))
    old, new = (Environment(name="a", packages=(f"b=={n}",)) for n in (1, 2))
    for wanted in (old, old, new, new):
        ready = prepare(wanted, tmp_path)
    assert made == [old, new]
    assert ready.interpreter == tmp_path / "a" / "venv" / "bin" / "python"
    assert ready.variables == {"PEER_FOLDER": str(tmp_path / "a")}


def test_a_server_dies_with_the_peer_that_started_it(tmp_path: Path) -> None:
    script = (
        "import sys, time; from benchmarks.peer.driver import start_server;"
        "print(start_server([sys.executable, '-c', 'import time; time.sleep(60)']).pid, flush=True);"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        server = psutil.Process(int(driver.stdout.readline()))
        os.kill(driver.pid, signal.SIGKILL)
        server.wait(10)
