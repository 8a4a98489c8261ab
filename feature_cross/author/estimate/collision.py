# SPDX-License-Identifier: Apache-2.0
"""Id collisions: how many are to be expected, and how many there are.

Expected: the birthday formula. Observed: every node of the plan gets a twin with another seed and 64 bits of
hash, so that each id comes with a second hash of the same operands; two values are one id and two second
hashes (that both meet has a chance below n^2 / 2^(65 + bits)). Operands' own hashes are the same in both, so
values are compared as bytes besides, column by column, on a sample. Thread safety: pure functions; a
`ValueCheck` belongs to one thread.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_cross.config.config import CrossConfig
from feature_cross.config.node import Plan
from feature_cross.data.column import canonical_values, column_spec
from feature_cross.data.reading import read_attribute
from feature_cross.engine.batch import CrossBatch
from feature_cross.engine.engine import Engine
from feature_cross.engine.execution import compile_plan
from feature_cross.id_format import name_seed, value_hash

__all__ = ["CheckedEngine", "Expected", "ValueCheck", "expected_collisions", "second_hashes", "values_behind"]

_VALUES_MAX = 20_000
"""Distinct values of one attribute that are compared as bytes: 0.1 s of plain Python."""

_TWIN = "twin of "
"""No feature's name has a space."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Among n values at `bits` bits: colliding pairs, and values that another has taken the id of."""

    pairs: float
    lost: float


def expected_collisions(values: float, bits: int) -> Expected:
    """The birthday formula.

    Parameters
    ----------
    values
        Distinct values.
    bits
        Bits of hash in an id.

    Notes
    -----
    pairs = n (n - 1) / 2^(bits + 1); lost = n - m (1 - (1 - 1/m)^n) with m = 2^bits, in a form that keeps its
    digits where n is far below m.
    """
    ids = math.ldexp(1.0, bits)
    pairs = values * max(values - 1, 0.0) / 2 / ids
    ratio = values / ids
    if ratio < 1e-4:  # n - m (1 - exp(-n / m)) = n^2 / 2m - n^3 / 6m^2 + ...
        return Expected(pairs, pairs * (1 - ratio / 3))
    return Expected(pairs, values + ids * math.expm1(-ratio))


def values_behind(ids: float, bits: int) -> float:
    """Distinct values that give so many distinct ids, on average: the inverse of the birthday formula."""
    space = math.ldexp(1.0, bits)
    return -space * math.log1p(-min(ids / space, 1 - 1e-12)) if ids / space > 1e-4 else ids


def _twin_plan(plan: Plan) -> Plan:
    """Every emitted node again, of another seed; equal seeds stay equal."""
    twins = tuple(
        replace(node, name=_TWIN + node.name, seed=name_seed(f"twin of {node.seed}"), slot=None, emit=True)
        for node in plan.nodes
        if node.emit
    )
    names = tuple(_TWIN + name for name in plan.outputs)
    return replace(plan, nodes=(*plan.nodes, *twins), outputs=(*plan.outputs, *names))


class CheckedEngine(Engine):
    """An engine whose batches have, beside each feature's ids, a second hash of the value behind each.

    Parameters
    ----------
    config
        From `feature_cross.load`.
    """

    def __init__(self, config: CrossConfig) -> None:
        super().__init__(config)
        self._program = compile_plan(_twin_plan(self._plan))


def second_hashes(batch: CrossBatch, name: str) -> NDArray[np.uint64]:
    """(total,) second hashes of a CheckedEngine's batch, in the order of the ids of feature `name`."""
    return batch[_TWIN + name][0]


class ValueCheck:
    """Distinct values of each attribute as bytes, against their distinct hashes, on the first rows.

    Parameters
    ----------
    plan
        Says which attributes there are.
    """

    def __init__(self, plan: Plan) -> None:
        self._uses = {use.label: use for use in plan.attributes}
        self._seen: dict[str, dict[bytes, int]] = {label: {} for label in self._uses}

    def add(self, batch: pa.RecordBatch) -> None:
        """Look at the distinct values of a batch that the engine has taken, up to a bound per attribute."""
        for label, use in self._uses.items():
            seen = self._seen[label]
            if len(seen) >= _VALUES_MAX:
                continue
            for canonical in self._canonical(read_attribute(batch, use).array, label):
                seen[canonical] = value_hash(canonical)

    def _canonical(self, array: pa.Array, label: str) -> Iterator[bytes]:
        attribute = self._uses[label].attribute
        if attribute.list:
            array = pc.list_flatten(array)
        array = _unique(array).slice(0, _VALUES_MAX)
        for _, canonical in canonical_values(array, column_spec(attribute, f"({label})")):
            if canonical is not None:
                yield canonical

    def result(self) -> dict[str, tuple[int, int]]:
        """(distinct values, distinct hashes) by attribute."""
        return {label: (len(seen), len(set(seen.values()))) for label, seen in self._seen.items()}


def _unique(array: pa.Array) -> pa.Array:
    """Distinct elements; all of them for a type that Arrow cannot compare."""
    if pa.types.is_run_end_encoded(array.type):
        array = pc.run_end_decode(array)
    try:
        return pc.unique(array)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return array
