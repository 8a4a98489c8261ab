# SPDX-License-Identifier: Apache-2.0
"""From what was counted to the document: projections, shares, collisions, bytes, the verdict.

Thread safety: pure functions.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from feature_cross.author.estimate.collision import expected_collisions, values_behind
from feature_cross.author.estimate.measure import Measure, Measurement
from feature_cross.author.estimate.memory import Budget, Cost, decide
from feature_cross.author.estimate.projection import Projector, as_ids
from feature_cross.author.estimate.report import (
    CollisionReport,
    CurvePoint,
    Estimate,
    FeatureReport,
    FrequencyPoint,
    GroupReport,
    HeavyReport,
    ProjectionReport,
    RowReport,
    ShareReport,
    TotalReport,
    ValueReport,
    VerdictReport,
)
from feature_cross.author.estimate.sketch import HeavyId
from feature_cross.author.size import TIERS, RowShape
from feature_cross.error import FlagError
from feature_cross.id_format import FORMAT_VERSION

__all__ = ["Request", "summarize"]

_TOPS: Final = (1, 10, 100, 1000)
_HEAVY_SHOWN: Final = 20
_SAMPLED_MIN: Final = 10
"""Sampled ids behind a point of the frequency curve: 32 % standard error, on a scale of powers of ten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of a measurement.

    Attributes
    ----------
    rows
        Rows to project to; None asks for no projection.
    shape
        Of a row.
    dims
        Dims by feature, where they are not the shape's.
    budget
        To hold the sum to; None asks for no verdict.
    """

    rows: int | None = None
    shape: RowShape = field(default_factory=RowShape)
    dims: Mapping[str, int] = field(default_factory=dict)
    budget: Budget | None = None


def summarize(
    measured: Measurement, request: Request, *, config: str, data: str, rows_total: int | None, seconds: float
) -> Estimate:
    """Everything that `feature-cross estimate` says.

    Parameters
    ----------
    measured
        From `measure`.
    request
        Rows to project to, the shape of a row, the budget.
    config, data, rows_total, seconds
        Copied into the document.

    Raises
    ------
    FlagError
        `dims` names a feature that there is not, or two dims for one set of ids.
    """
    dims = _group_dims(measured, request)
    projector = Projector(measured, request.rows)
    groups = [_group(projector, owner, request, dims[owner]) for owner in measured.groups]
    owners = {name: owner for owner, (_, names) in measured.groups.items() for name in names}
    features = [
        _feature(projector, name, request, owners[name], dims[owners[name]]) for name in measured.features
    ]
    shape = request.shape
    return Estimate(
        format="feature-cross-estimate", version=1, id_format=FORMAT_VERSION,
        slot_bits=measured.plan.slot_bits, config=config, data=data, rows_read=measured.rows,
        rows_total=rows_total, rows_projected=request.rows, stopped=measured.stopped,
        seconds=round(seconds, 3),
        row=RowReport(
            dim=shape.dim, dtype=shape.dtype, optimizer=None if shape.state is not None else shape.optimizer,
            state_words=shape.state_words(), metadata_bytes=shape.metadata_bytes,
        ),
        features=tuple(features), groups=tuple(groups), totals=_totals(measured, groups),
        values=tuple(
            ValueReport(attribute=label, values=values, hashes=hashes)
            for label, (values, hashes) in measured.values.items()
        ),
        budget=None if request.budget is None else _verdict(groups, request, request.budget),
    )  # fmt: skip


def _group_dims(measured: Measurement, request: Request) -> dict[str, int]:
    for name in request.dims:
        if name not in measured.features:
            raise FlagError(f"--feature-dim names {name!r}; the config has {list(measured.features)[:50]}")
    dims = {}
    for owner, (_, names) in measured.groups.items():
        asked = {request.dims[name] for name in names if name in request.dims}
        if len(asked) > 1:
            raise FlagError(f"--feature-dim gives {sorted(asked)} for {', '.join(names)}, which share ids")
        dims[owner] = asked.pop() if asked else request.shape.dim
    return dims


def _once_share(measure: Measure) -> float:
    return float((measure.sample.counts == 1).mean()) if measure.sample.used else 0.0


def _bytes_per_row(request: Request, dim: int) -> dict[str, int]:
    return {tier: request.shape.row_bytes(tier, dim) for tier in TIERS}


def _group(projector: Projector, owner: str, request: Request, dim: int) -> GroupReport:
    measure, names = projector.measured.groups[owner]
    distinct = measure.distinct
    projection = projector.project(measure, names)
    rows, low, high = distinct.count, distinct.low, distinct.high
    if projection is not None:
        rows, low, high = projection.distinct, projection.low, projection.high
    per_row = _bytes_per_row(request, dim)
    return GroupReport(
        name=owner, features=names, distinct=distinct.count, distinct_low=distinct.low,
        distinct_high=distinct.high, ceiling=projector.ceiling(names), projection=projection,
        seen_once_share=_once_share(measure), dim=dim,
        rows=rows, rows_low=low, rows_high=high, bytes_per_row=per_row,
        bytes={tier: rows * size for tier, size in per_row.items()},
    )  # fmt: skip


def _feature(projector: Projector, name: str, request: Request, owner: str, dim: int) -> FeatureReport:
    measured = projector.measured
    measure, node = measured.features[name], measured.plan.node(name)
    distinct = measure.distinct
    projection = projector.project(measure, [name])
    growth = measure.growth
    points = zip(growth.rows, growth.distinct, strict=True)
    heavy = _heavy(measure)
    per_row = _bytes_per_row(request, dim)
    rows = distinct.count if projection is None else projection.distinct
    return FeatureReport(
        name=name, kind=node.kind, slot=node.slot, of=tuple(operand.label for operand in node.operands),
        group=owner, rows_covered=measure.covered_rows, coverage=measure.covered_rows / measured.rows,
        occurrences=measure.occurrences, ids_per_row=measure.occurrences / measured.rows,
        distinct=distinct.count, distinct_low=distinct.low, distinct_high=distinct.high, exact=distinct.exact,
        ceiling=projector.ceiling([name]),
        growth=tuple(CurvePoint(rows=int(n), distinct=as_ids(float(k), measure.id_bits)) for n, k in points),
        projection=projection, seen_once_share=_once_share(measure),
        frequency=tuple(_frequency(measure, heavy)), top_share=tuple(_top_share(measure, heavy)),
        heavy=tuple(
            HeavyReport(id=f"0x{one.id:016x}", low=one.low, high=one.high) for one in heavy[:_HEAVY_SHOWN]
        ),
        collisions=_collisions(measure, projection), dim=dim, bytes_per_row=per_row,
        bytes={tier: rows * size for tier, size in per_row.items()},
    )  # fmt: skip


def _heavy(measure: Measure) -> list[HeavyId]:
    """The most frequent ids; exactly, where every id was counted."""
    sample = measure.sample
    if sample.level > 0:
        return measure.sketch.heavy(_TOPS[-1])
    order = np.argsort(-sample.counts, kind="stable")[: _TOPS[-1]]
    pairs = zip(sample.ids[order].tolist(), sample.counts[order].tolist(), strict=True)
    return [HeavyId(id_, count, count) for id_, count in pairs]


def _top_share(measure: Measure, heavy: list[HeavyId]) -> list[ShareReport]:
    total = measure.occurrences
    every = measure.sample.level == 0
    found = []
    for top in _TOPS:
        if len(heavy) < top and not (every and heavy):
            break
        low, high = (sum(getattr(one, end) for one in heavy[:top]) / total for end in ("low", "high"))
        found.append(ShareReport(ids=min(top, len(heavy)), low=low, high=min(high, 1.0)))
        if len(heavy) < top:
            break
    return found


def _frequency(measure: Measure, heavy: list[HeavyId]) -> list[FrequencyPoint]:
    """Ids that occurred c times or more, c in geometric steps: the tail by the sample, the head by sketch."""
    counts = np.sort(measure.sample.counts)
    if not len(counts):
        return []
    middle = np.sort(np.array([(one.low + one.high) // 2 for one in heavy], np.int64))
    most = int(max(counts[-1], middle[-1] if len(middle) else 0))
    sure_from = 2 * max((one.high - one.low for one in heavy), default=0)
    points: list[FrequencyPoint] = []
    for count in _geometric(most):
        sampled = len(counts) - int(np.searchsorted(counts, count))
        known = len(middle) - int(np.searchsorted(middle, count))
        if sampled >= _SAMPLED_MIN or measure.sample.level == 0:
            ids = sampled / measure.sample.fraction
        elif count >= sure_from and known:
            ids = float(known)
        else:  # too rare for the sample, too frequent for the sketch: the line goes on at the next point
            continue
        points.append(FrequencyPoint(count=count, ids=min([ids, *(point.ids for point in points[-1:])])))
    return points


def _geometric(most: int) -> list[int]:
    steps = {round(2 ** (half / 2)) for half in range(2 * math.ceil(math.log2(most + 1)) + 1)}
    return sorted(step for step in {*steps, most} if step <= most)


def _collisions(measure: Measure, projection: ProjectionReport | None) -> CollisionReport:
    bits = measure.id_bits
    expected = expected_collisions(measure.values, bits)
    later = None
    if projection is not None:
        later = expected_collisions(values_behind(projection.distinct, bits), bits)
    values, ids = measure.observed
    return CollisionReport(
        bits=bits, expected_pairs=expected.pairs, expected_lost=expected.lost,
        projected_pairs=None if later is None else later.pairs,
        projected_lost=None if later is None else later.lost,
        sample_share=measure.sample.fraction, sampled_values=values, sampled_ids=ids,
    )  # fmt: skip


def _totals(measured: Measurement, groups: list[GroupReport]) -> TotalReport:
    return TotalReport(
        rows=sum(group.rows for group in groups),
        rows_low=sum(group.rows_low for group in groups),
        rows_high=sum(group.rows_high for group in groups),
        occurrences=sum(measure.occurrences for measure in measured.features.values()),
        bytes={tier: sum(group.bytes[tier] for group in groups) for tier in TIERS},
        bytes_low={tier: sum(g.rows_low * g.bytes_per_row[tier] for g in groups) for tier in TIERS},
        bytes_high={tier: sum(g.rows_high * g.bytes_per_row[tier] for g in groups) for tier in TIERS},
    )


def _verdict(groups: list[GroupReport], request: Request, budget: Budget) -> VerdictReport:
    costs = [
        Cost(
            group.name, group.rows, group.rows_low, group.rows_high, group.seen_once_share,
            group.bytes_per_row[budget.tier],
        )
        for group in groups
    ]  # fmt: skip
    found = decide(costs, budget)
    return VerdictReport(
        budget_bytes=budget.bytes, tier=budget.tier, verdict=found.verdict, within=found.within,
        bytes=found.bytes, low=found.low, high=found.high, share=found.share, cut=found.cut,
        cut_bytes=found.cut_bytes, admit_twice_bytes=found.admit_twice_bytes,
        dim_that_fits=_dim_that_fits(groups, request, budget),
    )  # fmt: skip


def _dim_that_fits(groups: list[GroupReport], request: Request, budget: Budget) -> int | None:
    """The most weights per row, none above what was asked, at which the sum is within the budget."""

    def total(dim: int) -> float:
        shape, tier = request.shape, budget.tier
        return sum(group.rows * shape.row_bytes(tier, min(dim, group.dim)) for group in groups)

    low, high = 0, max((group.dim for group in groups), default=0)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if total(middle) <= budget.bytes else (low, middle - 1)
    return low or None
