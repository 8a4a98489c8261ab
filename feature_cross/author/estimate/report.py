# SPDX-License-Identifier: Apache-2.0
"""The estimate as a document: what `feature-cross estimate --json` prints and `feature-cross plot` reads.

docs/estimate.md says what each key means. `version` rises when a key changes its meaning or goes; new keys
may come without it, so a reader takes what it knows. Thread safety: documents are immutable.
"""

import os
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from feature_cross.error import DataError

__all__ = [
    "CollisionReport", "CurvePoint", "Estimate", "FeatureReport", "FrequencyPoint", "GroupReport",
    "HeavyReport", "ProjectionReport", "RowReport", "ShareReport", "TotalReport", "ValueReport",
    "VerdictReport", "read_estimate",
]  # fmt: skip


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class CurvePoint(_Part):
    """Distinct ids after so many rows."""

    rows: int
    distinct: float


class ProjectionReport(_Part):
    """Distinct ids at `rows`; the names are those of feature_cross.author.estimate.growth.Projection."""

    rows: int
    distinct: float
    low: float
    high: float
    method: str
    error: float | None
    tested_factor: float | None


class FrequencyPoint(_Part):
    """So many ids occurred `count` times or more."""

    count: int
    ids: float


class ShareReport(_Part):
    """The most frequent `ids` ids have between `low` and `high` of all occurrences."""

    ids: int
    low: float
    high: float


class HeavyReport(_Part):
    """A frequent id (hexadecimal) and its occurrences, between `low` and `high`."""

    id: str
    low: int
    high: int


class CollisionReport(_Part):
    """Collisions within one feature, whose ids have `bits` bits of hash.

    Expected among the distinct values read (and `projected`: at the projection): `pairs` of colliding values,
    and values `lost` to an id that another has. Observed: `sampled_values` distinct values in
    `sample_share` of the id space have `sampled_ids` distinct ids.
    """

    bits: int
    expected_pairs: float
    expected_lost: float
    projected_pairs: float | None
    projected_lost: float | None
    sample_share: float
    sampled_values: int
    sampled_ids: int


class FeatureReport(_Part):
    """One feature over the rows read."""

    name: str
    kind: str
    slot: int | None
    of: tuple[str, ...]
    group: str
    rows_covered: int
    coverage: float
    occurrences: int
    ids_per_row: float
    distinct: float
    distinct_low: float
    distinct_high: float
    exact: bool
    ceiling: float | None = None
    growth: tuple[CurvePoint, ...]
    projection: ProjectionReport | None
    seen_once_share: float
    frequency: tuple[FrequencyPoint, ...]
    top_share: tuple[ShareReport, ...]
    heavy: tuple[HeavyReport, ...]
    collisions: CollisionReport
    dim: int
    bytes_per_row: dict[str, int]
    bytes: dict[str, float]


class GroupReport(_Part):
    """Features with one set of ids (mostly one feature), and its rows: projected ones where asked for."""

    name: str
    features: tuple[str, ...]
    distinct: float
    distinct_low: float
    distinct_high: float
    ceiling: float | None = None
    projection: ProjectionReport | None
    seen_once_share: float
    dim: int
    rows: float
    rows_low: float
    rows_high: float
    bytes_per_row: dict[str, int]
    bytes: dict[str, float]


class RowReport(_Part):
    """The shape of a row that bytes are worked out for."""

    dim: int
    dtype: str
    optimizer: str | None
    state_words: int
    metadata_bytes: int


class TotalReport(_Part):
    """Sums over the groups."""

    rows: float
    rows_low: float
    rows_high: float
    occurrences: int
    bytes: dict[str, float]
    bytes_low: dict[str, float]
    bytes_high: dict[str, float]


class VerdictReport(_Part):
    """The sum against the budget; the names are those of feature_cross.author.estimate.memory.Verdict."""

    budget_bytes: int
    tier: str
    verdict: str
    within: bool
    bytes: float
    low: float
    high: float
    share: float
    cut: tuple[str, ...]
    cut_bytes: float
    admit_twice_bytes: float
    dim_that_fits: int | None


class ValueReport(_Part):
    """Distinct values of an attribute, compared as bytes on the first rows, and their distinct hashes."""

    attribute: str
    values: int
    hashes: int


class Estimate(_Part):
    """The whole document."""

    format: Literal["feature-cross-estimate"]
    version: Literal[1]
    id_format: int
    slot_bits: int | None
    config: str
    data: str
    rows_read: int
    rows_total: int | None
    rows_projected: int | None
    stopped: str | None
    seconds: float
    row: RowReport
    features: tuple[FeatureReport, ...]
    groups: tuple[GroupReport, ...]
    totals: TotalReport
    values: tuple[ValueReport, ...]
    budget: VerdictReport | None


def read_estimate(path: str | os.PathLike[str]) -> Estimate:
    """Read what `feature-cross estimate --json` printed; DataError if it is not that."""
    try:
        with open(path, encoding="utf-8") as file:
            return Estimate.model_validate_json(file.read())
    except OSError as error:
        raise DataError(f"{os.fspath(path)}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{os.fspath(path)}: cannot be read: not UTF-8: {error.reason}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise DataError(
            f"{os.fspath(path)}: not what `feature-cross estimate --json` prints: {where}: {first['msg']}"
        ) from error
