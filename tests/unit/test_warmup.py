# SPDX-License-Identifier: Apache-2.0
"""Warm-up: afterwards the first requests find every kernel compiled; a failure is only logged."""

import logging
import pkgutil
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rowhouse.error import StoreError

from ps_server import kernel as kernel_package
from ps_server.config.cluster import load_config
from ps_server.serve import warmup
from tests.conftest import MakeConfig

TABLES: list[dict[str, Any]] = [
    {"name": "user", "dim": 4, "optimizer": {"kind": "sgd"}},
    {"name": "item", "dim": 9, "dtype": "fp16", "optimizer": {"kind": "adagrad"}},
    {"name": "twin", "dim": 8, "dtype": "fp16", "optimizer": {"kind": "adagrad", "learning_rate": 0.5}},
    {"name": "cold", "dim": 2, "optimizer": {"kind": "ftrl"}, "freeze": "refuse"},
]


def compiled() -> dict[str, int]:
    """Signatures that each of the server's kernels has been compiled (or loaded) for so far."""
    names = (m.name for m in pkgutil.iter_modules(kernel_package.__path__, "ps_server.kernel."))
    modules = [import_module(name) for name in names]
    found = [
        (f"{m.__name__}.{k}", v) for m in modules for k, v in vars(m).items() if hasattr(v, "signatures")
    ]
    return {name: len(dispatcher.signatures) for name, dispatcher in found}


def step(folder: str) -> None:
    """What the first requests of a fresh process do after the warm-up; fails when that compiles anything."""
    from rowhouse import codec, dtype, message

    from ps_server.shard.shard import Shard

    config = load_config({"data_dir": folder, "tables": TABLES[:3]})
    warmup.warm_up(config)
    warm = compiled()
    assert sum(warm.values()) > 5, warm
    shard = Shard.open(config, 0, Path(folder) / "real")
    version, ids = shard.partition_map.version, np.arange(3, dtype=np.uint64)
    pulls = tuple(message.TableIds(t.name, t.dim, ids) for t in config.tables)
    pull = codec.encode_pull_request(message.PullRequest(version, dtype.FLOAT32, False, pulls))
    ones = tuple(
        message.TableGradients(t.name, dtype.FLOAT32, ids, np.ones((3, t.dim), np.float32))
        for t in config.tables
    )
    push = codec.encode_push_request(message.PushRequest(version, 1, 1, ones))
    shard.pull(codec.decode_pull_request(pull))
    shard.push(codec.decode_push_request(push), push)
    shard.pull(codec.decode_pull_request(pull))
    late = {name: n for name, n in compiled().items() if n != warm[name]}
    assert not late, f"compiled by the first requests: {late}"
    shard.close()


def test_the_first_requests_compile_nothing(tmp_path: Path) -> None:
    script = f"from tests.unit.test_warmup import step\nstep({str(tmp_path)!r})\n"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=3_000, check=False
    )
    assert done.returncode == 0, done.stderr


def test_one_table_stands_for_all_of_its_kernels(make_config: MakeConfig) -> None:
    """`twin` needs nothing that `item` does not, and a frozen table cannot be pushed to."""
    tables = warmup.representative_tables(load_config(make_config(tables=TABLES)))
    assert sorted(t.dtype for t in tables) == ["fp16", "fp32"]
    assert "cold" not in {t.name for t in tables}


def test_a_failure_is_logged_and_leaves_nothing_behind(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise StoreError("disk full")

    monkeypatch.setattr(warmup, "_step", refuse)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        warmup.warm_up(load_config(make_config()))
    assert "kernels are not warm" in caplog.text and "disk full" in caplog.text
    assert list(tmp_path.glob("rowhouse-warmup-*")) == []


def test_only_frozen_tables_need_no_scratch_shard(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmup, "_step", lambda _: pytest.fail("it opened a scratch shard"))
    warmup.warm_up(load_config(make_config(tables=TABLES[3:])))
