# SPDX-License-Identifier: Apache-2.0
"""What people use for crosses today, over the same columns: polars, pandas, scikit-learn, Keras.

Each side makes one 64-bit number per row (scikit-learn, Keras: one bucket of 2^20). None keeps a value apart
from its neighbour's, which is how they are used; ours does more and is compared all the same. Peers that this
interpreter lacks come from an environment of their own, made on demand (benchmarks/peer/environment.py):
its folder is searched last, so NumPy and pyarrow stay ours. Keras needs TensorFlow, half a gigabyte, and runs
only where both are installed already.
"""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module, invalidate_caches
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Final

import pyarrow as pa

from benchmarks.peer.environment import Environment, Unavailable, cache_folder, prepare

__all__ = ["PEERS", "find_peers", "peer_name"]

Run = Callable[[], Any]

ENVIRONMENT: Final = Environment(
    name="cross",
    packages=("numpy==2.4.6", "polars==2.1.0", "pandas==3.1.1", "pyarrow==26.0.1", "scikit-learn==1.9.1"),
)
"""NumPy and pyarrow as in constraints.txt: what pip chose besides was built for them."""


def _polars(table: pa.Table) -> Run:
    polars: Any = import_module("polars")
    frame = polars.from_arrow(table)
    expression = polars.concat_str(frame.columns, separator="_").hash()
    return lambda: frame.select(expression)


def _polars_struct(table: pa.Table) -> Run:
    """Faster than joining text, and not what its users write for a cross; shown so that nobody is misled."""
    polars: Any = import_module("polars")
    frame = polars.from_arrow(table)
    expression = polars.struct(frame.columns).hash()
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


def _keras(table: pa.Table) -> Run:
    tensorflow: Any = import_module("tensorflow")
    layer = import_module("keras").layers.HashedCrossing(num_bins=1 << 20)
    columns = tuple(tensorflow.constant(table[name].to_pylist()) for name in table.schema.names)
    return lambda: layer(columns)


PEERS: Final[Mapping[str, tuple[tuple[str, ...], Callable[[pa.Table], Run]]]] = {
    "polars": (("polars",), _polars),
    "polars-struct": (("polars",), _polars_struct),
    "pandas": (("pandas",), _pandas),
    "scikit-learn": (("sklearn",), _sklearn),
    "keras": (("keras", "tensorflow"), _keras),
}
"""Package, the modules that it needs, and what makes a run of it."""


def find_peers(install: bool) -> tuple[list[str], str]:
    """Peers that can be run, and why the others cannot ("" where none is missing).

    Parameters
    ----------
    install
        Make the peers' environment where it is not there yet.
    """
    why = ""
    if any(not _importable(name) for name in PEERS if name != "keras"):
        try:
            interpreter = prepare(ENVIRONMENT, cache_folder(), install).interpreter
        except Unavailable as missing:
            why = str(missing)
        else:
            packages = sorted(interpreter.parents[1].glob("lib/python3*/site-packages"))
            sys.path += [str(folder) for folder in packages if str(folder) not in sys.path]
            invalidate_caches()
    lost = [name for name in PEERS if not _importable(name)]
    named = f"not installed: {', '.join(lost)}" if lost else ""
    return [name for name in PEERS if name not in lost], "; ".join(text for text in (named, why) if text)


def _importable(name: str) -> bool:
    return all(find_spec(module) is not None for module in PEERS[name][0])


def peer_name(name: str) -> str:
    """With its version."""
    package = name.partition("-struct")[0]
    how = {"keras": "HashedCrossing", "polars-struct": "structs hashed"}.get(
        name, "columns joined and hashed"
    )
    return f"{package} {version(package)}, {how}"
