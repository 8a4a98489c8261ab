# SPDX-License-Identifier: Apache-2.0
"""A real shard with a tiny budget, through crashes, against two models.

Model one is a second shard that holds everything in memory and never crashes: every table must equal it bit
for bit after each step, and every stored byte at the end. Model two is a dict of SGD rows with eviction,
written to be obviously right, which both shards must equal. `pytest -m soak` runs the machine for long.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from numpy.typing import NDArray

from tests.driver import Driver, Dump, Gradients, assert_equal_dumps, dump, shard_config, snapshot
from tests.naive import mix64, sum_duplicates
from tests.workload import (
    BUDGET,
    DIMS,
    EVICTING,
    MAX_ROWS,
    MEMORY,
    MIN_NORM,
    POINTS,
    POOL,
    RATE,
    SPARE,
    TABLES,
    TTL_S,
    make_gradients,
)

Seeds = st.integers(0, 2**32 - 1)
Names = st.lists(st.sampled_from(sorted(DIMS)), min_size=1, max_size=5, unique=True)


class PolicyOracle:
    """Rows of the table `policy` in a dict: weights, time of the last push, number of pushes."""

    def __init__(self, initial: Callable[[int], NDArray[np.float32]]) -> None:
        self._initial = initial
        self.rows: dict[int, tuple[NDArray[np.float32], int, int]] = {}

    def pull(self, ids: list[int]) -> NDArray[np.float32]:
        return np.array([self.rows[i][0] if i in self.rows else self._initial(i) for i in ids], np.float32)

    def push(self, ids: list[int], gradients: NDArray[np.float32], now_s: int) -> None:
        for one, gradient in sum_duplicates(ids, gradients).items():
            weights, _, count = self.rows.get(one, (self._initial(one), 0, 0))
            self.rows[one] = (weights - np.float32(RATE) * gradient, now_s, count + 1)

    def evict(self, now_s: int) -> int:
        old = {i for i, (_, time_s, _) in self.rows.items() if time_s < now_s - TTL_S}
        small = {
            i for i, (w, _, _) in self.rows.items() if np.sqrt((w.astype(np.float64) ** 2).sum()) < MIN_NORM
        }
        by_count = sorted(self.rows, key=lambda i: (self.rows[i][2], mix64(i)))
        rare = set(by_count[: max(0, len(by_count) - MAX_ROWS)])
        gone = old | small | rare
        for one in gone:
            del self.rows[one]
        return len(gone)

    def assert_stored(self, stored: Dump) -> None:
        """What lies on disk after a clean stop, with nothing too much."""
        keys, values = stored["row.policy"]
        rows = sorted((mix64(i), *row) for i, row in self.rows.items())
        assert keys.tolist() == [key for key, *_ in rows]
        for value, (_, weights, time_s, count) in zip(values, rows, strict=True):
            assert value.tobytes() == weights.tobytes() + np.array([time_s, count], "<u4").tobytes()


class ShardMachine(RuleBasedStateMachine):
    """What a client, an operator and a power button can do."""

    durability = "os"

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="machine", dir=MEMORY if MEMORY.is_dir() else None))
        self.copies = 0
        self.checked = 0

    @initialize()
    def start(self) -> None:
        self.real = Driver(
            shard_config(self.folder, TABLES, memory_budget=BUDGET, durability=self.durability),
            self.folder / "real",
        )
        self.model = Driver(
            shard_config(self.folder, TABLES, memory_budget="64MiB", durability="none"), self.folder / "model"
        )
        initial = self.model.shard._tables["policy"].initial_rows
        self.oracle = PolicyOracle(lambda i: initial(np.array([i], np.uint64))[0])
        self.last: tuple[Gradients, float | None] | None = None

    def teardown(self) -> None:
        try:
            if hasattr(self, "model"):
                self.real.shard.close()
                self.model.shard.close()
                stored = dump(self.real.config, self.real.directory)
                assert_equal_dumps(stored, dump(self.model.config, self.model.directory))
                self.oracle.assert_stored(stored)
        finally:
            shutil.rmtree(self.folder)

    # ------------------------------------------------------------ requests
    def _apply(self, gradients: Gradients, rate: float | None) -> None:
        """Push to the real shard and to both models."""
        answer = self.real.push(gradients, rate=rate)
        assert not answer.duplicate
        self._apply_to_models(gradients, rate, answer.lsn)

    def _apply_to_models(self, gradients: Gradients, rate: float | None, lsn: int) -> None:
        assert self.model.push(gradients, rate=rate).lsn == lsn
        if "policy" in gradients:
            ids, rows = gradients["policy"]
            scaled = (
                rows if rate is None else rows * np.float32(rate / RATE)
            )  # the rates used are powers of two
            self.oracle.push(ids.tolist(), scaled, int(self.real.now_s))
        self.last = gradients, rate

    @rule(
        names=Names, seed=Seeds, spread=st.sampled_from([40, 300, 1_000]), rate=st.sampled_from([None, 0.5])
    )
    def push(self, names: list[str], seed: int, spread: int, rate: float | None) -> None:
        self._apply(make_gradients(names, np.random.default_rng(seed), spread), rate)

    @rule(seed=Seeds)
    def push_everything(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(4):
            self._apply(make_gradients(sorted(DIMS), rng, POOL.shape[0]), None)

    @precondition(lambda self: self.last is not None)
    @rule(back=st.integers(0, 3))
    def push_again(self, back: int) -> None:
        assert self.last is not None
        sequence = max(1, self.real.sequences[99] - back)
        answer = self.real.send(self.real.request(self.last[0], sequence=sequence))
        assert answer.duplicate and answer.lsn <= self.real.shard._applied_lsn

    @rule(name=st.sampled_from(sorted(DIMS)), seed=Seeds, read_only=st.booleans())
    def pull(self, name: str, seed: int, read_only: bool) -> None:
        ids = np.random.default_rng(seed).choice(POOL, 150)
        np.testing.assert_array_equal(
            self.real.pull(name, ids, read_only=read_only),
            self.model.pull(name, ids, read_only=True),
            err_msg=name,
        )

    @rule(name=st.sampled_from(sorted(DIMS)), seed=Seeds)
    def prefetch(self, name: str, seed: int) -> None:
        ids = np.random.default_rng(seed).choice(POOL, 50)
        assert 0 <= self.real.shard.prefetch(name, ids) <= 50

    # ------------------------------------------------------------ time and upkeep
    @rule(seconds=st.sampled_from([1, 30, 90]))
    def wait(self, seconds: int) -> None:
        self.real.now_s += seconds
        self.model.now_s += seconds

    @rule()
    def checkpoint(self) -> None:
        lsn, _ = self.real.shard.checkpoint()
        assert lsn == self.real.shard._applied_lsn

    @rule()
    def checkpoint_the_model(self) -> None:
        self.model.shard.checkpoint()

    @rule(name=st.sampled_from(EVICTING))
    def evict(self, name: str) -> None:
        self._evict_models(name, self.real.evict(name))

    def _evict_models(self, name: str, went: int | None) -> None:
        gone = self.model.evict(name)
        assert went in (None, gone)
        if name == "policy":
            assert self.oracle.evict(int(self.real.now_s)) == gone

    # ------------------------------------------------------------ ends and starts
    def _copy(self) -> Path:
        self.copies += 1
        return self.folder / f"copy-{self.copies}"

    @rule()
    def reopen(self) -> None:
        self.real.reopen()
        assert self.real.shard.replayed_records == 0
        assert all(self.real.stats(name).rows_exact for name in DIMS), "a clean stop knows its rows"

    @rule()
    def crash(self) -> None:
        self.real.crash(self._copy())

    def _run_into(self, point: str, hit: int, action: Callable[[], object]) -> bool:
        """Do `action`, and put the directory aside at the hit-th time that it comes to `point`; go on from
        there as after a kill. Returns whether it came there."""
        copy, hits = self._copy(), 0

        def failpoint(name: str) -> None:
            nonlocal hits
            hits += name == point
            if name == point and hits == hit:
                snapshot(self.real.directory, copy)

        self.real.failpoint = failpoint
        action()
        self.real.failpoint = lambda _name: None
        if hits < hit:
            return False
        self.real.move_to(copy)
        return True

    @rule(names=Names, seed=Seeds, point=st.sampled_from(POINTS[:3]), hit=st.integers(1, 3))
    def crash_in_push(self, names: list[str], seed: int, point: str, hit: int) -> None:
        gradients = make_gradients(names, np.random.default_rng(seed), POOL.shape[0])
        request = self.real.request(gradients)
        crashed = self._run_into(point, hit, lambda: self.real.send(request))
        answer = self.real.send(request)
        assert answer.duplicate == (not crashed or point != "before log")
        self._apply_to_models(gradients, None, answer.lsn)

    @rule(point=st.sampled_from([*POINTS[2:], SPARE]), hit=st.integers(1, 8))
    def crash_in_checkpoint(self, point: str, hit: int) -> None:
        self._run_into(point, hit, self.real.shard.checkpoint)

    @rule(name=st.sampled_from(EVICTING), hit=st.integers(1, 3))
    def crash_in_evict(self, name: str, hit: int) -> None:
        before = self.real.shard._applied_lsn
        crashed = self._run_into("mid write-back", hit, lambda: self.real.evict(name))
        if not crashed or self.real.shard._applied_lsn > before:
            self._evict_models(name, None)

    # ------------------------------------------------------------ what must hold
    @invariant()
    def tables_equal_the_models(self) -> None:
        if not hasattr(self, "model"):
            return
        self.checked += 1
        ids = np.random.default_rng(self.checked).choice(POOL, 60)
        for name in DIMS:
            rows = self.real.pull(name, ids, read_only=self.checked % 2 == 0)
            np.testing.assert_array_equal(rows, self.model.pull(name, ids, read_only=True), err_msg=name)
        np.testing.assert_array_equal(self.real.pull("policy", ids), self.oracle.pull(ids.tolist()))
        budget = self.real.shard._opened.budget
        assert budget.granted_bytes <= budget.total_bytes

    @invariant()
    def rows_are_counted(self) -> None:
        if not hasattr(self, "model"):
            return
        for name in DIMS:
            found = self.real.stats(name)
            if found.rows_exact:
                assert found.rows == self.model.stats(name).rows, name
        assert self.model.stats("policy").rows == len(self.oracle.rows)


def _run(examples: int, steps: int, durability: str) -> None:
    machine = type("Machine", (ShardMachine,), {"durability": durability})
    checks = list(HealthCheck)  # a step is a few milliseconds of real work, and its data is large
    chosen = settings(max_examples=examples, stateful_step_count=steps, suppress_health_check=checks)
    run_state_machine_as_test(machine, settings=chosen)


@pytest.mark.parametrize("durability", ["os", "fsync"])
def test_a_shard_equals_its_models(durability: str) -> None:
    _run(15, 30, durability)


@pytest.mark.soak
@pytest.mark.parametrize("durability", ["os", "fsync"])
def test_a_shard_equals_its_models_for_long(durability: str) -> None:
    _run(1_000, 80, durability)
