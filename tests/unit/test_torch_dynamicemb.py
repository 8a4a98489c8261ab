# SPDX-License-Identifier: Apache-2.0
"""dynamicemb's Storage over a client, by its contract, against a dictionary; dynamicemb needs a GPU."""

from collections.abc import Iterator
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


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    config = {"tables": TABLES, "memory_budget": "16MiB"}
    with connect(f"embedded:{tmp_path / 'model'}", config=config) as made:
        yield made


@pytest.fixture
def storage(client: Client) -> RemoteStorage:
    return RemoteStorage(client, ["wide", "narrow"], [4, 2], initial_state=0.5)


def values(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def padded(row: Tensor, number: int) -> Tensor:
    """A value as it comes back: what the table has no room for is zeros."""
    kept = row.clone()
    if number == 1:
        kept[2:] = 0
    return kept


def test_its_shapes(storage: RemoteStorage) -> None:
    assert (storage.embedding_dim(0), storage.embedding_dim(1), storage.max_embedding_dim()) == (4, 2, 4)
    assert (storage.value_dim(0), storage.value_dim(1), storage.max_value_dim()) == (8, 2, 8)
    assert storage.embedding_dtype() == torch.float32 and storage.init_optimizer_state() == 0.5


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
        missing, lost, at, lost_scores, founds, found_scores, rows = storage.find(
            asked, numbers, VALUE, frequency
        )
        pairs = list(zip(asked.tolist(), numbers.tolist(), strict=True))
        there = [pair in oracle for pair in pairs]
        assert founds.tolist() == there and missing == there.count(False)
        assert at.tolist() == [i for i, is_there in enumerate(there) if not is_there]
        assert lost.tolist() == asked[at].tolist() and lost_scores.tolist() == at.tolist()
        for place, pair in enumerate(pairs):
            row, score = oracle.get(pair, (torch.zeros(8), 0))
            torch.testing.assert_close(rows[place], row, rtol=0, atol=0)
            assert found_scores[place] == score
        short = storage.find(asked, numbers, EMBEDDING)
        torch.testing.assert_close(short[-1], rows[:, :4], rtol=0, atol=0)
        assert not short[3].any()


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
    paths = [str(tmp_path / name) for name in ("meta.json", "keys", "rows", "scores", "states")]
    storage.dump(0, paths[0], paths[1], paths[2], paths[3], paths[4], timestamp=7)
    client.delete("wide", keys.numpy().view(np.uint64))
    storage.load(0, paths[0], paths[1], paths[2], paths[3], paths[4], include_optim=True, timestamp=0)
    *_, founds, scores, rows = storage.find(keys, torch.zeros(6), VALUE)
    assert founds.all() and scores.tolist() == SCORES
    torch.testing.assert_close(rows, given, rtol=0, atol=0)
    storage.load(0, paths[0], paths[1], paths[2], None, None, include_optim=False, timestamp=0)
    *_, scores, rows = storage.find(keys, torch.zeros(6), VALUE)
    assert not scores.any() and (rows[:, 4:] == 0.5).all()
    with pytest.raises(StoreError, match="load"):
        storage.load(0, paths[0], "none", paths[2], None, None, include_optim=True, timestamp=0)


def test_what_does_not_fit_is_refused(client: Client, storage: RemoteStorage) -> None:
    with pytest.raises(UnknownTableError):
        RemoteStorage(client, ["wid"], [4])
    with pytest.raises(ConfigError, match="fp32 and sgd"):
        RemoteStorage(client, ["stepped"], [4])
    with pytest.raises(ConfigError, match="at least"):
        RemoteStorage(client, ["narrow"], [3])
    with pytest.raises(InvalidRequestError, match="as many"):
        RemoteStorage(client, ["wide"], [4, 2])
    with pytest.raises(InvalidRequestError, match="table id 2"):
        storage.find(torch.tensor([1]), torch.tensor([2]), VALUE)
