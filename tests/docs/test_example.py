# SPDX-License-Identifier: Apache-2.0
"""Every example runs as its page says: the quickstart, and the demos on files of the real ones' shape."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
HEROES, MATCHES = 30, 3000
CUSTOMERS, ITEMS, DAYS = 60, 80, 40


def _matches() -> pa.Table:
    """Matches in which some heroes are stronger; five distinct heroes a side."""
    rng = np.random.default_rng(0)
    picks = rng.permuted(np.tile(np.arange(1, HEROES + 1), (MATCHES, 1)), axis=1)[:, :10]
    strength = rng.normal(0, 0.5, HEROES + 1)
    odds = strength[picks[:, :5]].sum(axis=1) - strength[picks[:, 5:]].sum(axis=1)
    return pa.table(
        {
            "win": rng.random(MATCHES) < 1 / (1 + np.exp(-odds)),
            "cluster": pa.array(np.ones(MATCHES), pa.int16()),
            "mode": pa.array(rng.integers(1, 3, MATCHES), pa.int16()),
            "type": pa.array(np.ones(MATCHES), pa.int16()),
            "radiant": pa.array(np.sort(picks[:, :5]).tolist(), pa.list_(pa.int16())),
            "dire": pa.array(np.sort(picks[:, 5:]).tolist(), pa.list_(pa.int16())),
        }
    )


def _invoices() -> pa.Table:
    """Invoice lines in time order; each customer prefers a few items."""
    rng = np.random.default_rng(1)
    lines = 6000
    customer = rng.integers(0, CUSTOMERS, lines)
    item = (customer * 7 + rng.integers(0, 6, lines) ** 2) % ITEMS
    minutes = np.sort(rng.integers(0, DAYS * 24 * 60, lines))
    return pa.table(
        {
            "InvoiceNo": [str(536_000 + i) for i in range(lines)],
            "StockCode": [f"{20_000 + i}" for i in item],
            "Description": ["x"] * lines,
            "Quantity": pa.array(np.ones(lines), pa.int64()),
            "InvoiceDate": np.datetime64("2011-01-03T08:00", "us") + minutes.astype("timedelta64[m]"),
            "UnitPrice": np.ones(lines),
            "CustomerID": pa.array(12_000 + customer, pa.int64()),
            "Country": ["France" if c % 3 else "Spain" for c in customer],
        }
    )


@pytest.mark.parametrize("example", ["retail", "dota2"])
def test_a_demo_runs_on_a_file_of_its_shape(example: str, tmp_path: Path) -> None:
    data, out = tmp_path / "data.parquet", tmp_path / "demo"
    pq.write_table({"retail": _invoices, "dota2": _matches}[example](), data)
    flags = ["--example", example, "--data", str(data), "--out", str(out), "--seeds", "1"]
    command = [sys.executable, "-m", "examples.demo", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=5_400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert facts["recovered_exactly"] is True
    assert facts["auc_after_recovery"] == facts["auc_with_crosses"] > 0.5
    html = (out / "report.html").read_text(encoding="utf-8")
    assert html.count("<svg") == 3 and 'src="' not in html  # one file, nothing to load


def test_the_quickstart_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.quickstart"]
    done = subprocess.run(
        command, cwd=tmp_path, env=_importable(), capture_output=True, text=True, timeout=3_000, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def _importable() -> dict[str, str]:
    """The environment, with the repository's root importable from any folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_dlrm_learns_with_two_trainers_on_two_shards(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.dlrm"]
    asked = subprocess.run([*command, "config"], cwd=ROOT, capture_output=True, text=True, check=True)
    config = tmp_path / "cluster.yaml"
    config.write_text(json.dumps({**json.loads(asked.stdout), "host": f"unix:{tmp_path}"}), encoding="utf-8")
    up = [sys.executable, "-m", "ps_server.cli", "up", "--config", str(config)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    endpoints = ",".join(f"unix:{tmp_path}/shard-{shard:04}.sock" for shard in range(2))
    with subprocess.Popen(up, cwd=tmp_path, env=_importable(), stdout=subprocess.DEVNULL) as cluster:
        try:
            done = subprocess.run(
                [*torchrun, *command[1:], endpoints],
                cwd=ROOT, capture_output=True, text=True, timeout=3_000, check=False,
            )  # fmt: skip
        finally:
            cluster.terminate()
    assert done.returncode == 0, done.stderr
    found = re.findall(r"trainer \d: AUC (\d\.\d+)", done.stdout)
    assert len(found) == 2 and min(map(float, found)) > 0.75
