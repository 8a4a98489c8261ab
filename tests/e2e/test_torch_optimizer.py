# SPDX-License-Identifier: Apache-2.0
"""RowOptimizer over a real shard against torch: loss scaling, accumulation, clipping, schedules, rates."""

from collections.abc import Callable, Iterator
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
    KeyedJaggedTensor,
    RowOptimizer,
)

torch.set_num_threads(1)  # on a busy machine OpenMP threads spend the time waiting for one another

VOCABULARY, DIM = 40, 8
OPTIMIZER = {"kind": "adagrad", "learning_rate": 0.1, "eps": 1e-10}
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}


@contextmanager
def connected(path: Path) -> Iterator[Client]:
    tables = [{"name": name, "dim": DIM, "optimizer": OPTIMIZER} for name in ("user", "item")]
    with connect(f"embedded:{path}", config={"tables": tables}) as client:
        yield client


class Pair:
    """One model twice: its rows on a shard, and its rows in torch."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.ours = EmbeddingBag(client, "user", "sum")
        self.theirs = nn.EmbeddingBag(VOCABULARY, DIM, mode="sum")
        with torch.no_grad():
            self.theirs.weight.copy_(torch.from_numpy(client.pull("user", np.arange(VOCABULARY))))
        torch.manual_seed(7)
        self.heads = nn.Linear(DIM, 1), nn.Linear(DIM, 1)
        self.heads[1].load_state_dict(self.heads[0].state_dict())
        self.rows = RowOptimizer(self.ours)
        self.table = torch.optim.Adagrad(self.theirs.parameters(), lr=0.1, eps=1e-10)
        self.dense = [torch.optim.SGD(head.parameters(), lr=0.1) for head in self.heads]
        self.random = np.random.default_rng(5)

    def losses(self, factor: float = 1.0) -> tuple[Tensor, Tensor]:
        """Of one batch, by both."""
        ids = torch.from_numpy(self.random.integers(0, VOCABULARY, (6, 3)))
        ours, theirs = self.heads[0](self.ours(ids)), self.heads[1](self.theirs(ids))
        return (ours * factor).square().mean(), (theirs * factor).square().mean()

    def check(self) -> None:
        found = torch.from_numpy(self.client.pull("user", np.arange(VOCABULARY), read_only=True))
        # torch's dense Adagrad leaves rows without a gradient as they are, as sparse ones are left
        torch.testing.assert_close(found, self.theirs.weight.detach(), **CLOSE)
        torch.testing.assert_close(self.heads[0].weight.detach(), self.heads[1].weight.detach(), **CLOSE)


@pytest.mark.parametrize("unscaled_before", [False, True])
def test_a_loss_scaler_unscales_rows_and_skips_their_step(tmp_path: Path, unscaled_before: bool) -> None:
    with connected(tmp_path) as client:
        pair = Pair(client)
        scalers = [torch.amp.GradScaler("cpu", init_scale=65536.0, growth_interval=3) for _ in range(2)]
        optimizers: list[list[torch.optim.Optimizer]] = [
            [pair.dense[0], pair.rows],
            [pair.dense[1], pair.table],
        ]
        for step in range(8):
            factor = 1e30 if step in (2, 5) else 1.0  # those two overflow
            before = client.pull("user", np.arange(VOCABULARY), read_only=True)
            for loss, scaler, own in zip(pair.losses(factor), scalers, optimizers, strict=True):
                for optimizer in own:
                    optimizer.zero_grad()
                torch.autograd.backward(scaler.scale(loss))
                if unscaled_before:
                    for optimizer in own:
                        scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(
                        [p for o in own for g in o.param_groups for p in g["params"]], 0.5
                    )
                for optimizer in own:
                    scaler.step(optimizer)
                scaler.update()
            assert scalers[0].get_scale() == scalers[1].get_scale()
            moved = (client.pull("user", np.arange(VOCABULARY), read_only=True) != before).any()
            assert moved == (factor == 1.0)
            pair.check()


def test_autocast_in_float16_with_a_scaler_learns_and_without_one_is_refused(tmp_path: Path) -> None:
    with connected(tmp_path) as client:
        bag, head = EmbeddingBag(client, "user"), nn.Linear(DIM, 1)
        ids = torch.arange(12).reshape(4, 3)
        with torch.autocast("cpu", dtype=torch.float16):
            with pytest.raises(InvalidRequestError, match=r"autocast in float16 .* RowOptimizer\(model\)"):
                bag(ids)
            bag.eval()(ids)  # an evaluation pushes nothing
        rows, dense = RowOptimizer(bag.train()), torch.optim.SGD(head.parameters(), lr=0.1)
        scaler, losses = torch.amp.GradScaler("cpu"), []
        for _ in range(30):
            with torch.autocast("cpu", dtype=torch.float16):
                loss = (head(bag(ids)).float() - 1).square().mean()
            losses.append(loss.item())
            dense.zero_grad()
            rows.zero_grad()
            torch.autograd.backward(scaler.scale(loss))
            scaler.step(dense)
            scaler.step(rows)
            scaler.update()
        assert losses[-1] < losses[0] / 10


@pytest.mark.parametrize("kind", ["client", "pipeline"])
def test_accumulated_gradients_are_one_step_as_torch_s(tmp_path: Path, kind: str) -> None:
    with connected(tmp_path) as client:
        pair = Pair(client)
        pipeline = client.pipeline()
        pair.ours.client = pipeline if kind == "pipeline" else client
        for _ in range(4):
            for _ in range(3):
                for loss in pair.losses():
                    torch.autograd.backward(loss / 3)
            for optimizer in (*pair.dense, pair.rows, pair.table):
                optimizer.step()
                optimizer.zero_grad()
        pipeline.flush()
        pair.check()
        pipeline.close()


def test_a_norm_over_dense_part_and_rows_clips_both(tmp_path: Path) -> None:
    with connected(tmp_path) as client:
        pair = Pair(client)
        for _ in range(5):
            norms = []
            parameters = [*pair.heads[0].parameters(), *pair.rows.parameters()], [
                *pair.heads[1].parameters(), *pair.theirs.parameters()
            ]  # fmt: skip
            for loss, mine in zip(pair.losses(10.0), parameters, strict=True):
                torch.autograd.backward(loss)
                norms.append(nn.utils.clip_grad_norm_(mine, 0.1))
            torch.testing.assert_close(*norms, **CLOSE)
            assert float(norms[0]) > 0.1
            for optimizer in (*pair.dense, pair.rows, pair.table):
                optimizer.step()
                optimizer.zero_grad()
        pair.check()


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
    "warm-up": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, 3),
            torch.optim.lr_scheduler.CosineAnnealingLR(o, 4),
        ],
        [3],
    ),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(
        o, lambda step: 0.0 if step == 1 else 1 / (step + 1)
    ),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.3, total_steps=9, cycle_momentum=False),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")
@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_schedule_of_torch_sets_the_rate_of_rows(tmp_path: Path, kind: str) -> None:
    with connected(tmp_path) as client:
        pair = Pair(client)
        schedules = [SCHEDULES[kind](pair.rows), SCHEDULES[kind](pair.table)]
        for _ in range(8):
            for loss in pair.losses():
                torch.autograd.backward(loss)
            for optimizer in (*pair.dense, pair.rows, pair.table):
                optimizer.step()
                optimizer.zero_grad()
            for schedule in schedules:
                schedule.step()
            pair.check()
        state = [pair.rows.state_dict(), schedules[0].state_dict()]
        again = RowOptimizer(EmbeddingBag(client, "user", "sum"))
        again.load_state_dict(state[0])
        assert [g["lr"] for g in again.param_groups] == [g["lr"] for g in pair.rows.param_groups]
        assert [g["table"] for g in again.param_groups] == ["user"]


def test_each_table_has_a_rate_at_run_time(tmp_path: Path) -> None:
    with connected(tmp_path) as client:
        bags = EmbeddingBagCollection(
            client,
            [EmbeddingBagConfig(name=n, embedding_dim=DIM, feature_names=[n[0]]) for n in ("user", "item")],
        )
        rows = RowOptimizer(bags)
        assert [(g["table"], g["lr"]) for g in rows.param_groups] == [("user", 0.1), ("item", 0.1)]
        batch = KeyedJaggedTensor(["u", "i"], torch.tensor([1, 1]), lengths=torch.tensor([1, 1]))
        before = [client.pull(name, [1]) for name in ("user", "item")]
        rows.param_groups[1]["lr"] = 0.025
        bags(batch).values().sum().backward()
        rows.step()
        moved = [client.pull(n, [1]) - b for n, b in zip(("user", "item"), before, strict=True)]
        np.testing.assert_allclose(moved[0], -0.1, rtol=1e-4)  # Adagrad's first step is its rate
        np.testing.assert_allclose(moved[1], -0.025, rtol=1e-4)
        rows.param_groups[0]["lr"] = -1.0
        bags(batch).values().sum().backward()
        with pytest.raises(InvalidRequestError, match="learning_rate is -1"):
            rows.step()
        rows.step()  # the gradients are gone
        rows.param_groups[0]["lr"] = 0.1
        bags.embedding_bags["item"].requires_grad_(False)
        bags(batch).values().sum().backward()
        assert [p.grad is not None for p in rows.parameters()] == [True, False]
        rows.zero_grad()
        before = [client.pull(name, [1]) for name in ("user", "item")]
        rows.step()
        assert all((client.pull(n, [1]) == b).all() for n, b in zip(("user", "item"), before, strict=True))


def test_modules_have_one_optimizer_of_rows(tmp_path: Path) -> None:
    with connected(tmp_path) as client:
        bag = EmbeddingBag(client, "user")
        RowOptimizer(nn.Sequential(bag))
        with pytest.raises(InvalidRequestError, match="another RowOptimizer's"):
            RowOptimizer([bag])
        with pytest.raises(InvalidRequestError, match="hold no Embedding, EmbeddingBag"):
            RowOptimizer(nn.Linear(2, 2))
