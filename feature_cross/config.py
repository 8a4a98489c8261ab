# SPDX-License-Identifier: Apache-2.0
"""The config language: entities, their attributes, and the features over them.

It says which values are legal one by one; what they mean together (references, slots, cycles, families)
is feature_cross/plan.py. docs/feature_cross.md is its manual. All models are frozen, and an unknown key
is an error. Thread safety: a config is immutable.
"""

import math
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from feature_cross.error import Path
from feature_cross.limit import (
    EDGES_MAX,
    FEATURES_MAX,
    IDS_PER_ROW_MAX,
    NAME_CHARACTERS_MAX,
    OPERANDS_MAX,
    SLOT_BITS_MAX,
)

__all__ = [
    "Attribute", "AttributeFeature", "Buckets", "CategoricalFeature", "CombinationFeature", "CrossConfig",
    "Entity", "Feature", "Ids", "InteractionFeature", "LogBuckets", "Slots", "WeakFeature",
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
Missing = Literal["drop", "own_id", "error"]
Normaliser = Literal["strip", "lower", "ascii_lower", "nfc", "nfkc"]
DatePart = Literal["year", "month", "day", "date", "weekday", "hour", "minute", "hour_of_week"]
SubsetSize = Annotated[int, Field(ge=1, le=OPERANDS_MAX, strict=True)]
Operands = Annotated[tuple[Reference, ...], Field(min_length=2, max_length=OPERANDS_MAX)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Ids(_Model):
    """How a feature's 64-bit hash becomes an id."""

    slot_bits: Annotated[int, Field(ge=1, le=SLOT_BITS_MAX, strict=True)] | None = None
    """Top bits that hold the feature's slot; null: the whole id is hash."""


class LogBuckets(_Model):
    """Edges start, start*base, start*base^2, … up to and including `stop`, each rounded once."""

    base: Annotated[float, Field(gt=1, le=1e6, allow_inf_nan=False)]
    """Ratio of an edge to the one before it."""
    start: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """First edge."""
    stop: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """No edge is above it."""


class Buckets(_Model):
    """Cuts numbers into intervals [edge, next edge), the first from minus infinity."""

    edges: Annotated[tuple[float, ...], Field(min_length=1, max_length=EDGES_MAX)] | None = None
    """Strictly rising, finite."""
    log: LogBuckets | None = None
    """Edges in a geometric series, instead of `edges`."""

    _lower: tuple[float, ...] = PrivateAttr(default=())

    @property
    def lower_edges(self) -> tuple[float, ...]:
        """Lower edge of each bucket, minus infinity first; a log series is exact, each edge rounded once."""
        return self._lower

    @model_validator(mode="after")
    def _one_way(self) -> "Buckets":
        if (self.edges is None) == (self.log is None):
            raise ValueError("give exactly one of edges and log")
        if self.edges is not None:
            for low, high in zip(self.edges, self.edges[1:], strict=False):
                if not low < high:
                    raise ValueError(f"edges must rise; {high} follows {low}")
            if not all(math.isfinite(edge) for edge in self.edges):
                raise ValueError("edges must be finite; the outermost intervals are open anyway")
            self._lower = (-math.inf, *(edge + 0.0 for edge in self.edges))  # -0.0 and 0.0 are one edge
        if self.log is not None:
            self._lower = (-math.inf, *_log_edges(self.log))
        return self


def _log_edges(log: LogBuckets) -> list[float]:
    edges: list[float] = []
    edge, base = Fraction(log.start), Fraction(log.base)
    while edge <= log.stop:
        edges.append(float(edge))
        edge *= base
        if len(edges) > EDGES_MAX:
            raise ValueError(f"gives more than {EDGES_MAX} edges; raise base or lower stop")
    if not edges:
        raise ValueError(f"log gives no edge: stop {log.stop} is below start {log.start}")
    return edges


_ONLY_FOR: dict[str, tuple[str, ...]] = {
    "normalise": ("string",),
    "empty_is_missing": ("string",),
    "buckets": ("int", "float"),
    "part": ("date",),
}
"""Keys of an attribute that mean something for some types only. Elsewhere they are refused, not ignored."""


class Attribute(_Model):
    """One column, and how its values are read."""

    type: Literal["int", "string", "float", "bool", "date"]
    """What a value is. 7 and "7" have different ids; the type says which one is meant."""
    column: Annotated[str, Field(min_length=1)] | None = None
    """Column of the data; the attribute's own name if absent."""
    list: Annotated[bool, Field(strict=True)] = False
    """The column holds a list of values per row."""
    missing: Missing = "drop"
    """A null: gives no id, has an id of its own, or is an error."""
    normalise: tuple[Normaliser, ...] = ()
    """Steps applied to each string, in this order; none unless asked for."""
    empty_is_missing: Annotated[bool, Field(strict=True)] = False
    """Treat "" (after normalisation) as a null."""
    buckets: Buckets | None = None
    """Intervals of an int or float. A float must have them: floats that look equal differ in a last bit."""
    part: DatePart | None = None
    """Which part of a date (UTC if the column has a time zone) is the value."""
    cast: Annotated[bool, Field(strict=True)] = False
    """Convert the column first: text to numbers, dates or bools, or integers to decimal text."""
    max_length: Annotated[int, Field(ge=1, strict=True)] | None = None
    """Most elements of the list that count."""
    keep: Literal["last", "first"] | None = None
    """Which end of a list past max_length counts; `last` if absent (histories are appended to)."""

    @model_validator(mode="after")
    def _fits_type(self) -> "Attribute":
        for key, types in _ONLY_FOR.items():
            if getattr(self, key) and self.type not in types:
                raise ValueError(f"{key} does not apply to type {self.type}, only to {' and '.join(types)}")
        if self.type == "float" and self.buckets is None:
            raise ValueError("a raw float makes one id per last bit; give buckets (edges or log)")
        if self.type == "date" and self.part is None:
            raise ValueError(
                "a date needs a part: year, month, day, date, weekday, hour, minute or hour_of_week"
            )
        if not self.list and (self.max_length is not None or self.keep is not None):
            raise ValueError("max_length and keep apply to lists only; set list: true")
        if self.keep is not None and self.max_length is None:
            raise ValueError("keep does nothing without max_length")
        if len(set(self.normalise)) != len(self.normalise):
            raise ValueError(f"a normalisation step is given twice in {list(self.normalise)}")
        return self


class Entity(_Model):
    """Something that has attributes: a user, an item, a team, the context."""

    key: Name | None = None
    """The attribute that identifies the entity, if it is here; lets `check` find futile crosses."""
    attributes: Annotated[dict[Name, Attribute], Field(min_length=1)]
    """Attributes by name."""


class _Feature(_Model):
    seed: Seed | None = None
    """Seed of the ids: a number, or a text to derive it from. The feature's own name if absent."""
    share: Reference | None = None
    """Another feature whose slot and seed this one takes: equal values then have equal ids in both."""
    missing: Missing | None = None
    """Overrides the policy of the attributes, in this feature only."""
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


class Slots(_Model):
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


class CrossConfig(_Model):
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
    _lines: dict[Path, int] = PrivateAttr(default_factory=dict)

    @field_validator("features", "entities", mode="before")
    @classmethod
    def _is_mapping(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"must map names to declarations, not be a {type(value).__name__}")
        return value

    @property
    def source(self) -> str:
        """Name of the file that it was read from, or `config`."""
        return self._source

    def line(self, path: Path) -> int | None:
        """Line of the longest part of `path` that the file has; None for a config built from a mapping."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path)
