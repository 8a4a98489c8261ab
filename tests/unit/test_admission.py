# SPDX-License-Identifier: Apache-2.0
"""Admission: the sketch against its oracle and its promises, replay, and the state in a checkpoint."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from rowhouse.error import ConfigError, CorruptionError

from ps_server.config.cluster import load_config
from ps_server.kernel.sketch import sketch_add, sketch_halve
from ps_server.shard.shard import Shard
from ps_server.table.admission import AdmissionConfig, AdmissionFilter, MinCount, Probability
from tests import naive

ADAPTER: TypeAdapter[Any] = TypeAdapter(AdmissionConfig)
SEED = np.uint64(2**64 - 3)


def _ids(count: int, seed: int = 0) -> NDArray[np.uint64]:
    """Distinct ids over the whole range."""
    return np.unique(np.random.default_rng(seed).integers(0, 2**64, 2 * count, np.uint64))[:count]


# ------------------------------------------------------------------ the sketch
@pytest.mark.parametrize("counter_bytes", [1, 2])
def test_the_sketch_equals_its_oracle(counter_bytes: int) -> None:
    counters = np.zeros(1024, f"<u{counter_bytes}")
    oracle = naive.Sketch(10, counter_bytes, int(SEED))
    rng = np.random.default_rng(1)
    pool = np.concatenate([_ids(600), np.array([0, 2**64 - 1], np.uint64)])
    for _ in range(40):
        ids = rng.choice(pool, 100)
        counts = sketch_add(counters, SEED, ids, oracle.limit)
        assert counts.tolist() == [oracle.add(i) for i in ids.tolist()]
    assert counters.tolist() == oracle.counters


@settings(max_examples=30)
@given(st.lists(st.integers(0, 40), max_size=300))
def test_an_estimate_is_never_too_low(ids: list[int]) -> None:
    counters = np.zeros(1024, np.uint8)
    estimates = sketch_add(counters, SEED, np.array(ids, np.uint64), 255)
    true = dict.fromkeys(ids, 0)
    for i, estimate in zip(ids, estimates.tolist(), strict=True):
        true[i] += 1
        assert estimate >= true[i]


@pytest.mark.parametrize("counter_bytes", [1, 2])
def test_counters_stay_at_their_largest_value(counter_bytes: int) -> None:
    largest = 256**counter_bytes - 1
    counters = np.zeros(1024, f"<u{counter_bytes}")
    counts = sketch_add(counters, SEED, np.full(largest + 10, 5, np.uint64), largest)
    assert counts[:largest].tolist() == list(range(1, largest + 1))
    assert (counts[largest:] == largest).all() and counters.max() == largest
    sketch_halve(counters)
    assert sorted(counters[counters > 0].tolist()) == [largest // 2] * 4


@pytest.mark.parametrize(("per_id", "early", "new"), [(8, 0.012, 0.05), (16, 0.003, 0.01)])
def test_wrong_counts_are_rare_where_counters_abound(per_id: int, early: float, new: float) -> None:
    once, counters = _ids((1 << 20) // per_id), np.zeros(1 << 20, np.uint8)
    twice = sketch_add(counters, SEED, once, 255) > 1
    assert twice.mean() < early  # while the sketch filled up to that load
    never_seen = np.setdiff1d(_ids(20_000, seed=9), once)
    assert (sketch_add(counters, SEED, never_seen, 255) > 1).mean() < new  # at that load


# ------------------------------------------------------------------ minimum count
@pytest.mark.parametrize("min_count", [2, 3, 255, 256, 300])
def test_an_id_is_admitted_at_its_minimum_count(min_count: int) -> None:
    admission = AdmissionFilter(MinCount(min_count=min_count, width_bits=12), 5)
    ids = _ids(3)
    for lsn in range(1, min_count + 3):
        assert admission.admit(ids, lsn).tolist() == [lsn >= min_count] * 3
    assert admission.admit(_ids(1, seed=4), 1000).tolist() == [False]
    assert admission.memory_bytes == (1 << 12) * (1 if min_count <= 255 else 2)


def test_halving_forgets_what_was_frequent_long_ago() -> None:
    admission = AdmissionFilter(MinCount(min_count=4, width_bits=14, halve_after_ids=40), 5)
    one = np.array([77], np.uint64)
    for lsn in range(3):
        assert not admission.admit(one, lsn)[0]
    admission.admit(_ids(37), 3)  # the 40th id: three becomes one
    assert [bool(admission.admit(one, 4 + k)[0]) for k in range(3)] == [False, False, True]


def test_the_sketch_begins_on_a_cache_line() -> None:
    filters = [AdmissionFilter(MinCount(min_count=2, width_bits=10 + k), 0) for k in range(6)]
    assert all(f._counters.ctypes.data % 64 == 0 for f in filters)


# ------------------------------------------------------------------ probability
@pytest.mark.parametrize("probability", [0.01, 0.5, 0.9])
def test_probability_is_kept_and_rolled_anew_at_each_push(probability: float) -> None:
    admission = AdmissionFilter(Probability(probability=probability), 5)
    ids = np.arange(40_000, dtype=np.uint64)
    masks = np.stack([admission.admit(ids, lsn) for lsn in range(1, 6)])
    error = np.sqrt(probability * (1 - probability) / masks.size)
    assert abs(masks.mean() - probability) < 5 * error
    both = (masks[0] & masks[1]).mean()
    assert abs(both - probability**2) < 5 * np.sqrt(probability**2 / ids.shape[0])
    other = AdmissionFilter(Probability(probability=probability), 6).admit(ids, 1)
    assert (other != masks[0]).any()


def test_probability_depends_on_id_and_lsn_alone() -> None:
    admission = AdmissionFilter(Probability(probability=0.5), 2**64 - 1)
    ids = _ids(1000)
    order = np.random.default_rng(1).permutation(1000)
    np.testing.assert_array_equal(admission.admit(ids, 9)[order], admission.admit(ids[order], 9))
    assert admission.memory_bytes == 0


# ------------------------------------------------------------------ replay and state
CONFIGS = [
    MinCount(min_count=3, width_bits=10),
    MinCount(min_count=300, width_bits=11),
    MinCount(min_count=3, width_bits=10, halve_after_ids=1000),
    Probability(probability=0.3),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_replay_from_a_checkpoint_gives_the_same_answers(config: MinCount | Probability) -> None:
    rng = np.random.default_rng(7)
    pushes = [rng.choice(_ids(400), 150, replace=False) for _ in range(30)]
    first = AdmissionFilter(config, 11)
    answers, states = [], []
    for lsn, ids in enumerate(pushes):
        states.append(first.state_bytes())
        answers.append(first.admit(ids, lsn))
    for start in (0, 13, 29):
        again = AdmissionFilter(config, 11)
        again.load_state(states[start])
        assert again.state_bytes() == states[start]
        for lsn in range(start, 30):
            np.testing.assert_array_equal(again.admit(pushes[lsn], lsn), answers[lsn])
        assert again.state_bytes() == first.state_bytes()


def _state() -> bytes:
    admission = AdmissionFilter(MinCount(min_count=3, width_bits=10), 0)
    admission.admit(np.array([7], np.uint64), 1)
    return admission.state_bytes()


def test_the_state_is_the_documented_one() -> None:
    state = _state()  # the worked example of docs/admission_format.md
    assert state[:32] == b"RWHSADM1" + bytes.fromhex("0a01" + "00" * 6 + "00" * 8 + "01" + "00" * 7)
    assert state[32:40].hex() == "eff50972423a3f7c"
    assert np.flatnonzero(np.frombuffer(state[40:], np.uint8)).tolist() == [327, 350, 363, 378]
    assert len(state) == 40 + 1024


def test_damage_is_found_wherever_it_is() -> None:
    state = _state()
    admission = AdmissionFilter(MinCount(min_count=3, width_bits=10), 0)
    for place in [*range(40), 40, 500, len(state) - 1]:
        damaged = bytearray(state)
        damaged[place] ^= 0x10
        with pytest.raises(CorruptionError, match="admission state"):
            admission.load_state(bytes(damaged))
    for length in (1, 39, 40, len(state) - 1):
        with pytest.raises(CorruptionError, match="admission state"):
            admission.load_state(state[:length])
    with pytest.raises(CorruptionError, match="admission state"):
        admission.load_state(state + b"\0")
    assert admission.state_bytes() == AdmissionFilter(MinCount(min_count=3, width_bits=10), 0).state_bytes()


@pytest.mark.parametrize(
    ("config", "seed"),
    [
        (MinCount(min_count=3, width_bits=11), 0),
        (MinCount(min_count=256, width_bits=10), 0),
        (MinCount(min_count=3, width_bits=10), 1),
    ],
)
def test_a_state_of_another_config_is_refused(config: MinCount, seed: int) -> None:
    with pytest.raises(ConfigError, match=r"width_bits 10, 1-byte counters and seed 0; the config says"):
        AdmissionFilter(config, seed).load_state(_state())


def test_a_change_of_policy_starts_afresh() -> None:
    AdmissionFilter(Probability(probability=0.5), 0).load_state(_state())
    admission = AdmissionFilter(MinCount(min_count=3, width_bits=10), 0)
    empty = admission.state_bytes()
    admission.load_state(_state())
    admission.load_state(b"")
    assert admission.state_bytes() == empty


# ------------------------------------------------------------------ configs
@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"kind": "bloom"},
        {"kind": "min_count"},
        {"kind": "min_count", "min_count": 1},
        {"kind": "min_count", "min_count": 65_536},
        {"kind": "min_count", "min_count": 2.5},
        {"kind": "min_count", "min_count": 2, "width_bits": 9},
        {"kind": "min_count", "min_count": 2, "width_bits": 33},
        {"kind": "min_count", "min_count": 2, "halve_after_ids": 0},
        {"kind": "min_count", "min_count": 2, "probability": 0.5},
        {"kind": "probability"},
        {"kind": "probability", "probability": 0},
        {"kind": "probability", "probability": 1.0},
    ],
)
def test_wrong_configs_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(wrong)


def test_kinds() -> None:
    assert ADAPTER.validate_python({"kind": "min_count", "min_count": 2}) == MinCount(min_count=2)
    assert ADAPTER.validate_python({"kind": "probability", "probability": 0.5}) == Probability(
        probability=0.5
    )


def test_a_sketch_counts_against_the_memory_budget(tmp_path: Path) -> None:
    table = {"name": "a", "dim": 2, "admission": {"kind": "min_count", "min_count": 2, "width_bits": 24}}
    config = load_config({"data_dir": str(tmp_path), "memory_budget": "16MiB", "tables": [table]})
    with pytest.raises(ConfigError, match="admission sketches take 16777216"):
        Shard.open(config, 0, tmp_path)
