# SPDX-License-Identifier: Apache-2.0
"""`psctl rows` on a running cluster of two shards."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ps_client import connect
from ps_server import psctl
from tests.process import ServerProcess

IDS = [3, 2**64 - 1, 40, 41, 42, 43, 44, 45]
TABLES = [{"name": "user", "dim": 2, "optimizer": {"kind": "adagrad", "learning_rate": 0.1}}]


@pytest.fixture(scope="module")
def endpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("rows")
    config = {
        "data_dir": str(folder / "data"), "shards": 2, "host": f"unix:{folder}", "memory_budget": "16MiB",
        "tables": TABLES,
    }  # fmt: skip
    with ServerProcess("up", config) as cluster:
        yield cluster.endpoints()
        cluster.stop()


def rows(capsys: pytest.CaptureFixture[str], endpoints: str, action: str, *flags: str) -> Any:
    assert psctl.main(["rows", action, "user", *flags, "--endpoints", endpoints, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_rows_are_assigned_read_listed_and_deleted(
    endpoints: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = [[float(place), 0.5] for place in range(len(IDS))]
    file = tmp_path / "weights.parquet"
    columns = {"id": pa.array(IDS, pa.uint64()), "weights": pa.array(weights, pa.list_(pa.float32(), 2))}
    pq.write_table(pa.table(columns), file)
    assert rows(capsys, endpoints, "assign", str(file)) == {"table": "user", "assigned": 8}
    read = rows(capsys, endpoints, "read", *map(str, [*IDS[::-1], 99]))
    assert [row["id"] for row in read] == IDS[::-1]
    assert [row["weights"] for row in read] == weights[::-1]
    assert read[0]["state"] == [0.0, 0.0]
    assert len(rows(capsys, endpoints, "list", "--limit", "5")) == 5
    assert sorted(row["id"] for row in rows(capsys, endpoints, "list")) == sorted(IDS)
    with connect(endpoints) as client:
        client.push("user", IDS[:1], np.ones((1, 2), np.float32))
        state = client.read_rows("user", IDS[:1]).state
        np.testing.assert_array_equal(state, [[1.0, 1.0]])
    forget = tmp_path / "forget.txt"
    forget.write_text("\n".join(map(str, [*IDS[1:3], 99])))
    facts = rows(capsys, endpoints, "delete", "3", "--ids-from", str(forget), "--yes")
    assert facts == {"table": "user", "deleted": 3, "without_row": 1}
    assert [row["id"] for row in rows(capsys, endpoints, "read", *map(str, IDS))] == IDS[3:]


def test_nothing_is_deleted_without_a_yes(endpoints: str, capsys: pytest.CaptureFixture[str]) -> None:
    with connect(endpoints) as client:
        client.assign("user", [77], [[1.0, 2.0]])
    assert psctl.main(["rows", "delete", "user", "77", "--endpoints", endpoints]) == 2
    assert "--yes" in capsys.readouterr().err
    assert psctl.main(["rows", "read", "user", "77", "--endpoints", endpoints]) == 0
    assert "77" in capsys.readouterr().out


@pytest.mark.parametrize("given", ["-1", "x", str(2**64), "1.0"])
def test_what_is_no_id_is_refused(given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        psctl.main(["rows", "read", "user", given, "--endpoints", "127.0.0.1:1"])
    assert "id" in capsys.readouterr().err


def test_a_file_of_something_else_is_refused(
    endpoints: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("7 seven")
    command = ["rows", "delete", "user", "--ids-from", str(words), "--endpoints", endpoints]
    assert psctl.main(command) == 2
    assert "word 2 is 'seven'" in capsys.readouterr().err
    assert psctl.main(["rows", "assign", "user", str(words), "--endpoints", endpoints]) == 2
    assert "Parquet" in capsys.readouterr().err
