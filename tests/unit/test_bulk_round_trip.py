# SPDX-License-Identifier: Apache-2.0
"""Export and load carry everything that training and the policies read; nothing begins anew unasked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from rowhouse import dtype, message
from rowhouse.document import dump as to_yaml
from rowhouse.error import InvalidRequestError
from rowhouse.mix import mix64

from ps_server import psctl
from ps_server.bulk.export import export_schema, export_table
from ps_server.bulk.load import bulk_load
from tests.driver import CLIENT, Driver, assert_equal_dumps, dump, shard_config

OPTIMIZERS = (
    "sgd", "momentum", "adagrad", "rowwise_adagrad", "adam", "adamw", "ftrl", "group_ftrl", "fobos",
    "fobos_adagrad",
)  # fmt: skip
POLICIES: dict[str, dict[str, Any]] = {
    "ttl": {"kind": "ttl", "ttl_s": 50},
    "least_frequent": {"kind": "least_frequent", "max_rows": 150},
    "show_click": {"kind": "show_click", "min_score": 1.0, "decay_rate": 0.9, "decay_period_s": 100},
}
METADATA = {"ttl": ["push_time"], "least_frequent": ["push_count"]}
METADATA["show_click"] = ["push_time", "shows", "clicks"]
ROWS, DIM, STEPS = 400, 3, 6
IDS = np.arange(ROWS, dtype=np.uint64) * np.uint64(7)
Floats = NDArray[np.float32]


def make_table(optimizer: str = "adagrad", policies: tuple[str, ...] = (), **keys: Any) -> dict[str, Any]:
    eviction = [POLICIES[name] for name in policies]
    return {"name": "t", "dim": DIM, "optimizer": {"kind": optimizer}, "eviction": eviction, **keys}


def make_driver(path: Path, table: dict[str, Any]) -> Driver:
    other = {"name": "other", "dim": 1, "optimizer": {"kind": "sgd"}}
    return Driver(shard_config(path, [table, other]), path / "shard-0000")


def step(driver: Driver, number: int) -> None:
    """One push of some rows, with shows and clicks, 10 seconds after the one before."""
    random = np.random.default_rng(number)
    ids = random.choice(IDS, ROWS // 3, replace=False)
    shows = random.integers(1, 5, ids.shape[0]).astype(np.float32)
    clicks = (shows * random.integers(0, 2, ids.shape[0])).astype(np.float32)
    scored = any(policy.kind == "show_click" for policy in driver.config.tables[0].eviction)
    events: dict[str, Any] = {"shows": shows, "clicks": clicks} if scored else {}
    gradients = random.standard_normal((ids.shape[0], DIM), np.float32)
    part = message.TableGradients("t", dtype.FLOAT32, ids, gradients, None, **events)
    sequence = driver.sequences.get(CLIENT, 0) + 1
    driver.send(message.PushRequest(driver.shard.partition_map.version, CLIENT, sequence, (part,)))
    driver.now_s += 10


def trained(path: Path, table: dict[str, Any]) -> Driver:
    """A shard with STEPS pushes in `t`, stopped."""
    driver = make_driver(path, table)
    for number in range(STEPS):
        step(driver, number)
    driver.shard.close()
    return driver


def fresh(path: Path, table: dict[str, Any]) -> Driver:
    """A shard with as many pushes, none of them in `t`, stopped: stochastic rounding is seeded by the LSN."""
    driver = make_driver(path, table)
    for _ in range(STEPS):
        driver.push({"other": (IDS[:1], np.zeros((1, 1), np.float32))})
    driver.now_s += 10 * STEPS
    driver.shard.close()
    return driver


def through_parquet(source: Driver, path: Path) -> pa.Table:
    """What a file keeps of the table's export."""
    batches = export_table(source.directory, "t", batch_rows=100)
    pq.write_table(pa.Table.from_batches(batches, export_schema(source.directory, "t")), path)
    return pq.read_table(path)


def rows_of(driver: Driver) -> dict[str, Any]:
    """Everything that is stored of `t`."""
    return {"row.t": dump(driver.config, driver.directory)["row.t"]}


# ---------------------------------------------------------------- there and back
@pytest.mark.parametrize("element", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_goes_on_with_equal_bits(tmp_path: Path, optimizer: str, element: str) -> None:
    table = make_table(optimizer, ("least_frequent", "show_click"), dtype=element)
    source, target = trained(tmp_path / "a", table), fresh(tmp_path / "b", table)
    file = through_parquet(source, tmp_path / "t.parquet")
    report = bulk_load(target.directory, "t", file.to_batches())
    assert (report.rows, report.reset, report.left_out) == (file.num_rows, (), ())
    assert_equal_dumps(rows_of(target), rows_of(source))
    for driver in (source, target):
        driver.shard = driver._open()
        for number in range(STEPS, STEPS + 3):
            driver.sequences[CLIENT] = driver.shard.last_sequence(CLIENT)
            step(driver, number)
    assert np.array_equal(source.pull("t", IDS), target.pull("t", IDS))
    for driver in (source, target):
        driver.shard.close()
    assert_equal_dumps(rows_of(target), rows_of(source))


@pytest.mark.parametrize("policy", POLICIES)
def test_the_first_eviction_takes_what_it_would_have_taken(tmp_path: Path, policy: str) -> None:
    table = make_table(policies=(policy,))
    source, target = trained(tmp_path / "a", table), fresh(tmp_path / "b", table)
    file = through_parquet(source, tmp_path / "t.parquet")
    assert file.schema.names == ["id", "weights", "state", *METADATA[policy], "lsn"]
    bulk_load(target.directory, "t", file.to_batches())
    gone = []
    for driver in (source, target):
        driver.shard = driver._open()
        gone.append(driver.evict("t"))
        driver.shard.close()
    assert 0 < gone[0] < file.num_rows and gone[0] == gone[1]
    assert_equal_dumps(rows_of(target), rows_of(source))


def test_a_running_shard_exports_and_loads_them_too(tmp_path: Path) -> None:
    table = make_table("adam", tuple(POLICIES))
    source, target = trained(tmp_path / "a", table), fresh(tmp_path / "b", table)
    for driver in (source, target):
        driver.shard = driver._open()
    schema = export_schema(source.shard, "t")
    file = pa.Table.from_batches(export_table(source.shard, "t"), schema)
    bulk_load(target.shard, "t", file.to_batches())
    for driver in (source, target):
        driver.shard.close()
    assert_equal_dumps(rows_of(target), rows_of(source))


# ---------------------------------------------------------------- what a file lacks
@pytest.mark.parametrize("policy", POLICIES)
def test_a_file_without_metadata_is_refused_until_asked(tmp_path: Path, policy: str) -> None:
    """Such a file is another's, or an export of an earlier version."""
    table = make_table(policies=(policy,))
    source, target = trained(tmp_path / "a", table), fresh(tmp_path / "b", table)
    file = through_parquet(source, tmp_path / "t.parquet").drop_columns(METADATA[policy])
    asked = ",".join(METADATA[policy])
    with pytest.raises(InvalidRequestError, match=f"load with --reset {asked}, and every row counts as"):
        bulk_load(target.directory, "t", file.to_batches())
    assert rows_of(target)["row.t"][0].shape == (0,)
    report = bulk_load(
        target.directory, "t", file.to_batches(), reset=METADATA[policy], clock=lambda: target.now_s
    )
    assert report.reset == tuple(METADATA[policy])
    answer = through_parquet(target, tmp_path / "again.parquet")
    first = {"push_time": int(target.now_s), "push_count": 1, "shows": 1.0, "clicks": 0.0}
    for name in METADATA[policy]:
        assert set(answer.column(name).to_pylist()) == {first[name]}


def test_a_column_is_kept_beside_one_that_begins_anew(tmp_path: Path) -> None:
    """A policy that comes to a table: its word is new, the others stay."""
    source = trained(tmp_path / "a", make_table(policies=("ttl",)))
    target = fresh(tmp_path / "b", make_table(policies=("ttl", "least_frequent")))
    file = through_parquet(source, tmp_path / "t.parquet")
    with pytest.raises(InvalidRequestError, match="its eviction reads push_count, which the input lacks"):
        bulk_load(target.directory, "t", file.to_batches())
    bulk_load(target.directory, "t", file.to_batches(), reset=["push_count"])
    answer = through_parquet(target, tmp_path / "again.parquet")
    assert answer.column("push_time").equals(file.column("push_time"))
    assert set(answer.column("push_count").to_pylist()) == {1}


def test_arrays_bring_no_metadata(tmp_path: Path) -> None:
    target = fresh(tmp_path, make_table("sgd", ("ttl",)))
    batch = (IDS, np.zeros((ROWS, DIM), np.float32))
    with pytest.raises(InvalidRequestError, match="its eviction reads push_time"):
        bulk_load(target.directory, "t", [batch])
    assert bulk_load(target.directory, "t", [batch], reset=["push_time"]).rows == ROWS


def test_state_of_another_optimizer_is_not_taken_for_its_own(tmp_path: Path) -> None:
    """Momentum's has the size of Adagrad's."""
    source = trained(tmp_path / "a", make_table("momentum"))
    target = fresh(tmp_path / "b", make_table("adagrad"))
    file = through_parquet(source, tmp_path / "t.parquet")
    with pytest.raises(InvalidRequestError, match="is of optimizer 'momentum'; the table's is 'adagrad'"):
        bulk_load(target.directory, "t", file.to_batches())
    target.shard = target._open()
    assert bulk_load(target.shard, "t", file.to_batches(), reset=["state"]).reset == ("state",)
    target.shard.close()


def test_what_the_table_does_not_keep_is_named(tmp_path: Path) -> None:
    source = trained(tmp_path / "a", make_table("adagrad", ("least_frequent",)))
    target = fresh(tmp_path / "b", make_table("sgd"))
    file = through_parquet(source, tmp_path / "t.parquet")
    assert bulk_load(target.directory, "t", file.to_batches()).left_out == ("push_count", "state")


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("push_count", pa.array([1.5]), "'push_count' is double; it must be uint32"),
        ("push_time", pa.array([-1]), "'push_time': Integer value -1 not in range"),
        ("push_time", pa.array([None], pa.uint32()), "it must be uint32 without nulls"),
        ("shows", pa.array([1]), "'shows' is int64; it must be float32"),
        ("clicks", pa.array([float("nan")]), "'clicks' holds nan; a sum must be finite"),
        ("shows", pa.array([-1.0]), "'shows' holds -1.0"),
    ],
)
def test_wrong_metadata_changes_nothing(tmp_path: Path, name: str, values: pa.Array, expected: str) -> None:
    target = fresh(tmp_path, make_table("sgd", ("least_frequent", "show_click")))
    columns = {
        "id": pa.array([1], pa.uint64()), "weights": pa.array([[1.0] * DIM]), "push_time": pa.array([1]),
        "push_count": pa.array([1]), "shows": pa.array([1.0]), "clicks": pa.array([0.0]), name: values,
    }  # fmt: skip
    with pytest.raises(InvalidRequestError, match=expected):
        bulk_load(target.directory, "t", [pa.record_batch(columns)])
    assert rows_of(target)["row.t"][0].shape == (0,)


def test_a_name_that_does_not_begin_anew_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="reset: 'weights' does not begin anew; choose of state, "):
        bulk_load(tmp_path, "t", [], reset=["weights"])


# ---------------------------------------------------------------- the commands
def test_the_commands_carry_metadata_to_more_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = make_table("adam", tuple(POLICIES))
    source = trained(tmp_path / "a", table)
    out, config = tmp_path / "t.parquet", tmp_path / "three.yaml"
    config.write_text(to_yaml({"data_dir": "x", "memory_budget": "16MiB", "shards": 3, "tables": [table]}))
    assert psctl.main(["export", str(source.directory), "t", "--out", str(out)]) == 0
    new = str(tmp_path / "three")
    assert psctl.main(["load", new, "t", str(out), "--config", str(config)]) == 0
    again = tmp_path / "again.parquet"
    assert psctl.main(["export", new, "t", "--out", str(again)]) == 0
    before, after = pq.read_table(out), pq.read_table(again)
    assert before.num_rows == after.num_rows
    order = np.argsort(mix64(after.column("id").to_numpy()))
    assert after.take(pa.array(order)).drop_columns(["lsn"]).equals(before.drop_columns(["lsn"]))

    old = tmp_path / "old.parquet"
    pq.write_table(before.drop_columns(["push_time", "push_count"]), old)
    capsys.readouterr()
    assert psctl.main(["load", new, "t", str(old)]) == 2
    assert "--reset push_time,push_count" in capsys.readouterr().err
    command = ["load", new, "t", str(old), "--reset", "push_time,push_count"]
    assert psctl.main([*command, "--json"]) == 0
    reports = json.loads(capsys.readouterr().out)
    assert [report["reset"] for report in reports] == [["push_time", "push_count"]] * 3
    assert psctl.main(command) == 0
    assert "push_time, push_count" in capsys.readouterr().out
