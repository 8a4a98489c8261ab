# SPDX-License-Identifier: Apache-2.0
"""Bytes of a row against the server's own layout, sizes as text, and one meaning of bytes everywhere."""

import itertools
import json
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from feature_cross.author.cli import main
from feature_cross.author.size import DTYPE_BYTES, OPTIMIZER_STATE, RowShape, parse_size, show_bytes
from feature_cross.error import FlagError
from ps_server.disk.row import ID_BYTES, LSN_BYTES, RowLayout
from ps_server.table import optimizer as server_optimizer
from ps_server.table.config import TableConfig

SERVER_KINDS = {
    kind.model_fields["kind"].default: kind
    for kind in typing.get_args(typing.get_args(server_optimizer.OptimizerConfig)[0])
}


def test_every_optimizer_of_the_server_is_known() -> None:
    assert set(SERVER_KINDS) == set(OPTIMIZER_STATE)


@pytest.mark.parametrize(("kind", "dtype"), list(itertools.product(SERVER_KINDS, DTYPE_BYTES)))
@pytest.mark.parametrize("dim", [1, 3, 16, 64])
def test_a_row_has_the_bytes_of_the_servers_layout(kind: str, dtype: str, dim: int) -> None:
    config = TableConfig.model_validate(
        {"name": "t", "dim": dim, "dtype": dtype, "optimizer": {"kind": kind, "learning_rate": 0.1}}
    )
    layout = config.layout
    shape = RowShape(dim=dim, dtype=dtype, optimizer=kind)
    assert shape.state_words() == layout.state_size
    assert shape.row_bytes("memory") == layout.cost_bytes
    assert shape.row_bytes("store") == ID_BYTES + layout.stored_bytes + LSN_BYTES + 12


def test_metadata_is_counted_as_the_server_does() -> None:
    layout = RowLayout(dim=5, dtype=2, state_size=1, push_time=True, push_count=True, show_click=True)
    shape = RowShape(dim=5, dtype="fp16", state=1, metadata_bytes=16)
    assert shape.row_bytes("memory") == layout.cost_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8 * 10**9),
        ("1.5 TB", 15 * 10**11),
        ("64GiB", 64 * 2**30),
        ("1000", 1000),
        ("3kb", 3000),
        ("7B", 7),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "8XB", "1e9", "0", "8 GB GB", "nan"])
def test_a_size_that_is_none_is_named(text: str) -> None:
    with pytest.raises(FlagError, match="--budget is"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_900, "1 MB"), (2_500_000, "2.5 MB"), (3e15, "3 PB"),
     (3e19, "30,000 PB")],
)  # fmt: skip
def test_sizes_are_shown(size: float, text: str) -> None:
    assert show_bytes(size) == text


CONFIG = """\
ids: {slot_bits: 8}
entities:
  user: {attributes: {user_id: {type: int}, seen: {type: int, list: true, max_length: 3}}}
  item: {attributes: {category: {type: int}, colour: {type: int}}}
features:
  category: {kind: attribute, slot: 1, of: item.category}
  seen: {kind: combination, form: single, share: category, of: user.seen}
  user_x_category: {kind: interaction, slot: 2, of: [user.user_id, item.category]}
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("size")
    (folder / "c.yaml").write_text(CONFIG)
    random, rows = np.random.default_rng(0), 4000
    table = {
        "user_id": random.integers(0, 40, rows), "category": random.integers(0, 30, rows),
        "seen": random.integers(10, 50, (rows, 3)).tolist(), "colour": random.integers(0, 4, rows),
    }  # fmt: skip
    planted = (table["user_id"] + table["category"] + table["colour"]) % 2
    table["y"] = random.random(rows) < 0.2 + 0.6 * planted
    pa.parquet.write_table(pa.table(table), folder / "t.parquet")
    return folder


ROW_FLAGS = [
    [],
    ["--dim", "8", "--dtype", "fp16", "--optimizer", "adam", "--metadata-bytes", "4"],
    ["--state", "3", "--tier", "store"],
]


@pytest.mark.parametrize("row", ROW_FLAGS)
def test_every_command_counts_the_same_bytes(
    files: Path, row: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config, data = str(files / "c.yaml"), str(files / "t.parquet")

    def said(*flags: str) -> dict[str, Any]:
        assert main([*flags, "--json", *row]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    estimate = said("estimate", config, data)
    tier = "store" if "store" in row else "memory"
    bytes_of = {feature["name"]: feature["bytes"][tier] for feature in estimate["features"]}
    rows_of = {feature["name"]: feature["distinct"] for feature in estimate["features"]}
    total = estimate["totals"]["bytes"][tier]
    assert total < sum(bytes_of.values())  # what shares ids is one table's rows
    per_row = bytes_of["category"] / rows_of["category"]

    label = ["--label", "y"]
    ranked = said("rank", config, data, *label)["crosses"][0]
    assert ranked["bytes"] == bytes_of["user_x_category"]
    pruned = said("prune", config, data, *label)
    assert {one["feature"]: one["bytes"] for one in pruned["features"]} == bytes_of
    assert pruned["bytes_before"] == total
    found = said("suggest", config, data, *label, "--order", "2")
    assert found["screened"] and found["row"] == pruned["row"]
    for one in found["screened"]:
        assert one["bytes"] == one["distinct_ids"] * per_row
    difference = said("diff", config, config, "--data", data)
    assert difference["memory"]["old_bytes"] == difference["memory"]["new_bytes"] == total
    assert {one["feature"]: one["measured"]["old_bytes"] for one in difference["features"]} == bytes_of
    assert difference["row"]["bytes"] == per_row
    assert row or per_row == RowShape().row_bytes("memory") == 150


@pytest.mark.parametrize("command", ["rank", "prune", "suggest", "diff"])
def test_every_command_says_what_its_bytes_are(
    files: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config, data = str(files / "c.yaml"), str(files / "t.parquet")
    flags = [config, "--data", data] if command == "diff" else [data, "--label", "y"]
    assert main([command, config, *flags, "--tier", "store", "--dtype", "bf16"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "bytes: 122 an id on disk before compression (the id, 16 bf16 weights, adagrad state," in shown
