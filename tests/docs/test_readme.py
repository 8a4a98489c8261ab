# SPDX-License-Identifier: Apache-2.0
"""What the README and docs/ show does run: Python blocks, configs, commands, folders."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from rowhouse.error import RowhouseError, error_class_names

from benchmarks import goal_table, result
from ps_server.config.cluster import load_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CLUSTER = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
FIRST = (ROOT / "docs" / "first_model.md").read_text(encoding="utf-8")
OPERATING = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[tuple[int, str]]:
    """(line, text) of each fenced block of `language`."""
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, m.start()) + 1, m[1]) for m in found]


PYTHON = [
    pytest.param(source, page.name != "checkpoints.md", id=f"{page.name}:{line}")
    for page in PAGES
    for line, source in blocks(page.read_text(encoding="utf-8"), "python")
]


@pytest.mark.parametrize(("source", "strict"), PYTHON)
def test_a_python_block_runs(source: str, strict: bool, tmp_path: Path) -> None:
    """Each on its own, in an empty folder, warnings being errors but where others write checkpoints."""
    script = tmp_path / "block.py"
    script.write_text(source, encoding="utf-8")
    command = [sys.executable, *(["-W", "error"] if strict else []), str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=3_000, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_fifteen_lines_are_fifteen_and_learn(tmp_path: Path) -> None:
    """The model, without the line that prints what it has learnt."""
    ((_, first),) = blocks(README, "python")
    lines = [line for line in first.splitlines() if line.strip()]
    assert lines[-1].startswith("print(") and len(lines) - 1 <= 15
    done = subprocess.run(
        [sys.executable, "-c", first], cwd=tmp_path, capture_output=True, text=True, timeout=3_000, check=True
    )
    assert float(done.stdout.removeprefix("loss ")) < 0.35  # below 0.1 mostly, a coin 0.69


def test_the_first_config_of_a_cluster_is_valid(tmp_path: Path) -> None:
    (_, text), *_ = blocks(CLUSTER, "yaml")
    path = tmp_path / "cluster.yaml"
    path.write_text(text, encoding="utf-8")
    config = load_config(path)
    assert config.shard_count == 2
    asked = re.findall(r"--endpoints (\S+)", CLUSTER + OPERATING)
    asked += re.findall(r'connect\("(127[^"]+)"\)', CLUSTER)
    assert len(asked) > 5 and set(asked) == {",".join(config.endpoints)}


@pytest.mark.parametrize("text", [text for _, text in blocks(CLUSTER + FIRST, "yaml")])
def test_a_config_of_a_cluster_loads(text: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_config(path).data_dir == tmp_path / "data"


def test_the_config_errors_are_what_is_printed(tmp_path: Path) -> None:
    (_, text), *_ = blocks(CLUSTER, "yaml")
    path = tmp_path / "cluster.yaml"
    wrong = text.replace("dim: 16", "dim: 2000").replace("    dtype:", "    dtyp:")
    path.write_text(wrong, encoding="utf-8")
    with pytest.raises(RowhouseError) as caught:
        load_config(path)
    printed = str(caught.value).replace(f"{tmp_path}/", "")
    assert f"```text\n{printed}\n```" in CLUSTER


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"\bmake ([a-z]+)\b", README))
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_map_of_folders_is_the_repository() -> None:
    listed = set(re.findall(r"^\| `([a-z_]+)/` \|", README, re.MULTILINE))
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folders = {p.split("/")[0] for p in tracked.splitlines() if "/" in p and not p.startswith(".")}
    assert listed == folders


def test_every_exit_code_is_explained() -> None:
    listed = {int(c) for c in re.findall(r"^\| (\d+) \|", OPERATING, re.MULTILINE)}
    assert listed == {0} | {c.exit_code for c in error_class_names().values()}


def test_the_measured_table_is_the_kept_result() -> None:
    """`make figures` writes it; by hand: `python -m benchmarks table --write docs/performance.md`."""
    made = goal_table.table(result.load(goal_table.RESULT))
    assert goal_table.replaced(PERFORMANCE, made) == PERFORMANCE


def test_the_readmes_figures_are_in_the_measured_table() -> None:
    """Change them by hand when the table has changed."""
    section = README.partition("## Eight figures")[2].partition("\n## ")[0]
    rows = [line.split("|")[2:4] for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 8
    known = set(re.findall(r"[\d.,]*\d", goal_table.table(result.load(goal_table.RESULT))))
    shown = set(
        re.findall(r"[\d.,]*\d", re.sub(r"\d-way", "", " ".join(cell for row in rows for cell in row)))
    )
    assert shown <= known, shown - known
