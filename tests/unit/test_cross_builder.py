# SPDX-License-Identifier: Apache-2.0
"""The Python builder gives the config that YAML gives, key for key and id for id."""

import re
from pathlib import Path
from typing import Any

import pytest
from rowhouse.document import parse_document

from feature_cross import Builder, ConfigError, load
from feature_cross.config.loader import load_text

PAGE = Path(__file__).resolve().parents[2] / "docs" / "feature_cross.md"


def rebuilt(document: dict[str, Any]) -> Builder:
    """The builder's calls for a config."""
    builder = Builder(document.get("ids", {}).get("slot_bits"))
    for name, entity in document["entities"].items():
        made = builder.entity(name, entity.get("key"))
        for attribute, keys in entity["attributes"].items():
            assert made.attribute(attribute, **keys) == f"{name}.{attribute}"
    for name, feature in document["features"].items():
        keys = {key: value for key, value in feature.items() if key != "kind"}
        assert getattr(builder, feature["kind"])(name, **keys) == name
    return builder


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL))
def test_the_documented_configs_come_out_the_same(text: str) -> None:
    builder = rebuilt(parse_document(text, "page").value)
    written = builder.to_yaml()
    whole = load_text(text).model_dump()
    assert load_text(written).model_dump() == builder.build().model_dump() == whole
    assert list(load_text(written).features) == list(load_text(text).features)


def test_what_is_declared_twice_or_wrong_is_an_error() -> None:
    builder = Builder()
    user = builder.entity("user", key="id")
    user.attribute("id", "int")
    builder.attribute("f", of="user.id")
    for again in (lambda: builder.entity("user"), lambda: builder.attribute("f", of="user.id")):
        with pytest.raises(ConfigError, match="is declared twice"):
            again()
    with pytest.raises(ConfigError, match="attribute of user 'id' is declared twice"):
        user.attribute("id", "int")
    builder.weak("g", of=["user.id", "user.x"])
    with pytest.raises(ConfigError, match=r"features.g.of\[1\]: 'user.x' is neither"):
        builder.build()


def test_a_mapping_is_the_callers_own() -> None:
    builder = Builder(slot_bits=4)
    item = builder.entity("item")
    builder.attribute("f", of=item.attribute("price", "int", buckets={"edges": (1, 2)}), slot=1)
    builder.to_mapping()["features"].clear()
    assert load(builder.to_mapping()).model_dump() == builder.build().model_dump()
    assert "edges: [1, 2]" in builder.to_yaml()
