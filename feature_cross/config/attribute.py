# SPDX-License-Identifier: Apache-2.0
"""One attribute of the config language: its column, its type, and how a value is cut and cleaned.

config/config.py holds entities and features. All models are frozen, and an unknown key is an error.
Thread safety: a model is immutable.
"""

import datetime
import math
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from feature_cross.limit import EDGES_MAX, NULLS_MAX

__all__ = ["AGE_UNITS_US", "Age", "Attribute", "Buckets", "LogBuckets", "Missing", "Model", "Recency"]

Missing = Literal["drop", "own_id", "error"]
Normaliser = Literal["strip", "lower", "ascii_lower", "nfc", "nfkc"]
DatePart = Literal["year", "month", "day", "date", "weekday", "hour", "minute", "hour_of_week"]
Unit = Literal["second", "minute", "hour", "day", "week"]
Column = Annotated[str, Field(min_length=1)]

AGE_UNITS_US = {
    "second": 10**6, "minute": 60 * 10**6, "hour": 3600 * 10**6, "day": 86_400 * 10**6,
    "week": 604_800 * 10**6,
}  # fmt: skip
"""Microseconds of each unit of an age. Months and years have no fixed length, so they are not here."""


class Model(BaseModel):
    """Base of everything in a config: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class LogBuckets(Model):
    """Edges start, start*base, start*base^2, … up to and including `stop`, each rounded once."""

    base: Annotated[float, Field(gt=1, le=1e6, allow_inf_nan=False)]
    """Ratio of an edge to the one before it."""
    start: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """First edge."""
    stop: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """No edge is above it."""


class Buckets(Model):
    """Cuts numbers into intervals [edge, next edge), the first from minus infinity."""

    edges: Annotated[tuple[float, ...], Field(min_length=1, max_length=EDGES_MAX)] | None = None
    """Strictly rising, finite."""
    quantiles: Annotated[int, Field(ge=2, le=EDGES_MAX, strict=True)] | None = None
    """Buckets of about equal count; `feature-cross fit` writes their edges beside it, into the config."""
    log: LogBuckets | None = None
    """Edges in a geometric series, instead of `edges`."""

    _lower: tuple[float, ...] = PrivateAttr(default=())

    @property
    def fitted(self) -> bool:
        """Whether it has edges; false for quantiles that no data has been seen for."""
        return self.edges is not None or self.log is not None

    @property
    def lower_edges(self) -> tuple[float, ...]:
        """Lower edge of each bucket, minus infinity first; a log series is exact, each edge rounded once."""
        return self._lower

    @model_validator(mode="after")
    def _one_way(self) -> "Buckets":
        if self.log is not None and self.quantiles is not None:
            raise ValueError("log and quantiles are two ways to choose edges; give one")
        if (self.edges is None) == (self.log is None) and self.quantiles is None:
            raise ValueError("give exactly one of edges and log, or quantiles")
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


class _Moment(Model):
    """A moment to look back from: a column of the row, or one fixed date."""

    column: Column | None = None
    """Column with the moment of each row: timestamps or dates."""
    date: Annotated[str, Field(min_length=1)] | None = None
    """One moment for all rows, ISO 8601 on the clock of UTC: 2026-01-01 or 2026-01-01T12:00:00."""
    unit: Unit
    """What is counted: second, minute, hour, day (24 hours) or week."""

    _moment_us: int | None = PrivateAttr(default=None)

    @property
    def moment_us(self) -> int | None:
        """`date` in microseconds since 1970; None where a column says it."""
        return self._moment_us

    @field_validator("date", mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        return value.isoformat() if isinstance(value, datetime.date) else value

    @model_validator(mode="after")
    def _one_moment(self) -> "_Moment":
        if (self.column is None) == (self.date is None):
            raise ValueError("give exactly one of column and date")
        if self.date is not None:
            try:
                moment = datetime.datetime.fromisoformat(self.date)
            except ValueError as error:
                raise ValueError(f"date is {self.date!r}; it must be ISO 8601, as 2026-01-01") from error
            moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)
            self._moment_us = (moment - _EPOCH) // datetime.timedelta(microseconds=1)
        return self


_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class Age(_Moment):
    """How long before a moment a date lies; negative when it lies after. Buckets cut it."""


class Recency(_Moment):
    """Keeps the elements of a list whose time is at most `within` units before a moment, and not after it."""

    times: Column
    """Column with the time of each element: a list as long as the attribute's, row by row."""
    within: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Oldest age that counts, in units."""


_ONLY_FOR: dict[str, tuple[str, ...]] = {
    "normalise": ("string",),
    "empty_is_missing": ("string",),
    "buckets": ("int", "float", "date"),
    "part": ("date",),
    "age": ("date",),
}
"""Keys of an attribute that mean something for some types only. Elsewhere they are refused, not ignored."""


class Attribute(Model):
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
    nulls: Annotated[tuple[str, ...], Field(max_length=NULLS_MAX)] = ()
    """Texts that stand for a null, as NA, from whatever source (after normalisation, or before `cast`)."""
    buckets: Buckets | None = None
    """Intervals of an int or float. A float must have them: floats that look equal differ in a last bit."""
    part: DatePart | None = None
    """Which part of a date (UTC if the column has a time zone) is the value."""
    age: Age | None = None
    """How long ago a date is, instead of a part of it; needs buckets."""
    cast: Annotated[bool, Field(strict=True)] = False
    """Convert the column first: text to numbers, dates or bools, or integers to decimal text."""
    max_length: Annotated[int, Field(ge=1, strict=True)] | None = None
    """Most elements of the list that count."""
    keep: Literal["last", "first"] | None = None
    """Which end of a list past max_length counts; `last` if absent (histories are appended to)."""
    recency: Recency | None = None
    """Which elements of a list are recent enough to count; looked at before max_length."""
    weights: Column | None = None
    """Column with a weight for each value (for a list, a list as long); it travels beside the ids."""

    @property
    def columns(self) -> dict[str, str]:
        """Further columns that it reads, by what for: age.column, recency.times, recency.column, weights."""
        named = {
            "age.column": self.age.column if self.age else None,
            "recency.times": self.recency.times if self.recency else None,
            "recency.column": self.recency.column if self.recency else None,
            "weights": self.weights,
        }
        return {key: column for key, column in named.items() if column is not None}

    @model_validator(mode="after")
    def _fits_type(self) -> "Attribute":
        for key, types in _ONLY_FOR.items():
            if getattr(self, key) and self.type not in types:
                raise ValueError(f"{key} does not apply to type {self.type}, only to {' and '.join(types)}")
        if self.type == "date" and (self.part is None) == (self.age is None):
            raise ValueError(
                "a date needs a part (year, month, day, date, weekday, hour, minute, hour_of_week) or an age"
            )
        if self.type == "date" and (self.age is None) != (self.buckets is None):
            raise ValueError("the age of a date needs buckets, and no other date has them")
        if not self.list and self.recency is not None:
            raise ValueError("recency applies to lists only; set list: true")
        if not self.list and (self.max_length is not None or self.keep is not None):
            raise ValueError("max_length and keep apply to lists only; set list: true")
        if self.keep is not None and self.max_length is None:
            raise ValueError("keep does nothing without max_length")
        if self.nulls and self.type != "string" and not self.cast:
            raise ValueError(
                f"nulls are texts, and type {self.type} reads text with cast only; set cast: true"
            )
        if len(set(self.normalise)) != len(self.normalise):
            raise ValueError(f"a normalisation step is given twice in {list(self.normalise)}")
        return self
