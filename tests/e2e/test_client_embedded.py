# SPDX-License-Identifier: Apache-2.0
"""The client and its torch modules over the real shard, embedded: 100 steps against torch.optim."""

import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rowhouse.error import ConfigError, DirectoryInUseError, InvalidRequestError
from torch import nn

from ps_client import Client, connect
from ps_client.torch import (
    EmbeddingBag,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    KeyedJaggedTensor,
)

torch.set_num_threads(1)  # on a busy machine OpenMP threads spend the time waiting for one another

VOCABULARY, DIM, STEPS = 40, 8, 100

OPTIMIZERS: dict[str, tuple[dict[str, Any], Callable[[Any], torch.optim.Optimizer]]] = {
    "sgd": ({"kind": "sgd", "learning_rate": 0.5}, lambda p: torch.optim.SGD(p, lr=0.5)),
    "adagrad": (
        {"kind": "adagrad", "learning_rate": 0.1, "eps": 1e-10},
        lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-10),
    ),
    "adam": ({"kind": "adam", "learning_rate": 0.01}, lambda p: torch.optim.Adam(p, lr=0.01)),
}


def table(name: str, dim: int, optimizer: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "dim": dim, "optimizer": optimizer, **more}


def reference(client: Client, name: str, mode: str) -> nn.EmbeddingBag:
    """nn.EmbeddingBag that starts from the table's rows."""
    bag = nn.EmbeddingBag(VOCABULARY, client.tables[name].dim, mode=mode)
    with torch.no_grad():
        bag.weight.copy_(torch.from_numpy(client.pull(name, np.arange(VOCABULARY))))
    return bag


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_hundred_steps_equal_torch(tmp_path: Path, kind: str, mode: str) -> None:
    config, make = OPTIMIZERS[kind]
    rng = np.random.default_rng(3)
    with connect(f"embedded:{tmp_path}", config={"tables": [table("user", DIM, config)]}) as client:
        theirs = reference(client, "user", mode)
        ours, optimizer = EmbeddingBag(client, "user", mode), make(theirs.parameters())
        start = theirs.weight.detach().clone()
        for _ in range(STEPS):
            drawn = rng.integers(0, VOCABULARY, 48)
            if (
                kind == "adam"
            ):  # the table's Adam counts steps per row: it is torch's where each row has all of them
                drawn[:VOCABULARY] = rng.permutation(VOCABULARY)
            ids = torch.from_numpy(drawn.reshape(16, 3))
            target = torch.from_numpy(rng.normal(size=(16, DIM)).astype(np.float32))
            out, want = ours(ids), theirs(ids)
            torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)
            optimizer.zero_grad()
            torch.autograd.backward([((out - target) ** 2).mean(), ((want - target) ** 2).mean()])
            optimizer.step()
        rows = torch.from_numpy(client.pull("user", np.arange(VOCABULARY)))
        torch.testing.assert_close(rows, theirs.weight.detach(), rtol=1e-4, atol=1e-5)
        assert (rows - start).abs().mean() > 0.01


def test_a_model_trains_and_its_rows_outlive_the_process(tmp_path: Path) -> None:
    adam = {"kind": "adam", "learning_rate": 0.02}
    config = {"tables": [table("user", 8, OPTIMIZERS["adagrad"][0]), table("item", 4, adam)]}
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    taste = np.sign(rng.normal(size=(50, 1))) + np.sign(rng.normal(size=(1, 50)))  # easy on purpose
    tables = [
        EmbeddingBagConfig(name="user", embedding_dim=8, feature_names=["user"]),
        EmbeddingBagConfig(name="item", embedding_dim=4, feature_names=["item", "last_item"]),
    ]
    with connect(f"embedded:{tmp_path}", config=config) as client:
        bags = EmbeddingBagCollection(client, tables)
        head = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))
        optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
        losses = []
        for _ in range(100):
            ids = torch.from_numpy(rng.integers(0, 50, (3, 64)))
            label = torch.from_numpy((taste[ids[0], ids[1]] >= 0).astype(np.float32))
            lengths = torch.ones(3 * 64, dtype=torch.int64)
            kjt = KeyedJaggedTensor(["user", "item", "last_item"], ids.reshape(-1), lengths=lengths)
            loss = nn.functional.binary_cross_entropy_with_logits(head(bags(kjt).values())[:, 0], label)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(loss.item())
        assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
        rows = client.pull_many({"user": np.arange(50), "item": np.arange(50)})
    with connect(f"embedded:{tmp_path}") as client:
        again = client.pull_many({"user": np.arange(50), "item": np.arange(50)})
    for name, values in rows.items():
        np.testing.assert_array_equal(again[name], values)


def test_evaluation_creates_no_row(tmp_path: Path) -> None:
    config = {"tables": [table("user", 4, {"kind": "sgd", "learning_rate": 0.5})]}
    with connect(f"embedded:{tmp_path}", config=config) as client:
        bag = EmbeddingBag(client, "user", "sum")
        torch.autograd.backward(bag(torch.tensor([[1, 2]])).sum())
        bag.eval()
        bag(torch.arange(1000).reshape(10, 100))
        with torch.inference_mode():
            bag.train()(torch.arange(1000).reshape(10, 100))
        client.pull("user", np.arange(1000))
        assert client.stats()[0].tables[0].rows == 2


@pytest.mark.parametrize("wire", ["fp16", "bf16"])
def test_a_narrow_wire_and_narrow_rows(tmp_path: Path, wire: str) -> None:
    config = {"tables": [table("user", 4, {"kind": "sgd", "learning_rate": 1.0}, dtype=wire)]}
    ids = np.arange(100)
    with connect(f"embedded:{tmp_path}", config=config, wire_dtype=wire) as client:
        assert client.tables["user"].dtype == wire
        before = client.pull("user", ids)
        client.push("user", ids, np.full((100, 4), 0.25))
        np.testing.assert_allclose(client.pull("user", ids), before - 0.25, atol=2e-3)


def test_what_is_wrong_is_said_and_loses_nothing(tmp_path: Path) -> None:
    config = {"tables": [table("user", 4, {"kind": "sgd", "learning_rate": 1.0})]}
    with pytest.raises(ConfigError, match="dimm"):
        connect(f"embedded:{tmp_path}", config={"tables": [{"name": "user", "dimm": 4}]})
    with pytest.raises(ConfigError):
        connect(f"embedded:{tmp_path}/new")
    with connect(f"embedded:{tmp_path}", config=config) as client:
        client.push("user", [1], np.ones((1, 4)))
        rows = client.pull("user", [1])
        with pytest.raises(InvalidRequestError):
            client.push("user", [1, -1], np.ones((2, 4)))
        with pytest.raises(DirectoryInUseError):
            connect(f"embedded:{tmp_path}")
        program = f"from ps_client import connect; connect('embedded:{tmp_path}')"
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=1_200, check=False
        )
        assert done.returncode == 1 and "DirectoryInUseError" in done.stderr
        client.push("user", [1], np.ones((1, 4)))
        np.testing.assert_array_equal(client.pull("user", [1]), rows - 1)


CONFIG = {"tables": [table("user", 4, {"kind": "sgd", "learning_rate": 1.0})]}


def test_a_client_that_nobody_holds_lets_go_of_its_directory(tmp_path: Path) -> None:
    """As in a notebook: the cell runs again, and `client` becomes another one."""
    target, ids = f"embedded:{tmp_path}", np.arange(3)
    client = connect(target, config=CONFIG)
    client.push("user", ids, np.ones((3, client.tables["user"].dim), np.float32))
    rows = client.pull("user", ids)
    with pytest.raises(DirectoryInUseError, match=r"a client of this process has it open: .*client\.close"):
        connect(target)
    del client
    client = connect(target)
    np.testing.assert_array_equal(client.pull("user", ids), rows)
    trainer = client.trainer(
        group="run", rank=0, world_size=1, pace="async"
    )  # refers to its client, and back
    del client, trainer
    gc.collect()
    with connect(target) as again:
        np.testing.assert_array_equal(again.pull("user", ids), rows)


def test_a_program_that_forgets_to_close_stops_its_shard_cleanly(tmp_path: Path) -> None:
    program = (
        "import numpy as np; from ps_client import connect\n"
        f"client = connect('embedded:{tmp_path}', config={CONFIG!r})\n"
        "client.push('user', np.arange(3), np.ones((3, client.tables['user'].dim), np.float32))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=1_200)
    with connect(f"embedded:{tmp_path}") as client:
        (stats,) = client.stats()
    assert (stats.applied_lsn, stats.checkpoint_lsn, stats.log_records) == (1, 1, 0)
