# SPDX-License-Identifier: Apache-2.0
"""Models with our modules under torch.compile and on the meta device; their dense part under torch.export."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rowhouse.error import InvalidRequestError
from torch import Tensor, nn

from ps_client import Client, connect
from ps_client.torch import (
    EmbeddingBag,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    RowOptimizer,
    dense_part,
)

torch.set_num_threads(1)  # on a busy machine OpenMP threads spend the time waiting for one another

DIM = 4


@contextmanager
def connected(path: Path) -> Iterator[Client]:
    tables = [{"name": name, "dim": DIM} for name in ("user", "item")]
    with connect(f"embedded:{path}", config={"tables": tables}) as client:
        yield client


class Model(nn.Module):
    """Every module of ours, one of them twice, and a dense part."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        bags = [EmbeddingBagConfig(name="item", embedding_dim=DIM, feature_names=["a", "b"])]
        rows = [EmbeddingConfig(name="user", embedding_dim=DIM, feature_names=["b"])]
        self.bag = EmbeddingBag(client, "user")
        self.bags, self.rows = EmbeddingBagCollection(client, bags), EmbeddingCollection(client, rows)
        self.head = nn.Sequential(nn.Linear(3 * DIM + 2, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, ids: Tensor, batch: Any, dense: Tensor) -> Tensor:
        pooled, factor = self.bags(batch), self.rows(batch)["b"].values().mean()
        joined = torch.cat([self.bag(ids) + self.bag(ids + 1), pooled["a"], pooled["b"], dense], 1)
        out: Tensor = self.head(joined) * (1 + factor)
        return out


def batch_of(count: int, seed: int) -> tuple[Tensor, KeyedJaggedTensor, Tensor]:
    random = np.random.default_rng(seed)
    lengths = torch.from_numpy(random.integers(0, 3, 2 * count))
    values = torch.from_numpy(random.integers(0, 50, int(lengths.sum())))
    ids = torch.from_numpy(random.integers(0, 50, (count, 3)))
    dense = torch.from_numpy(random.normal(size=(count, 2)).astype(np.float32))
    return ids, KeyedJaggedTensor(["a", "b"], values, lengths=lengths), dense


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch._dynamo asks for it
@pytest.mark.parametrize("kept", [False, True])
def test_a_compiled_model_trains_as_the_model_does(tmp_path: Path, kept: bool) -> None:
    found = []
    for compiled in (False, True):
        with connected(tmp_path / str(compiled)) as client:
            torch.manual_seed(3)
            model = Model(client)
            call = torch.compile(model, backend="aot_eager") if compiled else model
            optimizers: list[torch.optim.Optimizer] = [torch.optim.SGD(model.head.parameters(), lr=0.1)]
            optimizers += [RowOptimizer(model)] if kept else []
            losses = []
            for step in range(4):
                loss = call(*batch_of(5 + step % 2, step)).square().mean()
                torch.autograd.backward(loss)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
                losses.append(loss.item())
            rows = [client.pull(name, np.arange(50)) for name in ("user", "item")]
        found.append((losses, rows))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-5)
    for ours, want in zip(found[1][1], found[0][1], strict=True):
        np.testing.assert_allclose(ours, want, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # tracing optimizers, torch warns of much that is its own
@pytest.mark.parametrize("kept", [False, True])
def test_a_compiled_training_step_pushes_as_the_step_does(tmp_path: Path, kept: bool) -> None:
    found = []
    for compiled in (False, True):
        with connected(tmp_path / str(compiled)) as client:
            torch.manual_seed(3)
            model = Model(client)
            dense = torch.optim.SGD(model.head.parameters(), lr=0.1)
            optimizer = RowOptimizer(model) if kept else None

            def step(
                *batch: Any, model: nn.Module = model, optimizer: RowOptimizer | None = optimizer
            ) -> Tensor:
                loss: Tensor = model(*batch).square().mean()
                torch.autograd.backward(loss)
                if optimizer is not None:
                    optimizer.step()
                    optimizer.zero_grad()
                return loss.detach()

            call, losses = torch.compile(step, backend="aot_eager") if compiled else step, []
            for number in range(4):
                losses.append(float(call(*batch_of(5 + number % 2, number))))
                dense.step()
                dense.zero_grad()
            rows = [client.pull(name, np.arange(50)) for name in ("user", "item")]
        found.append((losses, rows))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-5)
    for ours, want in zip(found[1][1], found[0][1], strict=True):
        np.testing.assert_allclose(ours, want, rtol=1e-4, atol=1e-6)


def test_the_compiler_is_not_imported_where_it_is_not_used() -> None:
    # torchrec imports the compiler, so this is about what we import without it.
    script = (
        "import sys\nsys.modules['torchrec'] = None\nimport ps_client.torch\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=600)


def test_the_dense_part_is_exported_with_rows_as_inputs(tmp_path: Path) -> None:
    with connected(tmp_path) as client:
        model = Model(client).eval()
        batch, other = batch_of(4, 1), batch_of(7, 2)
        dense, inputs = dense_part(model, *batch)
        names = ["bags", "rows.b.values", "rows.b.lengths", "bag", "bag.2", "input.0", "input.2"]
        assert dense.input_names == names and len(inputs) == len(names)
        assert not any(module.training for module in dense.modules())
        assert not any(part.requires_grad for part in inputs)
        torch.testing.assert_close(dense(*inputs), model(*batch))
        dynamic = {"tensors": tuple({0: torch.export.Dim.AUTO} for _ in inputs)}
        program = torch.export.export(dense, inputs, dynamic_shapes=dynamic, strict=False)
        for one in (batch, other):
            torch.testing.assert_close(program.module()(*dense_part(model, *one)[1]), model(*one))
        before = model(*batch)
        with torch.no_grad():
            next(model.head.parameters()).zero_()
        torch.testing.assert_close(dense(*inputs), before)  # its weights are its own


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch.onnx asks torch.export for it
def test_the_dense_part_runs_in_onnx_with_batches_of_any_size(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (34 MB with what it needs)")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (73 MB)")
    with connected(tmp_path) as client:
        model = Model(client).eval()
        dense, inputs = dense_part(model, *batch_of(4, 1))
        assert not dense.training  # else torch warns of what training mode would do
        file, names = tmp_path / "dense.onnx", dense.input_names
        dynamic = {"tensors": tuple({0: torch.export.Dim.AUTO} for _ in inputs)}
        torch.onnx.export(dense, inputs, file, input_names=names, dynamic_shapes=dynamic, verbose=False)
        session = runtime.InferenceSession(file)
        assert [one.name for one in session.get_inputs()] == names
        for batch in (batch_of(4, 1), batch_of(7, 2)):
            given = [part.numpy() for part in dense_part(model, *batch)[1]]
            (out,) = session.run(None, dict(zip(names, given, strict=True)))
            torch.testing.assert_close(torch.from_numpy(out), model(*batch))


def test_ids_that_only_bags_read_are_no_inputs(tmp_path: Path) -> None:
    with connected(tmp_path) as client:
        model = nn.Sequential(EmbeddingBag(client, "user"), nn.Linear(DIM, 1)).eval()
        dense, inputs = dense_part(model, torch.tensor([[1, 2]]))
        assert dense.input_names == ["0"] and inputs[0].shape == (1, DIM)
        with pytest.raises(InvalidRequestError, match=r"in training mode; call eval\(\)"):
            dense_part(model.train(), torch.tensor([[1, 2]]))
        for none in (nn.Linear(2, 2).eval(), EmbeddingBag(client, "user").eval()):
            with pytest.raises(InvalidRequestError, match=r"modules of ps_client\.torch inside"):
                dense_part(none, torch.ones(1, 2))


class Masked(nn.Module):
    """It reads its ids itself, and its jagged batch where `peeks`."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.bag, self.peeks = EmbeddingBag(client, "user"), False
        self.bags = EmbeddingBagCollection(
            client, [EmbeddingBagConfig(name="item", embedding_dim=DIM, feature_names=["a"])]
        )

    def forward(self, ids: Tensor, batch: Any, scale: float) -> Tensor:
        found: Tensor = (self.bag(ids) + self.bags(batch)["a"]) * (ids[:, :1] % 2) * scale
        return found * batch.lengths().sum() if self.peeks else found


def test_what_the_dense_part_reads_of_the_batch_is_an_input_or_an_error(tmp_path: Path) -> None:
    with connected(tmp_path) as client:
        model = Masked(client).eval()
        (ids, batch, _), (more, later, _) = batch_of(4, 1), batch_of(4, 2)
        dense, inputs = dense_part(model, ids, batch, 2.0)
        assert dense.input_names == ["bag", "bags", "input.0"]
        torch.testing.assert_close(dense(*inputs), model(ids, batch, 2.0))
        torch.testing.assert_close(dense(*dense_part(model, more, later, 2.0)[1]), model(more, later, 2.0))
        model.peeks = True
        with pytest.raises(
            InvalidRequestError, match="reads input 1 of the batch, a KeyedJaggedTensor, itself"
        ):
            dense_part(model, ids, batch, 2.0)


def test_a_model_is_made_on_the_meta_device(tmp_path: Path) -> None:
    with connected(tmp_path) as client:
        with torch.device("meta"):
            model = Model(client)
        assert all(p.is_meta for p in model.parameters())
        keys = list(model.state_dict())
        model = model.to_empty(device="cpu")
        assert list(model.state_dict()) == keys and not any("bag" in key or "rows" in key for key in keys)
        for parameter in model.head.parameters():
            nn.init.constant_(parameter, 0.1)
        torch.autograd.backward(model(*batch_of(4, 1)).sum())
        model.bag.requires_grad_(False)
        assert not model.bag(torch.tensor([[1]])).requires_grad
