# SPDX-License-Identifier: Apache-2.0
"""Training states: model and tables saved as one, killed, restored, and trained on with the same bits."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rowhouse.error import CorruptionError, InvalidRequestError, PreconditionError, StoreError

from ps_client import Client, connect
from ps_client.torch import EmbeddingBag, load_training_state, save_training_state, saved_tables_of
from ps_server.cli import main as ps_server
from tests.conftest import MakeConfig
from tests.process import ServerProcess, wait_until_gone

torch.set_num_threads(1)  # on a busy machine OpenMP threads spend the time waiting for one another

TABLES: list[dict[str, Any]] = [
    {"name": "user", "dim": 8, "optimizer": {"kind": "adagrad", "learning_rate": 0.1}}
]
POOL = np.arange(300, dtype=np.uint64)


class Model:
    """A bag, a dense layer and Adam, whose steps depend on nothing else."""

    def __init__(self, client: Client) -> None:
        torch.manual_seed(3)
        self.client, self.bag, self.dense = client, EmbeddingBag(client, "user", "sum"), torch.nn.Linear(8, 1)
        self.optimizer = torch.optim.Adam(self.dense.parameters(), lr=0.01)
        self.step = 0

    def train(self, steps: int) -> None:
        for _ in range(steps):
            ids = torch.from_numpy(np.random.default_rng(self.step).integers(0, 300, (16, 4)))
            loss = ((self.dense(self.bag(ids)) - 1) ** 2).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1

    def state(self) -> dict[str, Any]:
        return {"dense": self.dense.state_dict(), "adam": self.optimizer.state_dict(), "step": self.step}

    def load(self, state: dict[str, Any]) -> None:
        self.dense.load_state_dict(state["dense"])
        self.optimizer.load_state_dict(state["adam"])
        self.step = state["step"]

    def bits(self) -> tuple[list[float], list[list[float]]]:
        """Everything that it knows."""
        dense = [float(v) for p in self.dense.parameters() for v in p.detach().reshape(-1)]
        return dense, self.client.pull("user", POOL, read_only=True).tolist()


@pytest.fixture
def undisturbed(tmp_path: Path) -> Any:
    with connect(f"embedded:{tmp_path}/undisturbed", config={"tables": TABLES}) as client:
        model = Model(client)
        model.train(20)
        return model.bits()


def test_killed_after_a_save_restored_and_equal_to_an_undisturbed_run(
    make_config: MakeConfig, tmp_path: Path, undisturbed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config, path = make_config(tables=TABLES, shards=2), tmp_path / "my state.pt"
    with ServerProcess("up", config) as server, connect(server.endpoints()) as client:
        model = Model(client)
        model.train(12)
        saved = save_training_state(path, client, model.state())
        model.train(3)
        pids = server.facts()["pids"]
        server.stop(signal.SIGKILL)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until_gone(pids)
        flags = ["restore", "--config", str(server.config_path), "--name", saved.name]
    assert saved.name.startswith("my-state-") and saved_tables_of(path) == saved
    with ServerProcess("up", config) as server, connect(server.endpoints()) as client:
        text = rf"'{saved.name}' at LSN 12 are not what shard 0 holds: it is at LSN 15, last saved as"
        with pytest.raises(PreconditionError, match=text):
            load_training_state(path, client)
        assert ps_server(flags) == 74, "a running cluster must not be restored"
        assert server.stop() == 0
    assert ps_server([*flags[:-1], "other"]) == 74
    assert ps_server(flags) == 0
    assert capsys.readouterr().out.count("restored to") == 2
    with ServerProcess("up", config) as server, connect(server.endpoints()) as client:
        model = Model(client)
        model.load(load_training_state(path, client))
        assert model.step == 12
        model.train(8)
        assert model.bits() == undisturbed
        assert server.stop() == 0


def test_an_embedded_state_is_saved_replaced_and_loaded(tmp_path: Path) -> None:
    path, target = tmp_path / "state.pt", f"embedded:{tmp_path}/data"
    with connect(target, config={"tables": TABLES}) as client:
        model = Model(client)
        model.train(2)
        first = save_training_state(path, client, model.state())
        model.train(2)
        second = save_training_state(path, client, model.state())
        kept = [p.name for p in (tmp_path / "data/shard-0000/saved").iterdir()]
        assert kept == [second.name] != [first.name]
        with pytest.raises(InvalidRequestError, match="state cannot be loaded back"):
            save_training_state(path, client, {"model": Model})
        assert [p.name for p in (tmp_path / "data/shard-0000/saved").iterdir()] == kept
        with pytest.raises(StoreError, match="cannot be written: No such file"):
            save_training_state(tmp_path / "no" / "state.pt", client, {})
        assert saved_tables_of(path) == second
        assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "state.pt"]
    with connect(target) as client:
        assert load_training_state(path, client)["step"] == 4  # those that failed changed nothing
        saved = save_training_state(path, client, {"step": 4})
        assert load_training_state(path, client) == {"step": 4}
        client.check_tables(saved)
        assert client.drop_tables(saved.name) and not client.drop_tables(saved.name)


def test_what_is_no_state_is_named(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    with connect(f"embedded:{tmp_path}/data", config={"tables": TABLES}) as client:
        with pytest.raises(StoreError, match=r"state\.pt': No such file"):
            load_training_state(path, client)
        save_training_state(path, client, {"x": torch.ones(1000)})
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(CorruptionError, match=r"state\.pt' cannot be read"):
            load_training_state(path, client)
        torch.save({"x": 1}, path)
        with pytest.raises(CorruptionError, match="is no training state of format 1"):
            load_training_state(path, client)


def test_a_state_of_another_cluster_is_refused(tmp_path: Path, make_config: MakeConfig) -> None:
    path = tmp_path / "state.pt"
    wide = [{"name": "user", "dim": 16}]
    with connect(f"embedded:{tmp_path}/one", config={"tables": TABLES}) as client:
        save_training_state(path, client, {})
    text = r"it is at LSN 0, never saved\. Stop the cluster and run"
    for name, tables, expected in (
        ("two", TABLES, text),
        ("wide", wide, "table 'user' had dim 8; now it is 16"),
    ):
        client = connect(f"embedded:{tmp_path}/{name}", config={"tables": tables})
        with client, pytest.raises(PreconditionError, match=expected):
            load_training_state(path, client)
    with ServerProcess("up", make_config(tables=TABLES, shards=2)) as server:
        with connect(server.endpoints()) as client, pytest.raises(PreconditionError, match="of 1 shard"):
            load_training_state(path, client)
        server.stop()
