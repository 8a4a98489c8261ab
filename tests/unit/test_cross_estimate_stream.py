# SPDX-License-Identifier: Apache-2.0
"""`feature-cross estimate` on the way: Ctrl-C, and memory that does not grow with the rows."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from feature_cross import Engine, load
from feature_cross.author.estimate.measure import Measurement, measure


def test_ctrl_c_tells_what_was_read() -> None:
    """The signal comes while the sixth of a billion batches is made."""
    script = """
import os, signal, sys
import numpy as np, pyarrow as pa
from feature_cross import load
from feature_cross.author.estimate.measure import measure
config = load({"entities": {"e": {"attributes": {"a": {"type": "int"}}}},
               "features": {"f": {"kind": "attribute", "of": "e.a"}}})
def batches():
    for number in range(10**9):
        if number == 5:
            os.kill(os.getpid(), signal.SIGINT)
        yield pa.record_batch({"a": np.arange(1000) + 1000 * number})
found = measure(config, batches(), threads=int(sys.argv[1]))
print(found.stopped, found.rows, found.features["f"].distinct.count)
"""
    for threads in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script, threads], capture_output=True, text=True, timeout=1_200, check=True
        )
        stopped, rows, distinct = done.stdout.split()
        assert stopped == "interrupt" and 2000 <= int(rows) <= 12_000
        assert float(distinct) == int(rows)


def test_the_command_says_that_it_was_interrupted(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "entities: {e: {attributes: {a: {type: int}}}}\nfeatures: {f: {kind: attribute, of: e.a}}\n"
    )
    pa.parquet.write_table(pa.table({"a": np.arange(30_000_000) % 1000}), tmp_path / "t.parquet")
    command = [
        sys.executable,
        "-m",
        "feature_cross.author.cli",
        "estimate",
        "c.yaml",
        "t.parquet",
        "--json",
        "--threads",
        "1",
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    seen = 0
    for _ in range(600):  # until it reads: counting the rows opens the file too, but only for a moment
        time.sleep(0.1)
        seen = seen + 1 if any("t.parquet" in target for target in _open_files(process.pid)) else 0
        if seen == 3:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=1_200)
    found = json.loads(out)
    assert process.returncode == 130
    assert found["stopped"] == "interrupt" and 0 < found["rows_read"] < 30_000_000
    assert f"this is of the first {found['rows_read']:,} rows" in err


def _open_files(pid: int) -> list[str]:
    folder = Path(f"/proc/{pid}/fd")
    found = []
    for entry in folder.iterdir():
        try:
            found.append(str(entry.readlink()))
        except FileNotFoundError:
            continue
    return found


def test_memory_does_not_grow_with_rows() -> None:
    """Ten times the rows, all of them new ids: the tables stay as they are."""

    def held(rows: int) -> int:
        config = load(
            {
                "entities": {"e": {"attributes": {"a": {"type": "int"}}}},
                "features": {"f": {"kind": "attribute", "of": "e.a"}},
            }
        )
        batches = (
            pa.record_batch({"a": np.arange(first, first + 10_000)}) for first in range(0, rows, 10_000)
        )
        found: Measurement = measure(config, batches, sample_ids=1024)
        sample = found.features["f"].sample
        return sum(getattr(sample, name).nbytes for name in ("_keys", "_checks", "_counts", "_firsts"))

    assert held(300_000) == held(30_000) == 4 * 8 * 2048


def test_a_parquet_file_that_was_read_is_not_kept(tmp_path: Path) -> None:
    """Arrow's own count of bytes held, after the first row group and after the last."""
    random = np.random.default_rng(0)
    data = pa.table({"a": random.integers(0, 2**62, 2_000_000)})
    pa.parquet.write_table(data, tmp_path / "t.parquet", row_group_size=100_000, compression="none")
    del data
    config = load(
        {
            "entities": {"e": {"attributes": {"a": {"type": "int"}}}},
            "features": {"f": {"kind": "attribute", "of": "e.a"}},
        }
    )
    held: list[int] = []
    for _ in Engine(config).transform_stream(str(tmp_path / "t.parquet")):
        held.append(pa.total_allocated_bytes())
    assert held[-2] - held[2] < 4_000_000, "the file has 16 MB"
