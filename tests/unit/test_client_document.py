# SPDX-License-Identifier: Apache-2.0
"""docs/client.md prints what it says, and its tables name what there is."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ps_client
import ps_client.torch as modules

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "client.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_first_program_prints_what_it_says(tmp_path: Path) -> None:
    """That every block runs, each on its own, is tests/docs/test_readme.py."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCKS[0]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1_200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("8 ")


FACES: dict[type, str] = {
    kind: TEXT.split(heading)[1].split("\n## ")[0]
    for kind, heading in ((ps_client.Client, "\n## Client\n"), (ps_client.Pipeline, "\n## Pipelining\n"))
}
CALLS = [(kind, name) for kind in FACES for name in dir(kind) if not name.startswith("_")]


@pytest.mark.parametrize(("kind", "name"), CALLS)
def test_every_call_of_a_client_and_its_arguments_are_in_the_document(kind: type, name: str) -> None:
    rows = [line for line in FACES[kind].splitlines() if re.match(rf"\|.*`{name}[(`]", line)]
    assert rows, f"docs/client.md does not name {kind.__name__}.{name}"
    call = getattr(kind, name)
    if f"`{name}`" in rows[0]:
        return  # as of a client, where its arguments are named
    arguments = [] if isinstance(call, property) else list(inspect.signature(call).parameters)[1:]
    for argument in arguments:
        # What maps table names to arrays is written as the mapping itself, {table: ...}.
        assert argument in rows[0] or "{table:" in rows[0], f"docs/client.md, {name}: {argument} is missing"


@pytest.mark.parametrize("name", modules.__all__)
def test_every_torch_name_and_its_arguments_are_in_the_document(name: str) -> None:
    assert f"`{name}`" in TEXT or f"`{name}(" in TEXT or f"{name}." in TEXT, name
    if name.startswith("Embedding"):
        row = next(line for line in TEXT.splitlines() if line.startswith(f"| `{name}` |"))
        if name.endswith("Config"):  # their fields have a table
            row = TEXT
        for argument in list(inspect.signature(getattr(modules, name)).parameters):
            assert argument in row, f"docs/client.md, {name}: {argument} is missing"


def test_every_argument_of_connect_is_in_the_document() -> None:
    for argument in inspect.signature(ps_client.connect).parameters:
        assert f"| `{argument}` |" in TEXT
