# SPDX-License-Identifier: Apache-2.0
"""The config language: entities, their attributes, and the features over them.

It says which values are legal one by one; what they mean together (references, slots, cycles, families)
is config/plan.py. docs/feature_cross.md is its manual. All models are frozen, and an unknown key
is an error. Thread safety: a config is immutable.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator
from rowhouse.problem import Path, line_of, with_article

from feature_cross.config.attribute import Attribute, Missing, Model
from feature_cross.config.condition import Condition
from feature_cross.limit import (
    CONDITIONS_MAX,
    FEATURES_MAX,
    IDS_PER_ROW_MAX,
    NAME_CHARACTERS_MAX,
    OPERANDS_MAX,
    SLOT_BITS_MAX,
)

__all__ = [
    "AttributeFeature", "CategoricalFeature", "CombinationFeature", "CrossConfig", "Entity", "Feature", "Ids",
    "InteractionFeature", "Slots", "WeakFeature",
]  # fmt: skip

Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=NAME_CHARACTERS_MAX)]
Reference = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?$", max_length=2 * NAME_CHARACTERS_MAX + 1
    ),
]
Slot = Annotated[int, Field(ge=0, lt=1 << SLOT_BITS_MAX, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=1 << 64, strict=True)] | Annotated[str, Field(min_length=1)]
SubsetSize = Annotated[int, Field(ge=1, le=OPERANDS_MAX, strict=True)]
Operands = Annotated[tuple[Reference, ...], Field(min_length=2, max_length=OPERANDS_MAX)]


class Ids(Model):
    """How a feature's 64-bit hash becomes an id."""

    slot_bits: Annotated[int, Field(ge=1, le=SLOT_BITS_MAX, strict=True)] | None = None
    """Top bits that hold the feature's slot; null: the whole id is hash."""


class Entity(Model):
    """Something that has attributes: a user, an item, a team, the context."""

    key: Name | None = None
    """The attribute that identifies the entity, if it is here; lets `check` find futile crosses."""
    attributes: Annotated[dict[Name, Attribute], Field(min_length=1)]
    """Attributes by name."""


class _Feature(Model):
    seed: Seed | None = None
    """Seed of the ids: a number, or a text to derive it from. The feature's own name if absent."""
    share: Reference | None = None
    """Another feature whose slot and seed this one takes: equal values then have equal ids in both."""
    missing: Missing | None = None
    """Overrides the policy of the attributes, in this feature only."""
    when: Annotated[dict[Reference, Condition], Field(min_length=1, max_length=CONDITIONS_MAX)] | None = None
    """Conditions by entity.attribute; in a row that does not meet them all the feature has no id."""
    emit: Annotated[bool, Field(strict=True)] = True
    """False: only other features use it; it has no slot and no output."""
    limit: Annotated[int, Field(ge=1, le=IDS_PER_ROW_MAX, strict=True)] | None = None
    """Most ids for one row."""
    past_limit: Literal["error", "cut"] | None = None
    """A row past `limit` is an error (if absent), or keeps its first ids."""

    @model_validator(mode="after")
    def _share_is_alone(self) -> "_Feature":
        if self.share is not None:
            given = [key for key in ("slot", "slots", "seed") if getattr(self, key, None) is not None]
            if given:
                raise ValueError(f"share takes slot and seed from {self.share}, so {given[0]} does nothing")
            if getattr(self, "form", None) == "all":
                raise ValueError(
                    "share takes one feature's ids; declare one form: permutation, single or sorted"
                )
        return self

    @model_validator(mode="after")
    def _limit_is_given(self) -> "_Feature":
        if self.past_limit is not None and self.limit is None:
            raise ValueError("past_limit does nothing without limit")
        return self


class AttributeFeature(_Feature):
    """The id of one attribute's single value."""

    kind: Literal["attribute"]
    """Family."""
    slot: Slot | None = None
    """Number of the feature, unique and never reused."""
    of: Reference
    """entity.attribute"""


class CategoricalFeature(_Feature):
    """Attributes of one entity: finer classes of it."""

    kind: Literal["categorical"]
    """Family."""
    slot: Slot | None = None
    """Number of the feature, unique and never reused."""
    of: Operands
    """Attributes or features of one entity; their order is a part of the ids."""


class InteractionFeature(_Feature):
    """Attributes of different entities, n-way."""

    kind: Literal["interaction"]
    """Family."""
    slot: Slot | None = None
    """Number of the feature, unique and never reused."""
    of: Operands
    """Attributes or features of two or more entities; their order is a part of the ids."""


class WeakFeature(_Feature):
    """Attributes that need not co-occur in one event: of any entities and times, lists included."""

    kind: Literal["weak"]
    """Family."""
    slot: Slot | None = None
    """Number of the feature, unique and never reused."""
    of: Operands
    """Attributes or features; lists give every pairing. Their order is a part of the ids."""


class Slots(Model):
    """A slot for each of the three features that a combination gives."""

    permutation: Slot
    """Slot of NAME.permutation."""
    single: Slot
    """Slot of NAME.single."""
    sorted: Slot
    """Slot of NAME.sorted."""


class CombinationFeature(_Feature):
    """Features of one list: its arrangement, its elements, and its sorted subsets."""

    kind: Literal["combination"]
    """Family."""
    of: Reference
    """A list attribute, or a feature that gives many ids."""
    form: Literal["all", "permutation", "single", "sorted"] = "all"
    """`all` gives three features: NAME.permutation, NAME.single and NAME.sorted."""
    slots: Slots | None = None
    """Slots of the three, for form: all."""
    slot: Slot | None = None
    """Slot of the one, for any other form."""
    size: Literal["all"] | SubsetSize | Annotated[tuple[SubsetSize, ...], Field(min_length=1)] = "all"
    """Of `sorted`: the whole list as one id, or every subset of that many elements."""
    multiset: Annotated[bool, Field(strict=True)] = False
    """Of `sorted`: equal elements count each; false: once."""

    @field_validator("size", mode="before")
    @classmethod
    def _is_size(cls, value: Any) -> Any:
        sizes = value if isinstance(value, list | tuple) else [value]
        numbers = all(type(size) is int and 1 <= size <= OPERANDS_MAX for size in sizes)
        if value != "all" and not (numbers and sizes):
            raise ValueError(
                f"size is {value!r}; it must be all, a number from 1 to {OPERANDS_MAX}, or a list of them"
            )
        return value

    @property
    def sizes(self) -> tuple[int, ...]:
        """Subset sizes; empty when the whole list is one id."""
        if self.size == "all":
            return ()
        return (self.size,) if isinstance(self.size, int) else self.size

    @model_validator(mode="after")
    def _fits_form(self) -> "CombinationFeature":
        if self.form == "all":
            if self.slot is not None:
                raise ValueError(
                    "form: all gives three: use slots: {permutation:, single:, sorted:}, not slot"
                )
            if self.seed is not None:
                raise ValueError("form: all gives three features; declare one form each to set a seed")
        elif self.slots is not None:
            raise ValueError(f"form: {self.form} gives one feature: use slot instead of slots")
        if self.form in ("permutation", "single") and (self.size != "all" or self.multiset):
            raise ValueError(f"size and multiset apply to sorted combinations, not to form: {self.form}")
        if len(set(self.sizes)) != len(self.sizes):
            raise ValueError(f"a size is given twice in {list(self.sizes)}")
        return self


Feature = Annotated[
    AttributeFeature | CategoricalFeature | InteractionFeature | CombinationFeature | WeakFeature,
    Field(discriminator="kind"),
]


class CrossConfig(Model):
    """A whole config. Build it with `feature_cross.load`, which also checks what its parts mean together."""

    version: Literal[1] = 1
    """Version of this language and of the ids (docs/id_format.md)."""
    ids: Ids = Ids()
    """Layout of the ids."""
    entities: Annotated[dict[Name, Entity], Field(min_length=1)]
    """Entities by name."""
    features: Annotated[dict[Name, Feature], Field(min_length=1, max_length=FEATURES_MAX)]
    """Features by name; outputs keep this order, ids do not depend on it."""

    _source: str = PrivateAttr(default="config")
    _lines: Mapping[Path, int] = PrivateAttr(default_factory=dict)

    @field_validator("features", "entities", mode="before")
    @classmethod
    def _is_mapping(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"must map names to declarations, not be {with_article(type(value).__name__)}")
        return value

    @property
    def source(self) -> str:
        """Name of the file that it was read from, or `config`."""
        return self._source

    def line(self, path: Path) -> int | None:
        """Line of the longest part of `path` that the file has; None for a config built from a mapping."""
        return line_of(path, self._lines)
