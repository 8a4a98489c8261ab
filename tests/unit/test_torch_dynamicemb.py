# SPDX-License-Identifier: Apache-2.0
"""dynamicemb's Storage over a client, by its contract, against a dictionary; dynamicemb needs a GPU.

What is called, and how, is what corelib/dynamicemb of NVIDIA/recsys-examples calls at commit 43465aea.
"""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rowhouse.error import ConfigError, InvalidRequestError, StoreError, UnknownTableError
from torch import Tensor

from ps_client import Client, connect
from ps_client.torch.dynamicemb import RemoteStorage

EMBEDDING, VALUE = SimpleNamespace(value="embedding"), SimpleNamespace(value="value")
TABLES = [
    {"name": "wide", "dim": 4 + 4 + 3, "optimizer": {"kind": "sgd"}},
    {"name": "narrow", "dim": 2 + 3, "optimizer": {"kind": "sgd"}},
    {"name": "stepped", "dim": 8},
]
KEYS = [5, -1, -(2**63), 2**63 - 1, 0, 77]
SCORES = [0, 1, 2**24, 2**48 + 3, 2**63 - 1, -1]


class Optimizer:
    """What a storage asks dynamicemb's optimizers for; as Adam's with a state of 4 that is saved as 3."""

    def __init__(self, kind: str = "adam", state_dim: int = 4, saved_dim: int = 3) -> None:
        self.settings: dict[str, Any] = {"opt_type": kind, "iters": 7}
        self.state_dim, self.saved_dim = state_dim, saved_dim

    def get_state_dim(self, emb_dim: int) -> int:
        return self.state_dim

    def get_ckpt_state_dim(self, emb_dim: int) -> int:
        return self.saved_dim

    def get_initial_optim_states(self) -> float:
        return 0.5

    def get_opt_args(self) -> dict[str, Any]:
        return self.settings

    def set_opt_args(self, args: dict[str, Any]) -> None:
        self.settings = {"opt_type": self.settings["opt_type"], "iters": args["iters"]}


@dataclass
class Options:
    """What dynamicemb's options have that matters here."""

    dim: int
    external_storage: Callable[[list["Options"], Optimizer], RemoteStorage]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    config = {"tables": TABLES, "memory_budget": "16MiB"}
    with connect(f"embedded:{tmp_path / 'model'}", config=config) as made:
        yield made


@pytest.fixture
def storage(client: Client) -> RemoteStorage:
    return RemoteStorage(client, ["wide", "narrow"], [4, 2])


def values(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def padded(row: Tensor, number: int) -> Tensor:
    """A value as it comes back: what the table has no room for is zeros."""
    kept = row.clone()
    if number == 1:
        kept[2:] = 0
    return kept


Paths = tuple[str, str, str, str, str]


def rank_paths(folder: Path, rank: int, world_size: int) -> Paths:
    """A table's files as dynamicemb names them: meta, keys, embeddings, scores, states."""
    end = f".rank_{rank}.world_size_{world_size}"
    names = [f"t_emb_keys{end}", f"t_emb_values{end}", f"t_emb_scores{end}", f"t_opt_values{end}"]
    meta, keys, rows, scores, states = (str(folder / name) for name in ("t_opt_args.json", *names))
    return meta, keys, rows, scores, states


def test_its_shapes(storage: RemoteStorage) -> None:
    assert (storage.embedding_dim(0), storage.embedding_dim(1), storage.max_embedding_dim()) == (4, 2, 4)
    assert (storage.value_dim(0), storage.value_dim(1), storage.max_value_dim()) == (8, 2, 8)
    assert storage.embedding_dtype() == torch.float32 and storage.init_optimizer_state() == 0.0
    assert storage.embedding_dims().tolist() == [4, 2] and storage.embedding_dims().dtype == torch.int64
    assert storage.embedding_dims() is storage.embedding_dims() and not storage.embedding_dims().is_cuda
    assert storage.embedding_dims(on_device=True).is_cuda == torch.cuda.is_available()
    assert storage.all_dims_vec4() is False and RemoteStorage(storage._client, ["wide"], [4]).all_dims_vec4()
    assert storage._state is None


def test_what_was_inserted_is_found_as_in_a_dictionary(storage: RemoteStorage) -> None:
    rng = np.random.default_rng(0)
    oracle: dict[tuple[int, int], tuple[Tensor, int]] = {}
    for step in range(20):
        keys = torch.tensor(rng.permutation(KEYS)[: rng.integers(1, 6)])
        tables = torch.from_numpy(rng.integers(0, 2, keys.shape[0]))
        scores = torch.tensor([SCORES[i] for i in rng.integers(0, 6, keys.shape[0])])
        given, keep = values(keys.shape[0], step), bool(step % 3 == 2)
        storage.insert(keys, tables, given, scores if step % 4 else None, keep)
        for place, (key, table) in enumerate(zip(keys.tolist(), tables.tolist(), strict=True)):
            score = int(scores[place]) if step % 4 else 0
            if keep and (key, table) in oracle:
                score = oracle[key, table][1]
            oracle[key, table] = (padded(given[place], table), score)
        asked = torch.tensor(KEYS + KEYS)
        numbers = torch.tensor([0] * 6 + [1] * 6)
        frequency = torch.arange(12)
        missing, lost, at, lost_tables, lost_scores, founds, found_scores, rows = storage.find(
            asked, numbers, copy_mode=VALUE, lfu_accumulated_frequency=frequency
        )
        assert lost_tables.tolist() == numbers[at].tolist() and lost_scores is not None
        pairs = list(zip(asked.tolist(), numbers.tolist(), strict=True))
        there = [pair in oracle for pair in pairs]
        assert founds.tolist() == there and missing == there.count(False)
        assert at.tolist() == [i for i, is_there in enumerate(there) if not is_there]
        assert lost.tolist() == asked[at].tolist() and lost_scores.tolist() == at.tolist()
        for place, pair in enumerate(pairs):
            row, score = oracle.get(pair, (torch.zeros(8), 0))
            torch.testing.assert_close(rows[place], row, rtol=0, atol=0)
            added = frequency[place] if pair in oracle else torch.tensor(0)
            assert found_scores[place] == torch.tensor(score) + added  # past 2^63 it wraps
        short = storage.find(asked, numbers, copy_mode=EMBEDDING)
        torch.testing.assert_close(short[-1], rows[:, :4], rtol=0, atol=0)
        assert short[4] is None and short[6].tolist() == [oracle.get(pair, (None, 0))[1] for pair in pairs]


def test_a_table_is_exported_dumped_and_loaded(
    storage: RemoteStorage, client: Client, tmp_path: Path
) -> None:
    keys, given = torch.tensor(KEYS), values(6)
    storage.insert(keys, torch.zeros(6, dtype=torch.int64), given, torch.tensor(SCORES))
    found: dict[int, Any] = {}
    for some, embeddings, states, scores in storage.export_keys_values(torch.device("cpu"), batch_size=4):
        assert some.shape[0] <= 4 and states is not None
        found |= {int(k): (e, s, int(c)) for k, e, s, c in zip(some, embeddings, states, scores, strict=True)}
    for key, row, score in zip(KEYS, given, SCORES, strict=True):
        torch.testing.assert_close(torch.cat(found[key][:2]), row, rtol=0, atol=0)
        assert found[key][2] == score
    paths = rank_paths(tmp_path, 0, 1)
    storage.dump(0, *paths, include_optim=True, include_meta=True, current_score=12, timestamp=7)
    client.delete("wide", keys.numpy().view(np.uint64))
    assert storage.load(0, *paths, include_optim=True, timestamp=0) == 12
    *_, founds, scores, rows = storage.find(keys, torch.zeros(6), VALUE)
    assert founds.all() and scores.tolist() == SCORES
    torch.testing.assert_close(rows, given, rtol=0, atol=0)
    storage.load(0, *paths[:3], None, None, include_optim=False, timestamp=0)
    *_, scores, rows = storage.find(keys, torch.zeros(6), VALUE)
    assert not scores.any() and not rows[:, 4:].any()
    with pytest.raises(StoreError, match="load"):
        storage.load(0, paths[0], "none", *paths[2:], include_optim=True, timestamp=0)
    with pytest.raises(InvalidRequestError, match="6 keys, and its scores 12 numbers"):
        storage.load(0, *paths[:3], paths[2], None, include_optim=True, timestamp=0)


def test_the_ranks_dump_and_load_each_row_once(
    storage: RemoteStorage, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, given = torch.tensor(KEYS), values(6)
    storage.insert(keys, torch.zeros(6, dtype=torch.int64), given, torch.tensor(SCORES))
    files = [rank_paths(tmp_path, rank, 3) for rank in range(3)]
    for rank in range(3):
        storage.dump(0, *files[rank], include_meta=rank == 0)
        assert Path(files[0][0]).exists() or rank == 0
    of_ranks = [np.fromfile(paths[1], "<i8").tolist() for paths in files]
    assert sorted(key for some in of_ranks for key in some) == sorted(KEYS)
    assert all(key % 3 == rank for rank, some in enumerate(of_ranks) for key in some)

    def loaded(rank: int, world_size: int, paths: list[Paths]) -> list[int]:
        """The keys that a rank assigns."""
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
        monkeypatch.setattr("torch.distributed.get_rank", lambda: rank)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: world_size)
        client.delete("wide", keys.numpy().view(np.uint64))
        for one in paths:
            storage.load(0, *one, include_optim=True, timestamp=0)
        found = storage.find(keys, torch.zeros(6), copy_mode=VALUE)
        torch.testing.assert_close(found[-1][found[5]], given[found[5]], rtol=0, atol=0)
        return sorted(keys[found[5]].tolist())

    for rank in range(3):
        assert loaded(rank, 3, [files[rank]]) == sorted(of_ranks[rank])
    for rank in range(2):  # now other ranks: each reads every file
        assert loaded(rank, 2, files) == sorted(key for key in KEYS if key % 2 == rank)


def test_dynamicemb_makes_it_from_options_that_it_copies(client: Client, tmp_path: Path) -> None:
    def make(options: list[Options], optimizer: Optimizer) -> RemoteStorage:
        return RemoteStorage(client, ["wide"], [one.dim for one in options], optimizer=optimizer)

    def made(optimizer: Optimizer) -> RemoteStorage:
        options = deepcopy([Options(4, make)])
        assert options[0].external_storage is make
        return options[0].external_storage(options, optimizer)

    first = Optimizer()
    storage, keys, given = made(first), torch.tensor(KEYS), values(6)
    assert storage.init_optimizer_state() == 0.5
    storage.insert(keys, torch.zeros(6, dtype=torch.int64), given)
    paths = rank_paths(tmp_path, 0, 1)
    storage.dump(0, *paths, include_optim=True, include_meta=True, current_score=None, timestamp=1)
    assert json.loads(Path(paths[0]).read_text()) == first.settings
    assert Path(paths[4]).stat().st_size == 6 * 3 * 4  # what aligns a state is not saved

    def states_after_load(optimizer: Optimizer, include_optim: bool) -> Tensor:
        again = made(optimizer)
        assert again.load(0, *paths, include_optim=include_optim, timestamp=1) is None
        rows = again.find(keys, torch.zeros(6), copy_mode=VALUE)[-1]
        torch.testing.assert_close(rows[:, :4], given[:, :4], rtol=0, atol=0)
        return rows[:, 4:]

    begun = torch.full((6, 4), 0.5)
    fresh = Optimizer()
    fresh.settings["iters"] = 0
    torch.testing.assert_close(states_after_load(fresh, False), begun)
    assert fresh.settings["iters"] == 0
    want = torch.cat([given[:, 4:7], begun[:, :1]], dim=1)
    torch.testing.assert_close(states_after_load(fresh, True), want, rtol=0, atol=0)
    assert fresh.settings["iters"] == 7
    torch.testing.assert_close(states_after_load(Optimizer("sgd"), True), begun)
    Path(paths[4]).unlink()
    torch.testing.assert_close(states_after_load(Optimizer(), True), begun)
    with pytest.raises(ConfigError, match=r"dim 11; .* state of 8 and the score of 3 it must be 15"):
        made(Optimizer(state_dim=8))


def test_a_training_step_as_dynamicemb_makes_it(storage: RemoteStorage) -> None:
    """The rows of a batch behind no cache: found, made, stepped and put back; then those of a cache."""
    keys, numbers = torch.tensor([5, 6, 5]), torch.tensor([0, 0, 1])
    count, new, at, new_tables, new_scores, founds, _, rows = storage.find(
        keys, numbers, copy_mode=VALUE, lfu_accumulated_frequency=torch.tensor([2, 3, 4])
    )
    assert type(count) is int and count == 3 and not founds.any()
    dim = storage.max_embedding_dim()
    rows[at, :dim] = 1.0
    rows[at, dim:] = storage.init_optimizer_state()
    storage.insert(new, new_tables, rows[at], new_scores)
    rows += 0.25
    storage.insert(keys, numbers, rows, preserve_existing=True)
    _, _, _, _, none, founds, scores, found = storage.find(keys, numbers, copy_mode=VALUE)
    assert none is None and founds.all() and scores.tolist() == [2, 3, 4]
    assert found.tolist() == [[1.25] * 4 + [0.25] * 4] * 2 + [[1.25] * 2 + [0.0] * 6]
    assert getattr(storage._state, "no_eviction_next_index", None) is None
    storage.insert(keys, numbers, found, torch.tensor([9, 8, 7]).to(torch.uint64))  # evicted from a cache
    assert storage.find(keys, numbers, copy_mode=EMBEDDING)[6].tolist() == [9, 8, 7]
    none_at_all = storage.find(keys[:0], numbers[:0], copy_mode=VALUE, lfu_accumulated_frequency=keys[:0])
    assert none_at_all[0] == 0 and none_at_all[-1].shape == (0, 8)
    storage.insert(keys[:0], numbers[:0], found[:0], keys[:0])
    unsigned = storage.find(torch.tensor([2**64 - 1], dtype=torch.uint64), numbers[:1], copy_mode=VALUE)
    assert unsigned[1].dtype == torch.uint64 and unsigned[1].tolist() == [2**64 - 1]
    assert [part.dtype for part in unsigned[2:4]] == [torch.int64, torch.int64]


def test_what_does_not_fit_is_refused(client: Client, storage: RemoteStorage) -> None:
    with pytest.raises(UnknownTableError):
        RemoteStorage(client, ["wid"], [4])
    with pytest.raises(ConfigError, match="fp32 and sgd"):
        RemoteStorage(client, ["stepped"], [4])
    with pytest.raises(ConfigError, match="at least"):
        RemoteStorage(client, ["narrow"], [3])
    with pytest.raises(InvalidRequestError, match="as many"):
        RemoteStorage(client, ["wide"], [4, 2])
    with pytest.raises(InvalidRequestError, match=r"1 keys with .* they must be"):
        storage.insert(torch.tensor([1]), torch.tensor([0]), torch.zeros(1, 7))
    with pytest.raises(InvalidRequestError, match=r"1 keys with .* they must be"):
        storage.insert(torch.tensor([1]), torch.tensor([0]), torch.zeros(1, 8), torch.zeros(1, 2))
    with pytest.raises(InvalidRequestError, match="table id 2"):
        storage.insert(torch.tensor([1, 1]), torch.tensor([0, 2]), torch.zeros(2, 8))
    assert storage.find(torch.tensor([1]), torch.tensor([0]), VALUE)[0] == 1
    with pytest.raises(InvalidRequestError, match="table id 2"):
        storage.find(torch.tensor([1]), torch.tensor([2]), VALUE)
