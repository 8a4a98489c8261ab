# SPDX-License-Identifier: Apache-2.0
"""The tables in checkpoints of torch.distributed.checkpoint, Lightning and Accelerate."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rowhouse.error import CorruptionError, InvalidRequestError, PreconditionError
from torch import Tensor, nn
from torch.distributed import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from ps_client import Client, connect
from ps_client.torch import EmbeddingBag, TablesState, lightning_callback, saved_tables_in
from ps_server.cli import main as ps_server
from tests.conftest import ROOT
from tests.process import ServerProcess

torch.set_num_threads(1)  # on a busy machine OpenMP threads spend the time waiting for one another

TABLES: list[dict[str, Any]] = [
    {"name": "user", "dim": 8, "optimizer": {"kind": "adagrad", "learning_rate": 0.1}}
]
POOL = np.arange(200, dtype=np.uint64)


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    return {
        "data_dir": str(tmp_path / "data"), "shards": 2, "host": f"unix:{tmp_path}", "memory_budget": "16MiB",
        "tables": TABLES,
    }  # fmt: skip


@pytest.fixture
def client(config: dict[str, Any]) -> Iterator[Client]:
    with ServerProcess("up", config) as cluster:
        with connect(cluster.endpoints()) as made:
            yield made
        cluster.stop()


def push(client: Client) -> None:
    client.push("user", POOL, np.ones((200, 8), np.float32))


def copies(config: dict[str, Any]) -> list[str]:
    """Names of the copies that shard 0 keeps."""
    return sorted(path.name for path in (Path(config["data_dir"]) / "shard-0000" / "saved").iterdir())


def test_a_state_names_a_copy_and_is_checked(client: Client, config: dict[str, Any]) -> None:
    tables = TablesState(client, "mine", keep=1)  # beside the newest
    push(client)
    state = tables.state_dict()
    name = saved_tables_in(state).name
    assert name.startswith("mine-") and copies(config) == [name] == state["kept"]
    tables.load_state_dict(state)
    push(client)
    with pytest.raises(PreconditionError, match=name):
        tables.load_state_dict(state)
    second, third = tables.state_dict(), tables.state_dict()
    assert copies(config) == sorted(third["kept"]) and name not in third["kept"] and len(third["kept"]) == 2
    again = TablesState(client, "mine", keep=1)  # as after a restart: it knows what the checkpoint knew
    again.load_state_dict(third)
    assert saved_tables_in(second).name not in again.state_dict()["kept"]


def test_what_is_wrong_is_said(client: Client) -> None:
    for name in ("", "a/b", "x" * 41):
        with pytest.raises(InvalidRequestError, match="name"):
            TablesState(client, name)
    trainer = client.trainer(group="g", rank=0, world_size=1)  # it is what modules take
    with pytest.raises(InvalidRequestError, match="it must be the client that connect"):
        TablesState(trainer)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="keep"):
        TablesState(client, keep=0)
    for state in ({}, {"tables": "{"}, {"tables": "{}"}):
        with pytest.raises((CorruptionError, InvalidRequestError)):
            TablesState(client).load_state_dict(state)


def restored(config: dict[str, Any], name: str) -> None:
    path = Path(config["data_dir"]).parent / "cluster.yaml"
    assert ps_server(["restore", "--config", str(path), "--name", name]) == 0


# ------------------------------------------------------------ torch.distributed.checkpoint
DISTRIBUTED = """
import sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ps_client import connect
from ps_client.torch import EmbeddingBag, TablesState

dist.init_process_group("gloo")
with connect(sys.argv[1]) as client:
    bag, dense = EmbeddingBag(client, "user", "sum"), torch.nn.Linear(8, 1)
    for step in range(3):
        dense(bag(torch.arange(20).reshape(4, 5) + 100 * dist.get_rank())).sum().backward()
    state = TablesState(client).state_dict()
    dcp.save({"dense": dense.state_dict(), "tables": state}, checkpoint_id=sys.argv[2])
    sys.stdout.write(state["tables"] + "\\n")  # as a whole: print may write the end of the line later
dist.destroy_process_group()
"""


@pytest.mark.filterwarnings("ignore")
def test_two_processes_with_torch_distributed_checkpoint(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(DISTRIBUTED, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with ServerProcess("up", config) as cluster:
        command += [str(tmp_path / "job.py"), cluster.endpoints(), str(tmp_path / "checkpoint")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3_000, check=False)
        assert done.returncode == 0, done.stderr
        first, second = done.stdout.splitlines()
        assert first == second, "both processes name one copy"
        with connect(cluster.endpoints()) as client:
            want = client.pull("user", POOL)
            push(client)
        cluster.stop()
    restored(config, saved_tables_in({"tables": first}).name)
    with ServerProcess("up", config) as cluster:
        with connect(cluster.endpoints()) as client:
            state = {"dense": nn.Linear(8, 1).state_dict(), "tables": {"tables": "", "kept": []}}
            checkpoint.load(state, checkpoint_id=tmp_path / "checkpoint")  # type: ignore[attr-defined]
            TablesState(client).load_state_dict(state["tables"])
            np.testing.assert_array_equal(client.pull("user", POOL), want)
        cluster.stop()


# ------------------------------------------------------------ Lightning and Accelerate
def examples() -> DataLoader[tuple[Tensor, ...]]:
    random = torch.Generator().manual_seed(1)
    ids, labels = torch.randint(0, 200, (48, 3), generator=random), torch.rand(48, generator=random)
    return DataLoader(TensorDataset(ids, labels), batch_size=8)


class Network(nn.Module):
    """A bag and a dense layer."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.bag, self.head = EmbeddingBag(client, "user", "sum"), nn.Linear(8, 1)

    def forward(self, ids: Tensor) -> Tensor:
        answer: Tensor = self.head(self.bag(ids))[:, 0]
        return answer

    def bits(self, client: Client) -> tuple[list[float], list[list[float]]]:
        dense = [value for p in self.head.parameters() for value in p.detach().reshape(-1).tolist()]
        return dense, client.pull("user", POOL, read_only=True).tolist()


def fit(client: Client, folder: Path, epochs: int, resume: str | None = None) -> tuple[Network, Any]:
    lightning = pytest.importorskip("pytorch_lightning", reason="pytorch-lightning is not installed")

    class Module(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = Network(client)

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            ids, labels = batch
            return nn.functional.mse_loss(self.network(ids), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.network.parameters(), lr=0.01)

    module = Module()
    saver = lightning.callbacks.ModelCheckpoint(dirpath=folder, save_top_k=-1, filename="{epoch}")
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
        callbacks=[saver, lightning_callback(client, "fit")],
    )  # fmt: skip
    trainer.fit(module, examples(), ckpt_path=resume)
    return module.network, trainer


@pytest.mark.filterwarnings("ignore")
def test_lightning_goes_on_with_the_same_bits(config: dict[str, Any], tmp_path: Path) -> None:
    with connect(f"embedded:{tmp_path}/undisturbed", config={"tables": TABLES}) as client:
        want = fit(client, tmp_path / "a", 4)[0].bits(client)
    with ServerProcess("up", config) as cluster:
        with connect(cluster.endpoints()) as client:
            fit(client, tmp_path / "b", 3)  # and the third epoch is lost
            path = tmp_path / "b" / "epoch=1.ckpt"
            state = torch.load(path, weights_only=False)["callbacks"]["rowhouse"]
            with pytest.raises(PreconditionError, match="ps-server restore"):
                fit(client, tmp_path / "c", 4, str(path))
        cluster.stop()
    restored(config, saved_tables_in(state).name)
    with ServerProcess("up", config) as cluster:
        with connect(cluster.endpoints()) as client:
            got = fit(client, tmp_path / "c", 4, str(path))[0].bits(client)
        cluster.stop()
    assert got == want


@pytest.mark.filterwarnings("ignore")
def test_accelerate_saves_and_checks_the_tables(
    client: Client, config: dict[str, Any], tmp_path: Path
) -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    accelerator = accelerate.Accelerator(cpu=True)
    model = Network(client)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(TablesState(client, "hub"))
    for ids, labels in examples():
        loss = nn.functional.mse_loss(model(ids), labels)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
    accelerator.save_state(str(tmp_path / "state"))
    (copy,) = copies(config)
    assert copy.startswith("hub-")
    accelerator.load_state(str(tmp_path / "state"))
    push(client)
    with pytest.raises(PreconditionError, match=copy):
        accelerator.load_state(str(tmp_path / "state"))
