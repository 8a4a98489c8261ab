# SPDX-License-Identifier: Apache-2.0
"""What people use for crosses today, over the same columns: polars, pandas and scikit-learn, if installed.

Each side makes one 64-bit number per row (scikit-learn: one bucket of 2^20). None keeps a value apart from
its neighbour's, which is how they are used; ours does more and is compared all the same.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Final

import pyarrow as pa

__all__ = ["PEERS", "available", "peer_name"]

Run = Callable[[], Any]


def _polars(table: pa.Table) -> Run:
    polars: Any = import_module("polars")
    frame = polars.from_arrow(table)
    expression = polars.concat_str(frame.columns, separator="_").hash()
    return lambda: frame.select(expression)


def _pandas(table: pa.Table) -> Run:
    pandas: Any = import_module("pandas")
    frame = table.to_pandas()
    first, *rest = (frame[name].astype("str") for name in frame.columns)

    def run() -> Any:
        joined = first
        for column in rest:
            joined = joined + "_" + column
        return pandas.util.hash_array(joined.to_numpy(dtype=object))

    return run


def _sklearn(table: pa.Table) -> Run:
    hasher = import_module("sklearn.feature_extraction").FeatureHasher(input_type="string")
    columns = [table[name].to_pylist() for name in table.schema.names]
    return lambda: hasher.transform([["_".join(map(str, row))] for row in zip(*columns, strict=True)])


PEERS: Final[Mapping[str, tuple[str, Callable[[pa.Table], Run]]]] = {
    "polars": ("polars", _polars),
    "pandas": ("pandas", _pandas),
    "scikit-learn": ("sklearn", _sklearn),
}
"""Package, the module to import, and what makes a run of it."""


def available() -> list[str]:
    """Peers that are installed."""
    return [name for name, (module, _) in PEERS.items() if find_spec(module) is not None]


def peer_name(name: str) -> str:
    """With its version."""
    return f"{name} {version(name)}, columns joined and hashed"
