# SPDX-License-Identifier: Apache-2.0
"""The commands that the pages by task show run, one after another, as they stand there.

They run in one folder, on the first config of docs/cluster.md. Only the ports are others, and the table has
an eviction policy, as docs/operating.md asks for.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rowhouse.document import dump, parse_document, read_document

from ps_client import connect
from tests.process import ServerProcess

DOCS = Path(__file__).resolve().parents[2] / "docs"
MODULES = {
    "psctl": "ps_server.psctl", "ps-server": "ps_server.cli", "feature-cross": "feature_cross.author.cli",
    "torchrun": "torch.distributed.run",
}  # fmt: skip


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def commands(text: str) -> list[str]:
    """Lines of the console blocks, without their comments."""
    found = re.findall(r"^```console\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [line.removeprefix("$ ").split("#")[0].strip() for line in "".join(found).splitlines()]


def run(command: str, folder: Path, *codes: int) -> str:
    """What a command prints; its exit code is 0, or one of `codes`."""
    program, *flags = command.split()
    done = subprocess.run(
        [sys.executable, "-m", MODULES[program], *flags],
        cwd=folder, capture_output=True, text=True, timeout=3_000, check=False,
    )  # fmt: skip
    assert done.returncode in (0, *codes), f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ServerProcess]:
    (text,) = re.findall(
        r"^```yaml\n(# cluster\.yaml\n.*?)^```$", page("cluster.md"), re.DOTALL | re.MULTILINE
    )
    config = parse_document(text, "cluster.md").value
    config.update(data_dir=str(tmp_path / "data"), base_port=0, memory_budget="64MiB")
    config["tables"][0]["eviction"] = [{"kind": "l2_norm", "min_l2_norm": 1e-9}]
    bigger = {**config, "shards": 3}
    (tmp_path / "bigger.yaml").write_text(dump(bigger), encoding="utf-8")
    with ServerProcess("up", config) as server:
        yield server


def test_the_commands_of_the_operating_page_run(cluster: ServerProcess, tmp_path: Path) -> None:
    endpoints = cluster.endpoints()
    ids = np.arange(1000)
    with connect(endpoints) as client:
        client.push("user", ids, np.ones((1000, 16), np.float32))
        saved = client.pull("user", ids)
        client.save_tables("before-monday")
        client.push("user", ids, np.ones((1000, 16), np.float32))
    running: list[str] = []
    stopped: list[str] = []
    for command in commands(page("operating.md")):
        (running if "--endpoints" in command else stopped).append(command)
    assert len(running) >= 5 and len(stopped) >= 5
    for command in running:
        run(re.sub(r"127\.0\.0\.1:7470,127\.0\.0\.1:7471", endpoints, command), tmp_path)
    assert cluster.stop() == 0
    for command in sorted(stopped, key=lambda line: line.startswith("ps-server restore")):
        run(command, tmp_path)  # the restore last: after it the page says to start the cluster
    assert sorted(path.name for path in (tmp_path / "bigger").glob("shard-*")) == [
        "shard-0000", "shard-0001", "shard-0002",
    ]  # fmt: skip
    again = read_document(cluster.config_path).value
    with ServerProcess("up", again) as server, connect(server.endpoints()) as client:
        np.testing.assert_array_equal(client.pull("user", ids), saved)
        assert server.stop() == 0


def test_the_commands_that_plan_run(tmp_path: Path) -> None:
    """But `--check`, which takes minutes, and `--estimate`, which needs data."""
    (config,) = re.findall(r"^```yaml\n(.*?)^```$", page("first_model.md"), re.DOTALL | re.MULTILINE)
    (tmp_path / "cluster.yaml").write_text(config, encoding="utf-8")
    asked = [line for line in commands(page("cluster.md") + page("plan.md")) if line.startswith("psctl plan")]
    asked = [line for line in asked if "--check" not in line and "--estimate" not in line]
    assert len(asked) >= 4
    for command in asked:
        assert "1 TB" in run(command, tmp_path)


def test_two_trainers_run_as_the_page_says(cluster: ServerProcess, tmp_path: Path) -> None:
    text = page("training_together.md")
    (program,) = re.findall(r'^```python title="train\.py"\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)
    (tmp_path / "train.py").write_text(program, encoding="utf-8")
    (command,) = [line for line in commands(text) if line.startswith("torchrun")]
    printed = run(re.sub(r"127\.0\.0\.1:7470,127\.0\.0\.1:7471", cluster.endpoints(), command), tmp_path)
    said = r"trainer \d: \d+ steps"  # of two processes: a line's end may come after the other one's line
    assert sorted(re.findall(said, printed)) == ["trainer 0: 50 steps", "trainer 1: 50 steps"]
    assert not re.sub(said, "", printed).strip()


def test_the_commands_of_crosses_run(tmp_path: Path) -> None:
    """On rows of the page's click log; an explained id is looked up where it is in the dictionary."""
    blocks = re.findall(r"^```yaml\n(.*?)^```$", page("feature_cross.md"), re.DOTALL | re.MULTILINE)
    (tmp_path / "crosses.yaml").write_text(blocks[0], encoding="utf-8")
    rng, rows = np.random.default_rng(0), 6000
    columns = {
        "user_id": rng.integers(0, 500, rows), "age_band": rng.choice(["18-25", "26-35"], rows),
        "city": rng.choice(["Oslo", "Turin"], rows), "item_id": rng.integers(0, 300, rows),
        "category": rng.choice(["shoes", "books", "games"], rows), "price": rng.random(rows) * 90,
        "recent_categories": [list(rng.choice(["shoes", "books"], 2)) for _ in range(rows)],
        "time": np.arange(rows), "clicked": rng.random(rows) < 0.3,
    }  # fmt: skip
    columns["label"] = columns["clicked"]
    pq.write_table(pa.table(columns), tmp_path / "clicks.parquet")
    asked = commands(page("feature_cross.md")) + commands(page("estimate.md"))
    assert len(asked) >= 10
    for command in asked:
        names = tmp_path / "names.parquet"
        known = hex(pq.read_table(names)["id"][0].as_py()) if names.exists() else ""
        run(re.sub(r"\b0x[0-9a-f]+", known, command), tmp_path, 3)  # 3: past the budget
    estimate = run("feature-cross estimate crosses.yaml clicks.parquet --json", tmp_path)
    (tmp_path / "estimate.json").write_text(estimate, encoding="utf-8")
    (plan,) = [line for line in commands(page("plan.md")) if "--estimate" in line]
    assert "machines" in run(plan, tmp_path)
