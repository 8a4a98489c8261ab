# SPDX-License-Identifier: Apache-2.0
"""What must work wherever the distribution is installed; it needs pytest and the installed packages only.

`make test` runs it in the development environment (the newest, pinned versions), `make test-lowest` with
the lowest versions that pyproject.toml declares. So nothing here imports other tests, or what only the
extra `dev` installs.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import feature_cross
from ps_client import connect

SCRIPTS = Path(sys.executable).parent
TABLE = {"name": "user", "dim": 4, "optimizer": {"kind": "adagrad", "learning_rate": 0.5}}
IDS = np.array([7, 2**64 - 1, 7, 42], np.uint64)
CROSSES = """
version: 1
ids: {slot_bits: 8}
entities:
  user: {attributes: {age: {type: int}, city: {type: string}, joined: {type: date, part: weekday}}}
  item: {attributes: {price: {type: float, buckets: {edges: [1, 10]}}, tags: {type: string, list: true}}}
features:
  age: {kind: attribute, slot: 1, of: user.age}
  weekday: {kind: attribute, slot: 2, of: user.joined}
  age_x_price: {kind: interaction, slot: 3, of: [user.age, item.price]}
  city_x_tag: {kind: interaction, slot: 4, of: [user.city, item.tags]}
"""


def call(*command: str | Path) -> str:
    """Run a command to its end; what it printed."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=3_000, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["ps-server", "psctl", "feature-cross"])
def test_a_command_helps(name: str) -> None:
    assert call(SCRIPTS / name, "--help").startswith(f"usage: {name}")


@pytest.mark.parametrize("package", ["ps_client", "feature_cross"])
def test_an_import_loads_nothing_heavy(package: str) -> None:
    """Not by time, which depends on the machine: names are imported when they are first used."""
    names = call(sys.executable, "-c", f"import {package}, sys; print(*sys.modules)").split()
    ours = {"ps_client", "ps_server", "feature_cross"} - {package}
    base = {"grpc", "google", "numba", "numpy", "pyarrow", "pydantic", "rich", "rocksdict", "ruamel"}
    extra = {"datasketches", "matplotlib", "pandas", "ray", "torch"}
    assert {*ours, *base, *extra}.isdisjoint(name.partition(".")[0] for name in names)


def test_an_embedded_shard_learns_and_remembers(tmp_path: Path) -> None:
    with connect(f"embedded:{tmp_path / 'model'}", config={"tables": [TABLE]}) as client:
        before = client.pull("user", IDS)
        client.push("user", IDS, np.ones((4, 4), np.float32))
        after = client.pull("user", IDS)
    assert (after < before).all()
    with connect(f"embedded:{tmp_path / 'model'}") as client:
        np.testing.assert_array_equal(client.pull("user", IDS), after)


@contextmanager
def shard(folder: Path, *, data_port: str) -> Iterator[str]:
    """Endpoint of a `ps-server serve` process with its data in `folder`/data."""
    config = folder / "cluster.yaml"
    keys = {"data_dir": "data", "shards": 1, "base_port": 0, "data_port": data_port, "tables": [TABLE]}
    config.write_text(json.dumps({**keys, "memory_budget": "16MiB"}), encoding="utf-8")
    command = [str(SCRIPTS / "ps-server"), "serve", "--config", str(config), "--shard", "0"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        printed = []
        try:
            for line in process.stdout:
                printed.append(line)
                if " serves at " in line:
                    yield line.split(" serves at ")[1].split(" ")[0]
                    break
            else:
                pytest.fail("".join(printed))
        finally:
            process.terminate()
            process.stdout.read()  # it must not wait for a reader of its last words


@pytest.mark.parametrize("data_port", ["off", "auto"])
def test_a_shard_serves(data_port: str, tmp_path: Path) -> None:
    """Over gRPC alone, and over the data port."""
    with shard(tmp_path, data_port=data_port) as endpoint:
        with connect(endpoint) as client:
            before = client.pull("user", IDS)
            client.push("user", IDS, np.ones((4, 4), np.float32))
            after = client.pull("user", IDS)
        assert (after < before).all()
        stats = json.loads(call(SCRIPTS / "psctl", "stats", "--endpoints", endpoint, "--json"))
    assert stats
    out = tmp_path / "user.parquet"
    call(SCRIPTS / "psctl", "export", tmp_path / "data", "user", "--out", out)
    assert sorted(pq.read_table(out)["id"].to_pylist()) == [7, 42, 2**64 - 1]
    call(SCRIPTS / "psctl", "load", tmp_path / "again", "user", out, "--config", tmp_path / "cluster.yaml")
    call(SCRIPTS / "psctl", "verify", tmp_path / "again")


@pytest.fixture
def crosses(tmp_path: Path) -> Path:
    path = tmp_path / "crosses.yaml"
    path.write_text(CROSSES, encoding="utf-8")
    return path


def rows() -> pa.Table:
    """Five rows, with a null in every column."""
    day = 86_400_000_000
    return pa.table({
        "age": pa.array([30, None, 31, 30, 2**40], pa.int64()),
        "city": pa.array(["Oslo", "Bergen", None, "Oslo", ""]).dictionary_encode(),
        "joined": pa.array([0, day, 2 * day, None, 3 * day], pa.timestamp("us")),
        "price": pa.array([0.5, 5.0, None, 50.0, 5.0], pa.float32()),
        "tags": pa.array([["a", "b"], [], None, ["a", None], ["b"]]),
    })  # fmt: skip


def test_one_row_as_a_dict_has_the_ids_of_its_batch(crosses: Path) -> None:
    engine = feature_cross.Engine(feature_cross.load(crosses))
    batch = engine.transform(rows())
    for number, row in enumerate(rows().to_pylist()):
        alone = engine.transform(row)
        for name in batch.features:
            ids, offsets = batch[name]
            np.testing.assert_array_equal(alone[name][0], ids[offsets[number] : offsets[number + 1]])


def test_parquet_with_nulls_becomes_ids(crosses: Path, tmp_path: Path) -> None:
    """An int column with a null is what Arrow of before 26 could not turn into NumPy without pandas."""
    data, out = tmp_path / "rows.parquet", tmp_path / "ids.parquet"
    pq.write_table(rows(), data)
    call(SCRIPTS / "feature-cross", "run", data, "--config", crosses, "--out", out)
    written = pq.read_table(out)
    assert [len(ids) for ids in written["age"].to_pylist()] == [1, 0, 1, 1, 1]
    assert [len(ids) for ids in written["city_x_tag"].to_pylist()] == [2, 0, 0, 1, 1]


def test_an_author_can_estimate_and_plot(crosses: Path, tmp_path: Path) -> None:
    data, figures = tmp_path / "rows.parquet", tmp_path / "figures"
    pq.write_table(rows(), data)
    found = json.loads(call(SCRIPTS / "feature-cross", "estimate", crosses, data, "--json"))
    assert {feature["name"]: feature["distinct"] for feature in found["features"]}["age"] == 3
    if importlib.util.find_spec("matplotlib") is not None:
        call(SCRIPTS / "feature-cross", "plot", crosses, data, "--out", figures)
        assert len(list(figures.iterdir())) == 5
