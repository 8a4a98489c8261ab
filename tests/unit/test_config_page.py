# SPDX-License-Identifier: Apache-2.0
"""docs/config.md names every key and every kind of the config, and its examples load."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from ps_server.config.cluster import ClusterConfig, load_config

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "config.md").read_text(encoding="utf-8")
PROSE = re.sub(r"^```.*?^```$", "", PAGE, flags=re.DOTALL | re.MULTILINE)
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def words(annotation: Any) -> Iterator[str]:
    """Field names of the models that a type reaches, and the words that its literals allow."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            yield name
            yield from words(field.annotation)
    else:
        for part in get_args(annotation):
            if not isinstance(part, str):
                yield from words(part)


WORDS = sorted(set(words(ClusterConfig)))


def test_the_walk_reaches_every_part_of_the_config() -> None:
    deep = {"fsync", "bf16", "refuse", "normal", "l21", "tensorflow", "width_bits", "ttl_s", "min_score"}
    assert deep <= set(WORDS)


@pytest.mark.parametrize("word", WORDS)
def test_the_page_names_it(word: str) -> None:
    assert f"`{word}`" in PROSE


@pytest.mark.parametrize("text", BLOCKS)
def test_an_example_loads(text: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_config(path).data_dir == tmp_path / "data"


def test_there_are_examples() -> None:
    assert len(BLOCKS) == 2
