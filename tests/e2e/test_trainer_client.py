# SPDX-License-Identifier: Apache-2.0
"""trainer.py against served shards: refusals, calls that fail on the way, settings, torch modules."""

import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from rowhouse.error import (
    ConfigError,
    CorruptionError,
    InvalidRequestError,
    LimitExceededError,
    PreconditionError,
    RowhouseError,
    StoreError,
    TableFrozenError,
    TrainerLostError,
    UnavailableError,
)
from rowhouse.message import PushRequest, TableGradients

from ps_client import Client, Trainer, connect
from ps_client.pace.journal import read_journal, write_journal
from ps_client.torch import EmbeddingBag, RowOptimizer
from ps_client.transport.transport import Transport
from ps_server.config.cluster import load_config
from ps_server.serve.server import Server
from ps_server.shard.shard import Shard
from tests.conftest import MakeConfig

IDS = np.arange(40, dtype=np.uint64)
ONES = np.ones((40, 4), np.float32)


@pytest.fixture
def servers() -> list[Server]:
    return []


@pytest.fixture
def endpoints(make_config: MakeConfig, servers: list[Server]) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="rw") as folder:  # short enough for a socket's path
        config = load_config(make_config(shards=2, host=f"unix:{folder}"))
        for index in range(2):
            servers.append(Server(config, index, Shard.open))
            servers[-1].start()
        yield ",".join(server.endpoint for server in servers)
        for server in servers:
            server.stop()


@pytest.fixture
def clients(endpoints: str) -> Iterator[list[Client]]:
    with connect(endpoints, timeout_s=10) as one, connect(endpoints, timeout_s=10) as other:
        yield [one, other]


def trainers_of(clients: list[Client], **settings: Any) -> list[Trainer]:
    options: dict[str, Any] = {"group": "run", "deadline_s": 20.0, **settings}
    return [c.trainer(rank=r, world_size=len(clients), **options) for r, c in enumerate(clients)]


class GoneError(UnavailableError):
    """A shard that is not waited for, so that the test is quick."""

    retryable = False


def together(*calls: Callable[[], Any]) -> list[RowhouseError | None]:
    """Make the calls at once; what each raised."""
    raised: list[RowhouseError | None] = [None] * len(calls)

    def make(index: int, call: Callable[[], Any]) -> None:
        try:
            call()
        except RowhouseError as failure:
            raised[index] = failure

    threads = [threading.Thread(target=make, args=item) for item in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return raised


def test_a_step_is_applied_for_all_at_once(clients: list[Client]) -> None:
    one, other = trainers_of(clients)
    before = one.pull("user", IDS)
    one.push("user", IDS, ONES)
    one.push("user", IDS, ONES)
    other.push("user", IDS, ONES)
    np.testing.assert_array_equal(other.pull("user", IDS), before)
    assert together(one.step, other.step) == [None, None]
    np.testing.assert_array_equal(other.pull("user", IDS), before - np.float32(0.5) * 3)
    assert one.steps == other.steps == 1 and one.lost == ()


def instead_of(method: str, call: Callable[[Any, float], Any], transport: Transport) -> Callable[[], None]:
    """Have `call` answer one control call of the transport, until the function that it returns is called."""
    real = transport.call

    def answer(name: str, request: Any, timeout_s: float) -> Any:
        return call(request, timeout_s) if name == method else real(name, request, timeout_s)

    def restore() -> None:
        transport.call = real  # type: ignore[method-assign]

    transport.call = answer  # type: ignore[method-assign, assignment]
    return restore


def test_a_frozen_table_refuses_the_step_to_everybody_and_the_next_one_is_whole(
    clients: list[Client],
) -> None:
    one, other = trainers_of(clients)
    before = one.pull("user", IDS)
    one._cluster.transports[1].call("SetTableFreeze", _freeze("refuse"), 5)  # on one of the two shards
    for trainer in (one, other):
        trainer.push("user", IDS, ONES)
    raised = together(one.step, other.step)
    assert [type(r) for r in raised] == [TableFrozenError] * 2
    assert one.steps == other.steps == 1
    one._cluster.transports[1].call("SetTableFreeze", _freeze("off"), 5)
    middle = one.pull("user", IDS)
    one.push("user", IDS, ONES)
    assert together(one.step, other.step) == [None, None]
    np.testing.assert_array_equal(one.pull("user", IDS), middle - np.float32(0.5))
    assert (middle == before).all(axis=1).any(), "the frozen shard's rows must not have changed"


def _freeze(mode: str) -> Any:
    from rowhouse.v1 import rowhouse_pb2 as pb

    return pb.SetTableFreezeRequest(table="user", mode=f"FREEZE_MODE_{mode.upper()}")


def test_a_step_whose_shard_is_away_is_finished_by_the_next_call(clients: list[Client]) -> None:
    (alone,) = trainers_of(clients[:1])
    before = alone.pull("user", IDS)
    transport = alone._cluster.transports[1]
    contribute = transport.contribute

    def away(request: Any, timeout_s: float) -> Any:
        raise GoneError("away")

    transport.contribute = away  # type: ignore[method-assign]
    alone.push("user", IDS, ONES)
    with pytest.raises(UnavailableError, match="away"):
        alone.step()
    transport.contribute = contribute  # type: ignore[method-assign]
    np.testing.assert_array_equal(alone.pull("user", IDS), before)
    alone.push("user", IDS, 2 * ONES)
    alone.step()
    assert alone.steps == 2
    np.testing.assert_array_equal(alone.pull("user", IDS), before - np.float32(0.5) - np.float32(1.0))
    alone.flush()


def test_pushes_that_no_step_ended_are_told_at_the_end(endpoints: str) -> None:
    def forget(client: Client, **settings: Any) -> Trainer:
        trainer = client.trainer(group="forgetful", rank=0, world_size=1, **settings)
        trainer.step()
        trainer.push("user", IDS, ONES)
        trainer.push("user", IDS[:2], ONES[:2])
        return trainer

    text = r"trainer 0 of 1 .* 42 ids of 'user', pushed since step 1, were dropped; call step\(\)"
    with connect(endpoints) as client:
        before = client.pull("user", IDS)
        trainer = forget(client)
        with pytest.raises(PreconditionError, match=text):
            trainer.close()
        trainer.close()
        with pytest.raises(PreconditionError, match="this trainer is closed"):
            trainer.push("user", IDS, ONES)
        with pytest.raises(ZeroDivisionError) as own, forget(client, pace="async"):
            1 / 0  # noqa: B018
        assert "42 ids of 'user'" in own.value.__notes__[0]
        np.testing.assert_array_equal(client.pull("user", IDS), before)
    client = connect(endpoints)
    forget(client)
    with pytest.raises(PreconditionError, match="since step 2"):
        client.close()  # nobody closes the trainer, but its client's end does
    client = connect(endpoints)
    forget(client)
    with pytest.raises(ZeroDivisionError) as own, client:
        1 / 0  # noqa: B018
    assert "since step 3" in own.value.__notes__[0]


def test_a_step_whose_end_is_not_known_is_told_at_the_end(clients: list[Client]) -> None:
    (alone,) = trainers_of(clients[:1])

    def away(request: Any, timeout_s: float) -> Any:
        raise GoneError("away")

    alone._cluster.transports[1].contribute = away  # type: ignore[method-assign]
    alone.push("user", IDS, ONES)
    with pytest.raises(UnavailableError, match="away"):
        alone.step()
    with pytest.raises(PreconditionError, match=r"step 1 is not known to be applied; call flush\(\)"):
        alone.close()


def test_a_trainer_says_why_it_has_no_pipeline(clients: list[Client]) -> None:
    (alone,) = trainers_of(clients[:1])
    with pytest.raises(
        PreconditionError, match=r"step\(\) ends with all its pushes; prefetch\(\) pulls ahead"
    ):
        alone.pipeline(staleness=1)


@pytest.mark.parametrize("pace", ["bsp", "ssp", "async"])
def test_a_prefetched_row_is_as_new_as_one_pulled_now(clients: list[Client], pace: str) -> None:
    """Whoever pushed since, and from whatever trainer; with a module too."""
    one, two = trainers_of(clients, pace=pace)
    bag = EmbeddingBag(one, "user", "sum").eval()
    bag.prefetch(torch.from_numpy(IDS.astype(np.int64)).reshape(1, -1))
    one.prefetch({"user": IDS})
    before = one.pull("user", IDS[::-1])[::-1]
    two.push("user", IDS[:1], ONES[:1])
    clients[1].push("user", IDS[1:2], ONES[1:2])
    ends = [threading.Thread(target=trainer.step) for trainer in (one, two)]
    for end in ends:
        end.start()
    for end in ends:
        end.join()
    want = clients[1].pull("user", IDS)
    assert not np.array_equal(want[0], before[0]) and not np.array_equal(want[1], before[1])
    np.testing.assert_array_equal(one.pull("user", IDS), want)
    out = bag(torch.from_numpy(IDS.astype(np.int64)).reshape(1, -1))
    np.testing.assert_allclose(out.detach().numpy()[0], want.sum(axis=0), rtol=1e-5)
    assert not one._ahead._steps


def test_a_prefetch_has_its_bounds(clients: list[Client]) -> None:
    (alone,) = trainers_of(clients[:1])
    with pytest.raises(InvalidRequestError, match="ids"):
        alone.prefetch({"user": [-1]})
    for step in range(8):
        alone.prefetch({"user": IDS + step})
    with pytest.raises(LimitExceededError, match="8 prefetched steps"):
        alone.prefetch({"user": IDS})
    alone.close()
    with pytest.raises(PreconditionError, match="closed"):
        alone.prefetch({"user": IDS})


def test_learning_rates_of_a_step_must_agree(clients: list[Client]) -> None:
    (alone,) = trainers_of(clients[:1])
    alone.push("user", IDS, ONES, 0.5)
    before = alone.pull("user", IDS)
    with pytest.raises(
        InvalidRequestError, match=r"learning_rate is 0.25, and 0.5 in an earlier push of step 1;"
    ):
        alone.push("user", IDS, ONES, 0.25)
    alone.step()
    np.testing.assert_array_equal(alone.pull("user", IDS), before - np.float32(0.5))


def test_async_pushes_and_never_waits(clients: list[Client]) -> None:
    one, _ = trainers_of(clients, pace="async")
    before = one.pull("user", IDS)
    one.push("user", IDS, ONES)
    one.step()
    np.testing.assert_array_equal(one.pull("user", IDS), before - np.float32(0.5))


def test_a_trainer_joins_where_its_group_is(clients: list[Client]) -> None:
    pair = trainers_of(clients)
    for _ in range(3):
        together(*(trainer.step for trainer in pair))
    assert trainers_of(clients)[0].steps == 3
    assert trainers_of(clients, group="another")[0].steps == 0


def test_settings_are_checked_here_and_against_the_others(clients: list[Client], tmp_path: Any) -> None:
    for settings, text in (
        ({"group": ""}, "group is empty"),
        ({"world_size": 0}, "world_size is 0; it must be 1 to 1024"),
        ({"rank": 2}, "rank is 2; it must be 0 to 1"),
        ({"pace": "bps"}, "pace is 'bps'; it must be one of"),
        ({"staleness": 1}, "staleness is 1 with pace 'bsp'"),
        ({"deadline_s": 0}, "deadline_s is 0; it must be above 0"),
        ({"on_lost": "panic"}, "on_lost is 'panic'"),
    ):
        with pytest.raises(ConfigError, match=text):
            clients[0].trainer(**{"group": "g", "rank": 0, "world_size": 2, **settings})  # type: ignore[arg-type]
    trainers_of(clients)
    with pytest.raises(InvalidRequestError, match=r"has deadline_s 1; .* has deadline_s 20: all"):
        clients[0].trainer(group="run", rank=0, world_size=2, deadline_s=1)
    tables = {"tables": [{"name": "user", "dim": 4}]}
    with (
        connect(f"embedded:{tmp_path}", config=tables) as embedded,
        pytest.raises(ConfigError, match="ps-server"),
    ):
        embedded.trainer(group="g", rank=0, world_size=1)


def test_torch_modules_take_a_trainer(clients: list[Client]) -> None:
    pair = trainers_of(clients)
    bags = [EmbeddingBag(trainer, "user", "sum") for trainer in pair]
    ids = torch.arange(6).reshape(2, 3)
    before = clients[0].pull("user", np.arange(6))
    for bag in bags:
        bag(ids).sum().backward()
    together(*(trainer.step for trainer in pair))
    np.testing.assert_array_equal(clients[0].pull("user", np.arange(6)), before - np.float32(0.5) * 2)


def test_a_step_of_rows_comes_before_the_trainer_s(clients: list[Client]) -> None:
    """Two backwards of each trainer are one step, at the rate that both set."""
    pair = trainers_of(clients)
    bags = [EmbeddingBag(trainer, "user", "sum") for trainer in pair]
    optimizers = [RowOptimizer(bag) for bag in bags]
    before = clients[0].pull("user", np.arange(6))
    for bag, optimizer in zip(bags, optimizers, strict=True):
        optimizer.param_groups[0]["lr"] = 0.25
        for _ in range(2):
            bag(torch.arange(6).reshape(2, 3)).sum().backward()
        optimizer.step()
    np.testing.assert_array_equal(clients[0].pull("user", np.arange(6)), before)
    together(*(trainer.step for trainer in pair))
    np.testing.assert_array_equal(clients[0].pull("user", np.arange(6)), before - np.float32(0.25) * 4)


@pytest.mark.parametrize("journalled", [True, False])
def test_a_shard_and_a_trainer_killed_in_one_step(
    clients: list[Client], servers: list[Server], tmp_path: Any, journalled: bool
) -> None:
    """The step is applied on one shard; the other has lost this trainer's part, and so has the trainer."""
    journal = tmp_path / "journal" if journalled else None
    (alone,) = trainers_of(clients[:1], journal=journal)
    before = alone.pull("user", IDS)
    transport = alone._cluster.transports[1]

    def killed(request: Any, timeout_s: float) -> Any:
        raise GoneError("killed")

    restore = instead_of("AwaitStep", killed, transport)
    alone.push("user", IDS, ONES)
    with pytest.raises(UnavailableError):
        alone.step()
    restore()
    shard = servers[1]._shard
    assert isinstance(shard, Shard)
    shard.groups._groups.clear()
    (again,) = trainers_of(clients[:1], journal=journal)
    assert again.steps == (1 if journalled else 0)
    rows = again.pull("user", IDS)
    assert (rows != before).any()
    assert (rows == before - np.float32(0.5)).all() == journalled


def test_a_journal_of_something_else_or_damaged(tmp_path: Any) -> None:
    path = tmp_path / "journal"
    part = TableGradients("user", 1, IDS, ONES, 0.5)
    pushes = [PushRequest(1, 7, 3, (part,)), PushRequest(1, 7, 3, ())]
    assert read_journal(path, 7, 0, 3) is None
    write_journal(path, 7, 0, 3, pushes)
    found = read_journal(path, 7, 0, 3)
    assert found is not None and [len(push.tables) for push in found] == [1, 0]
    np.testing.assert_array_equal(found[0].tables[0].gradients, ONES)
    for other in ((8, 0, 3), (7, 1, 3), (7, 0, 2)):
        assert read_journal(path, *other) is None
    data = path.read_bytes()
    for damaged in (data[:-1], b"", b"[]\n", data.replace(b'"version": 1', b'"version": 2')):
        path.write_bytes(damaged)
        with pytest.raises(CorruptionError, match="is damaged, or of another version"):
            read_journal(path, 7, 0, 3)
    with pytest.raises(StoreError, match="cannot be written: No such file"):
        write_journal(tmp_path / "no" / "journal", 7, 0, 3, pushes)


def test_a_restarted_trainer_ends_the_step_that_it_had_sealed(clients: list[Client]) -> None:
    """Made anew it would be computed from rows that the others' last seal changes meanwhile."""
    one, other = trainers_of(clients)
    before = one.pull("user", IDS)
    transports = one._cluster.transports
    real = transports[0].call

    def sealed_and_killed(request: Any, timeout_s: float) -> Any:
        real("AwaitStep", request, timeout_s)
        raise GoneError("killed")

    def killed(request: Any, timeout_s: float) -> Any:
        raise GoneError("killed")

    restores = [
        instead_of("AwaitStep", sealed_and_killed, transports[0]),
        instead_of("AwaitStep", killed, transports[1]),
    ]
    one.push("user", IDS, ONES)
    other.push("user", IDS, ONES)
    with pytest.raises(GoneError):
        one.step()
    for restore in restores:
        restore()
    again: list[Trainer] = []

    def restart() -> None:
        again.append(clients[0].trainer(group="run", rank=0, world_size=2, deadline_s=20.0))

    assert together(restart, other.step) == [None, None]
    assert again[0].steps == other.steps == 1
    np.testing.assert_array_equal(other.pull("user", IDS), before - np.float32(0.5) * 2)


# ---------------------------------------------------------------- the end of one
def test_closing_tells_the_others(clients: list[Client]) -> None:
    one, other = trainers_of(clients, on_uneven="go_on", deadline_s=600.0)
    before = one.pull("user", IDS)
    assert together(one.step, other.step) == [None, None]
    other.close()
    one.push("user", IDS, ONES)
    one.step()
    np.testing.assert_array_equal(one.pull("user", IDS), before - np.float32(0.5))
    assert one.steps == 2 and one.lost == ()
    assert [text.rpartition(")")[2] for text in one.left] == [" after step 1"]


def test_an_end_that_one_shard_did_not_hear_of_reaches_it_by_the_others(
    clients: list[Client], caplog: pytest.LogCaptureFixture
) -> None:
    one, other = trainers_of(clients, on_uneven="go_on", deadline_s=600.0)
    assert together(one.step, other.step) == [None, None]

    def away(request: Any, timeout_s: float) -> Any:
        raise GoneError("shard 1 is away")

    restore = instead_of("LeaveGroup", away, other._cluster.transports[1])
    other.close()
    restore()
    assert "trainer 1 of 2 could not tell its end: shard 1 is away" in caplog.text
    one.push("user", IDS, ONES)
    one.step()
    assert one.steps == 2


def test_a_block_that_an_exception_ends_is_no_planned_end(endpoints: str, clients: list[Client]) -> None:
    """The other waits for the deadline, as for a trainer that was killed."""

    def breaks() -> None:
        with connect(endpoints) as client:
            client.trainer(group="run", rank=1, world_size=2, deadline_s=1.0, on_uneven="go_on")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        breaks()
    one = clients[0].trainer(group="run", rank=0, world_size=2, deadline_s=1.0, on_uneven="go_on")
    with pytest.raises(TrainerLostError, match="gave no sign for 1 s while trainer 0 waited"):
        one.step()


def test_pushes_that_no_step_ended_are_no_planned_end_either(clients: list[Client]) -> None:
    one, other = trainers_of(clients, deadline_s=1.0, on_uneven="go_on")
    other.push("user", IDS, ONES)
    with pytest.raises(PreconditionError, match="closed too early"):
        other.close()
    with pytest.raises(TrainerLostError, match="gave no sign"):
        one.step()
