# SPDX-License-Identifier: Apache-2.0
"""The engine as a function of a batch that other systems call on their machines: Ray Data, Spark.

It is a pure function, so a retried or reordered batch has the same ids. It travels as its config, and makes
its engine where it arrives. docs/feature_cross.md ("Beyond one machine") has the calls.
Thread safety: any threads may call one ArrowMap at once.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from feature_cross.config.config import CrossConfig
from feature_cross.engine.engine import Engine
from feature_cross.error import DataError

__all__ = ["ArrowMap"]


class ArrowMap:
    """From rows to rows with ids.

    Parameters
    ----------
    config
        From `feature_cross.load`.
    keep
        Columns to copy beside the ids: labels, weights, keys.

    Raises
    ------
    DataError
        A column of `keep` has the name of a feature.

    Example
    -------
    >>> ids = ArrowMap(load({
    ...     "entities": {"user": {"attributes": {"city": {"type": "string"}}}},
    ...     "features": {"city": {"kind": "attribute", "of": "user.city"}},
    ... }), keep=["label"])
    >>> ids(pa.table({"city": ["Oslo"], "label": [1]})).column_names
    ['label', 'city']
    """

    def __init__(self, config: CrossConfig, keep: Iterable[str] = ()) -> None:
        self._engine = Engine(config)
        self._keep = tuple(dict.fromkeys(keep))
        for name in self._keep:
            if name in self._engine.schema.names:
                raise DataError(f"column {name!r} (keep) has the name of a feature; rename one")

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrowMap, (self._engine.config, self._keep)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that it reads; a source that gives no others reads less."""
        return tuple(dict.fromkeys([*self._keep, *self._engine.columns]))

    def schema(self, data: pa.Schema) -> pa.Schema:
        """Schema of the answer to rows of schema `data`: kept columns, ids, weights."""
        for name in self._keep:
            if name not in data.names:
                raise DataError(f"column {name!r} (keep) is not in the data, which has {data.names[:50]}")
        ids = self._engine.schema
        return pa.schema([*(data.field(name) for name in self._keep), *ids], metadata=ids.metadata)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Of a table, for Ray Data: as many rows, in their order.

        Raises
        ------
        DataError, LimitError
            As `Engine.transform`.
        """
        schema = self.schema(table.schema)
        ids = self._engine.transform(table).to_arrow()
        return pa.table([*(table[name] for name in self._keep), *ids.columns], schema=schema)

    def stream(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Of an iterator of batches, for Spark's mapInArrow: one batch for each, in their order."""
        for batch in batches:
            schema = self.schema(batch.schema)
            ids = self._engine.transform(batch).to_arrow()
            kept = [batch.column(name) for name in self._keep]
            yield pa.RecordBatch.from_arrays([*kept, *ids.columns], schema=schema)
