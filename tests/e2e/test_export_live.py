# SPDX-License-Identifier: Apache-2.0
"""`psctl export --endpoints`: the rows of a cluster that runs, while it is pushed to."""

import json
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ps_client import connect
from ps_server import psctl
from tests.conftest import MakeConfig
from tests.process import ServerProcess

IDS = np.arange(30_000, dtype=np.uint64)
TABLE = {
    "name": "user", "dim": 8, "optimizer": {"kind": "sgd", "learning_rate": 1.0},
    "initializer": {"kind": "zeros"}, "eviction": [{"kind": "least_frequent", "max_rows": 10**9}],
}  # fmt: skip


def test_rows_are_whole_and_of_the_time_of_the_export(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After k pushes of ones a row is -k throughout, and its count is k."""
    out = tmp_path / "user.parquet"
    with ServerProcess("up", make_config(tables=[TABLE], shards=2)) as server:
        endpoints = server.endpoints()
        with connect(endpoints) as client:

            def push() -> None:
                client.push("user", IDS, np.ones((IDS.shape[0], 8), np.float32))

            push()
            command = ["export", "user", "--endpoints", endpoints, "--out", str(out), "--overwrite", "--json"]
            assert psctl.main(command) == 0
            reports = json.loads(capsys.readouterr().out)
            assert [(r["shard"], r["first_lsn"], r["last_lsn"]) for r in reports] == [
                ("shard-0000", 1, 1), ("shard-0001", 1, 1),
            ]  # fmt: skip
            table = pq.read_table(out)
            assert np.array_equal(np.sort(table.column("id").to_numpy()), IDS)
            assert set(table.column("weights").combine_chunks().flatten().to_pylist()) == {-1.0}

            done = threading.Event()

            def push_on() -> None:
                while not done.is_set():
                    push()

            pushed = threading.Thread(target=push_on)
            pushed.start()
            assert psctl.main(command) == 0
            done.set()
            pushed.join()
            reports = json.loads(capsys.readouterr().out)
            table = pq.read_table(out)
            ids = table.column("id").to_numpy()
            weights = table.column("weights").combine_chunks().flatten().to_numpy().reshape(-1, 8)
            assert np.array_equal(np.sort(ids), IDS)
            assert (weights == weights[:, :1]).all(), "no row is half of one push and half of another"
            assert np.array_equal(-weights[:, 0], table.column("push_count").to_numpy())
            first, last = min(r["first_lsn"] for r in reports), max(r["last_lsn"] for r in reports)
            assert first <= -weights.max() and -weights.min() <= last

            one = endpoints.split(",")[0]
            assert psctl.main(["export", "user", "--endpoints", one, "--out", str(tmp_path / "x")]) == 2
            assert "names 1 of the cluster's 2 shards" in capsys.readouterr().err
            for wrong, expected in (
                ([], "name the directory of stopped shards, or running ones by --endpoints"),
                (["--endpoints", endpoints, "--saved", "x"], "go with a directory"),
            ):
                assert psctl.main(["export", "user", "--out", str(tmp_path / "x"), *wrong]) == 2
                assert expected in capsys.readouterr().err
            assert psctl.main(["export", "usr", "--endpoints", endpoints, "--out", str(tmp_path / "x")]) == 2
            assert "table 'usr' is unknown" in capsys.readouterr().err and not (tmp_path / "x").exists()
        assert server.stop() == 0
