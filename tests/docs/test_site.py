# SPDX-License-Identifier: Apache-2.0
"""The documentation site builds without a warning, and links between pages lead somewhere, also on GitHub."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

import feature_cross
import ps_client
import ps_client.torch
from ps_server.config.cluster import ClusterConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Where a link into the page can go: GitHub makes an anchor of each heading."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> list[str]:
    """Relative links of a page whose file or anchor is not there."""
    found = []
    for target in LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue  # another host; nothing here asks it
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    assert dead_links(page) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    other.write_text("# Top\n\n## A `key`, and more\n", encoding="utf-8")
    page.write_text(
        "[a](other.md#a-key-and-more) [b](other.md#b) [c](none.md) [d](#d) [e](https://e.example)\n"
    )
    assert dead_links(page) == ["other.md#b", "none.md", "#d"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_list_begins_after_an_empty_line(page: Path) -> None:
    """The site shows it as running text otherwise; GitHub does not mind."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    item = r"(?:[-*]|1\.) "
    assert re.findall(rf"^(?!{item}|#| |\|)(.+)\n{item}", text, re.MULTILINE) == []


def collect(annotation: Any, found: list[type[BaseModel]]) -> None:
    """Every model that a config of the annotated type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation not in found:
        found.append(annotation)
        for field in annotation.model_fields.values():
            collect(field.annotation, found)
    for part in get_args(annotation):
        collect(part, found)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """And asks no other host for anything, and its reference has every public name."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
        timeout=3_000, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    pages = {page.name: page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html")}
    fetched = re.compile(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?(?:https?:)?//")
    assert [name for name, text in pages.items() if fetched.search(text)] == []
    reference = "".join(page.read_text(encoding="utf-8") for page in (tmp_path / "reference").glob("*.html"))
    for module in (ps_client, ps_client.torch, feature_cross):
        for name in module.__all__:
            assert f'id="{module.__name__}.{name}"' in reference, f"{module.__name__}.{name}"
    models: list[type[BaseModel]] = []
    for config in (ClusterConfig, feature_cross.CrossConfig):
        collect(config, models)
    for model in models:
        assert f'id="{model.__module__}.{model.__qualname__}"' in reference, model
