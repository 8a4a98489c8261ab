# SPDX-License-Identifier: Apache-2.0
"""What a client knows of a table: its name, dim, dtype and resolved config.

Thread safety: a Table is immutable.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from rowhouse import dtype
from rowhouse.error import UnknownTableError
from rowhouse.limit import IDS_PER_REQUEST_MAX, gradient_bound
from rowhouse.problem import nearest
from rowhouse.v1 import rowhouse_pb2 as pb

NAMED_MAX: Final = 4
"""Tables that a repr names."""


@dataclass(frozen=True, slots=True, repr=False)
class Table:
    """One table, as the shards declare it.

    Attributes
    ----------
    name
        Its name.
    dim
        Weights per row.
    dtype
        Element type of the weights in memory and on disk: "fp32", "fp16" or "bf16". A pull answers in
        float32 whatever it is.
    config
        Optimizer, initializer and policies, resolved (read-only).
    push_rows_max
        Distinct ids that one push may bring to one shard, as the smallest memory_budget of them allows.
    """

    name: str
    dim: int
    dtype: str
    config: Mapping[str, Any]
    push_rows_max: int = IDS_PER_REQUEST_MAX

    def __repr__(self) -> str:
        optimizer = self.config.get("optimizer", {}).get("kind", "of no known optimizer")
        return f"<Table {self.name!r}: dim {self.dim}, {self.dtype}, {optimizer}>"

    @property
    def scored(self) -> bool:
        """Whether the table has a show/click policy, so that shows and clicks are worth sending."""
        return any(policy["kind"] == "show_click" for policy in self.config.get("eviction", ()))

    @property
    def gradient_bound(self) -> float:
        """What the elements of a gradient must stay below in magnitude; infinity: any finite one will do."""
        optimizer = self.config.get("optimizer")
        if optimizer is None:
            return math.inf
        return gradient_bound(optimizer["kind"], optimizer.get("clip_value"), optimizer.get("clip_norm"))


def read_tables(infos: Iterable[pb.TableInfo], others: Iterable[pb.TableInfo] = ()) -> Mapping[str, Table]:
    """Tables by name, read-only: as one shard's GetClusterResponse has them, and what all of them can take,
    where `others` are those of the further shards."""
    tables: dict[str, Table] = {}
    smallest: dict[str, int] = {}
    for info in others:
        if info.push_rows_max:  # else not told
            smallest[info.name] = min(smallest.get(info.name, info.push_rows_max), info.push_rows_max)
    for info in infos:
        config = MappingProxyType(json.loads(info.config_json) if info.config_json else {})
        rows_max = info.push_rows_max or IDS_PER_REQUEST_MAX
        rows_max = min(rows_max, smallest.get(info.name, rows_max))
        tables[info.name] = Table(info.name, info.dim, dtype.NAMES[int(info.dtype)], config, rows_max)
    return MappingProxyType(tables)


def names_of(tables: Mapping[str, Table]) -> str:
    """The tables in a few words, for one line: the first ones with their dim, and how many more there are."""
    first = ", ".join(f"{table.name} (dim {table.dim})" for table in list(tables.values())[:NAMED_MAX])
    more = len(tables) - NAMED_MAX
    return f"{first or 'no tables'} and {more} more" if more > 0 else first or "no tables"


def find_table(tables: Mapping[str, Table], name: str) -> Table:
    """The table called `name`; UnknownTableError naming the nearest one if there is none."""
    if isinstance(name, str) and (table := tables.get(name)) is not None:
        return table
    raise UnknownTableError(f"no table is called {name!r}; {nearest(str(name), sorted(tables))}")
