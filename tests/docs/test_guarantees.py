# SPDX-License-Identifier: Apache-2.0
"""docs/guarantees.md: each promise names tests, and each test is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "guarantees.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def promises(text: str) -> dict[str, list[tuple[str, str]]]:
    """Tests of each promise (a heading of the third level), as (file, function)."""
    sections = re.split(
        r"^### ", re.split(r"^## What is not promised", text, flags=re.MULTILINE)[0], flags=re.M
    )
    return {section.partition("\n")[0]: NAMED.findall(section) for section in sections[1:]}


def missing(text: str) -> list[str]:
    """Promises without a test, and tests that are not there."""
    found = [f"no test: {promise}" for promise, tests in promises(text).items() if not tests]
    for file, name in NAMED.findall(text):
        path = ROOT / file
        functions = {
            node.name
            for node in (ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if path.is_file() else ())
            if isinstance(node, ast.FunctionDef)
        }
        if name not in functions:
            found.append(f"{file}::{name}")
    return found


def test_each_promise_names_tests_that_are_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(promises(text)) > 10
    assert missing(text) == []


@pytest.mark.parametrize(
    "wrong", ["tests/nothing.py::test_it", "tests/docs/test_guarantees.py::test_nothing"]
)
def test_a_promise_without_a_test_is_found(wrong: str) -> None:
    assert missing(f"## A\n\n### B\n\nTests: `{wrong}`.\n") == [wrong]
    assert missing("## A\n\n### B\n\nText.\n\n## What is not promised\n\n### C\n") == ["no test: B"]
