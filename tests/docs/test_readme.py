# SPDX-License-Identifier: Apache-2.0
"""What the README and docs/ show does run: Python blocks, configs, commands, folders."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from rowhouse.error import RowhouseError, error_class_names

from benchmarks import readme, result
from ps_server.config.cluster import load_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[tuple[int, str]]:
    """(line, text) of each fenced block of `language`."""
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, m.start()) + 1, m[1]) for m in found]


PYTHON = [
    pytest.param(source, id=f"{page.name}:{line}")
    for page in PAGES
    for line, source in blocks(page.read_text(encoding="utf-8"), "python")
]


@pytest.mark.parametrize("source", PYTHON)
def test_a_python_block_runs(source: str, tmp_path: Path) -> None:
    """Each on its own, in an empty folder, warnings being errors."""
    script = tmp_path / "block.py"
    script.write_text(source, encoding="utf-8")
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_fifteen_lines_are_fifteen() -> None:
    (_, first), *_ = blocks(README, "python")
    statements = [line for line in first.splitlines() if line.strip()]
    assert len(statements) <= 15


def test_the_readmes_config_is_valid(tmp_path: Path) -> None:
    ((_, text),) = blocks(README, "yaml")
    path = tmp_path / "cluster.yaml"
    path.write_text(text, encoding="utf-8")
    config = load_config(path)
    assert config.shard_count == 2
    asked = re.search(r"psctl stats --endpoints (\S+)", README)
    assert asked and asked[1] == ",".join(config.endpoints)


def test_the_readmes_config_errors_are_what_is_printed(tmp_path: Path) -> None:
    ((_, text),) = blocks(README, "yaml")
    path = tmp_path / "cluster.yaml"
    wrong = text.replace("dim: 16", "dim: 2000").replace("    dtype:", "    dtyp:")
    path.write_text(wrong, encoding="utf-8")
    with pytest.raises(RowhouseError) as caught:
        load_config(path)
    printed = str(caught.value).replace(f"{tmp_path}/", "")
    assert f"```text\n{printed}\n```" in README


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
    listed = {int(c) for c in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    assert listed == {0} | {c.exit_code for c in error_class_names().values()}


def test_the_measured_table_is_the_kept_result() -> None:
    """`python -m benchmarks readme --write README.md` after benchmarks/result.json changed."""
    made = readme.table(result.load(readme.RESULT))
    assert readme.replaced(README, made) == README
