# SPDX-License-Identifier: Apache-2.0
"""Trainers that keep pace, as processes: bsp has one trainer's bits, also through kills; ssp its bound."""

import itertools
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ps_client import connect
from tests.conftest import MakeConfig
from tests.process import ServerProcess
from tests.trainer import TABLES, Job, facts_of, gradients, rows_of, start

STEPS, TRAINERS = 30, 3


@pytest.fixture
def cluster(make_config: MakeConfig) -> Iterator[ServerProcess]:
    with ServerProcess("up", make_config(tables=TABLES, shards=2)) as server:
        server.endpoints()
        yield server
        server.stop()


def jobs(cluster: ServerProcess, **settings: Any) -> list[Job]:
    base = {
        "endpoints": cluster.endpoints(),
        "group": "run",
        "trainers": TRAINERS,
        "steps": STEPS,
        **settings,
    }
    return [Job(**base, rank=rank) for rank in range(base["trainers"])]


def rows_at(cluster: ServerProcess) -> dict[str, NDArray[np.float32]]:
    with connect(cluster.endpoints()) as client:
        return rows_of(client)


@pytest.fixture(scope="module")
def one_trainer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NDArray[np.float32]]:
    return one_trainers_rows(tmp_path_factory.mktemp("one"), STEPS)


def one_trainers_rows(
    folder: Path, steps: int, steps_of: Sequence[int] | None = None
) -> dict[str, NDArray[np.float32]]:
    """What a plain client leaves that pushes all trainers' sums of a step as one; `steps_of` by trainer."""
    lasts = steps_of or [steps] * TRAINERS
    with connect(f"embedded:{folder}", config={"tables": TABLES}) as client:
        for step in range(steps):
            pushes = [gradients(client, rank, step) for rank in range(TRAINERS) if step < lasts[rank]]
            client.push_many({t["name"]: _joined([push[t["name"]] for push in pushes]) for t in TABLES})
        return rows_of(client)


def _joined(parts: list[tuple[Any, Any]]) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """Each trainer's gradients summed by distinct id, one trainer after the other."""
    ids: list[int] = []
    gradients: list[NDArray[np.float32]] = []
    for part_ids, part_gradients in parts:
        sums: dict[int, NDArray[np.float32]] = {}
        for row_id, value in zip(part_ids.tolist(), part_gradients, strict=True):
            sums[row_id] = sums[row_id] + value if row_id in sums else value
        ids += list(sums)
        gradients += list(sums.values())
    return np.array(ids, np.uint64), np.array(gradients, np.float32)


def assert_same_bits(rows: dict[str, NDArray[np.float32]], expected: dict[str, NDArray[np.float32]]) -> None:
    for name, values in expected.items():
        np.testing.assert_array_equal(rows[name], values, err_msg=name)


def test_bsp_trainers_have_the_bits_of_one(cluster: ServerProcess, one_trainer: Any) -> None:
    processes = [start(job) for job in jobs(cluster)]
    for process in processes:
        facts = facts_of(process)
        assert [f["step"] for f in facts[:-1]] == list(range(1, STEPS + 1))
        assert facts[-1]["ended"] == STEPS and facts[-1]["lost"] == []
    assert_same_bits(rows_at(cluster), one_trainer)


def test_one_trainer_with_all_batches_has_them_too(cluster: ServerProcess, one_trainer: Any) -> None:
    job = Job(endpoints=cluster.endpoints(), group="one", rank=0, trainers=1, steps=STEPS, all_ranks=TRAINERS)
    assert facts_of(start(job))[-1]["ended"] == STEPS
    assert_same_bits(rows_at(cluster), one_trainer)


def _disturb(
    cluster: ServerProcess, all_jobs: list[Job], pause_s: float, for_s: float, seed: int
) -> dict[str, int]:
    """Run the trainers; for a while kill or freeze a shard, or kill and restart a trainer, in turns."""
    rng, count = random.Random(seed), {"shard": 0, "trainer": 0, "freeze": 0}
    processes = [start(job) for job in all_jobs]
    ends: list[dict[str, Any]] = [{} for _ in processes]
    output = [open_reader(process, end) for process, end in zip(processes, ends, strict=True)]
    until_s = time.monotonic() + for_s
    for turn in itertools.count():
        time.sleep(pause_s)
        if time.monotonic() > until_s or all(process.poll() is not None for process in processes):
            break
        kind = ("trainer", "shard", "trainer", "freeze")[turn % 4]  # a trainer while a shard is away, too
        if kind == "trainer":
            rank = rng.randrange(len(processes))
            if processes[rank].poll() is None:
                processes[rank].kill()
                processes[rank].wait()
                output[rank].join()
                processes[rank] = start(all_jobs[rank])
                output[rank] = open_reader(processes[rank], ends[rank])
                count["trainer"] += 1
        # By turns: a supervisor gives up on a shard that dies five times in a row within 10 s of a start.
        elif pid := cluster.facts()["pids"][turn // 4 % 2 if kind == "shard" else rng.randrange(2)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if kind == "shard" else signal.SIGSTOP)
                if kind == "freeze":
                    time.sleep(rng.uniform(0, 1))
                    os.kill(pid, signal.SIGCONT)
                count[kind] += 1
    for process, reader, end, job in zip(processes, output, ends, all_jobs, strict=True):
        reader.join()
        process.wait()
        assert end.get("ended") == job.steps, end
    return count


def open_reader(process: "subprocess.Popen[str]", last: dict[str, Any]) -> threading.Thread:
    """Reads what a trainer prints, so that it never waits for us; `last` holds its last line."""

    def read() -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                last.clear()
                last.update(json.loads(line))

    reader = threading.Thread(target=read)
    reader.start()
    return reader


def with_journals(all_jobs: list[Job], folder: Path) -> list[Job]:
    return [replace(job, journal=str(folder / f"journal-{job.rank}")) for job in all_jobs]


def test_bsp_through_kills_of_shards_and_trainers(
    cluster: ServerProcess, one_trainer: Any, tmp_path: Path
) -> None:
    """Also of both in one step: that is what the journals are for."""
    all_jobs = with_journals(jobs(cluster, sleep_s=0.15, deadline_s=60.0), tmp_path)
    count = _disturb(cluster, all_jobs, pause_s=1.0, for_s=9.0, seed=5)
    assert min(count.values()) >= 1, count
    assert_same_bits(rows_at(cluster), one_trainer)


@pytest.mark.soak
def test_bsp_through_five_minutes_of_kills(cluster: ServerProcess, tmp_path: Path) -> None:
    """Every 2 seconds."""
    seed = int(os.environ.get("SOAK_SEED", time.time_ns() % 2**32))
    soak_s = float(os.environ.get("SOAK_S", "300"))
    steps = int(5 * soak_s)
    all_jobs = with_journals(jobs(cluster, sleep_s=0.15, deadline_s=120.0, steps=steps), tmp_path)
    count = _disturb(cluster, all_jobs, pause_s=2.0, for_s=soak_s, seed=seed)
    print(f"seed {seed}: {steps} steps of {TRAINERS} trainers, {count}")
    assert min(count.values()) >= soak_s / 40, count
    assert_same_bits(rows_at(cluster), one_trainers_rows(tmp_path / "one", steps))


def test_a_trainer_that_dies_stops_the_others_and_is_named(cluster: ServerProcess) -> None:
    group = jobs(cluster, deadline_s=1.5, sleep_s=0.02, steps=10_000)
    processes = [start(job) for job in group]
    assert processes[1].stdout is not None
    for _ in range(3):
        assert "step" in processes[1].stdout.readline()
    processes[1].kill()
    for rank in (0, 2):
        last = facts_of(processes[rank])[-1]
        assert last["error"] == "TrainerLostError"
        assert (
            f"trainer 1 of 3 ({os.uname().nodename}:{processes[1].pid}) gave no sign for 1.5 s"
            in last["text"]
        )
        assert last["text"].endswith("the group stops")
    processes[1].communicate()


def test_the_others_go_on_where_that_is_wanted(cluster: ServerProcess) -> None:
    processes = [start(job) for job in jobs(cluster, deadline_s=1.5, on_lost="go_on", sleep_s=0.02, steps=60)]
    assert processes[1].stdout is not None
    assert "step" in processes[1].stdout.readline()
    processes[1].kill()
    processes[1].communicate()
    for rank in (0, 2):
        last = facts_of(processes[rank])[-1]
        assert last["ended"] == 60
        assert len({text.split(" gave")[0] for text in last["lost"]}) == 1
        assert last["lost"][0].startswith(f"trainer 1 of 3 ({os.uname().nodename}:{processes[1].pid})")


def uneven(cluster: ServerProcess, steps_of: Sequence[int], **settings: Any) -> list[Job]:
    """Jobs whose deadline nobody can wait for."""
    made = jobs(cluster, deadline_s=3_600.0, **settings)
    return [replace(job, steps=steps) for job, steps in zip(made, steps_of, strict=True)]


def test_a_trainer_that_ends_early_stops_the_others_at_once(cluster: ServerProcess) -> None:
    processes = [start(job) for job in uneven(cluster, (30, 5, 30))]
    assert facts_of(processes[1])[-1]["ended"] == 5
    for rank in (0, 2):
        last = facts_of(processes[rank])[-1]
        assert last["error"] == "TrainerLostError"
        assert f"trainer 1 of 3 ({os.uname().nodename}:{processes[1].pid}) ended after step 5" in last["text"]
    with connect(cluster.endpoints()) as client:
        trainer = client.trainer(group="run", rank=0, world_size=1)
        assert trainer.steps == 5, "step 6 is nowhere applied"


def test_trainers_of_unequal_steps_go_on_through_kills(cluster: ServerProcess, tmp_path: Path) -> None:
    """A shard that is killed forgets who ended, and a trainer too: the others tell them."""
    steps_of = (24, 4, 16)
    all_jobs = with_journals(uneven(cluster, steps_of, on_uneven="go_on", sleep_s=0.1), tmp_path)
    processes = [start(job) for job in all_jobs]
    assert facts_of(processes[1])[-1]["ended"] == 4
    output = processes[0].stdout
    assert output is not None
    for shard in (0, 1):
        os.kill(cluster.facts()["pids"][shard], signal.SIGKILL)
        for _ in range(3):
            assert "step" in output.readline()
    processes[0].kill()
    processes[0].communicate()
    processes[0] = start(all_jobs[0])
    assert facts_of(processes[2])[-1]["ended"] == 16
    last = facts_of(processes[0])[-1]
    assert last["ended"] == 24 and last["lost"] == []
    assert [text.rpartition(" after ")[2] for text in last["left"]] == ["step 4", "step 16"]
    assert_same_bits(rows_at(cluster), one_trainers_rows(tmp_path / "one", 24, steps_of))


@pytest.mark.parametrize("staleness", [0, 2])
def test_ssp_keeps_its_bound(cluster: ServerProcess, staleness: int) -> None:
    """One trainer is slow: the others are never further ahead of it than they may be, and do use that."""
    all_jobs = jobs(cluster, pace="ssp", staleness=staleness, steps=15, group=f"ssp{staleness}")
    slow = Job(**{**vars(all_jobs[0]), "sleep_s": 0.1})
    processes = [start(job) for job in (slow, *all_jobs[1:])]
    ends = [{f["step"]: f["time_s"] for f in facts_of(p) if "step" in f} for p in processes]
    leads = []
    for rank in (1, 2):
        for step, at_s in ends[rank].items():
            # When `step` ended here, the slow one had pushed its step - staleness: it printed a little later.
            behind = step - staleness
            if behind >= 1:
                assert ends[0][behind] <= at_s + 0.09, f"trainer {rank} ended step {step} too early"
            leads.append(step - sum(t <= at_s for t in ends[0].values()))
    assert staleness == 0 or max(leads) >= staleness
