# SPDX-License-Identifier: Apache-2.0
"""What people use for crosses today, over the same columns: polars, pandas, scikit-learn, Keras.

Each makes one number per row (scikit-learn and Keras a bucket of 2^20) and keeps neither types nor slots. A
peer stands here as its users write a cross and in the fastest form that we found; "A cross" in
docs/performance.md has the reasons. What a peer can prepare once (its own frame, tensors, Python lists) it
prepares before the clock starts, as ours has its Arrow table.

Packages that this interpreter lacks come from environments made on demand (benchmarks/peer/environment.py).
That of polars, pandas and scikit-learn is searched after ours, so NumPy and pyarrow stay ours; Keras' runs in
a process of its own, which counts its own CPU.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module, invalidate_caches
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from benchmarks.peer.environment import Environment, Unavailable, cache_folder, prepare
from benchmarks.peer.roster import QUICK

__all__ = ["FEW", "PEERS", "Form", "RemoteRun", "Run", "find_peers", "peer_name"]

Run = Callable[[], Any]

ROOT: Final = Path(__file__).resolve().parents[1]

ENVIRONMENT: Final = Environment(
    name="cross",
    packages=("numpy==2.4.6", "polars==2.1.0", "pandas==3.1.1", "pyarrow==26.0.1", "scikit-learn==1.9.1"),
)
"""NumPy and pyarrow as in constraints.txt: what pip chose besides was built for them."""

KERAS: Final = Environment(name="keras", packages=("tensorflow-cpu==2.21.0", "keras==3.15.1", "numpy==2.4.6"))
"""HashedCrossing needs TensorFlow, whatever Keras' backend: a gigabyte, so a quick run does not make it."""

FEW: Final = 100_000
"""Rows of peers that take microseconds a row; rates are compared, not times."""
MANY: Final = 1_000_000
ALL: Final = 1 << 62
"""As many as ours: of a peer that does something once per distinct value."""


class RemoteRun:
    """A peer's process, which times itself.

    Parameters
    ----------
    columns
        NumPy arrays of bytes or int64, in the cross's order.
    module
        The other end.

    Raises
    ------
    Unavailable
        There is no environment, or it did not start.
    """

    def __init__(self, columns: list[Any], module: str = "benchmarks.peer.keras_crossing") -> None:
        ready = prepare(KERAS, cache_folder(), install=False)
        self._folder = tempfile.TemporaryDirectory(prefix="cross-peer-")
        for number, column in enumerate(columns):
            np.save(Path(self._folder.name) / f"{number:02}.npy", column)
        self._log = (Path(self._folder.name) / "log").open("w+b")
        self._process = subprocess.Popen(
            [str(ready.interpreter), "-m", module, "--columns", self._folder.name],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip
        try:
            self._answer()
        except Unavailable:
            self.close()
            raise

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            text = self._log.read().decode(errors="replace").strip()
            raise Unavailable(f"keras ended with {code}: {text[-400:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def turn(self, seconds: float, passes: int) -> tuple[int, float]:
        """Passes done, at least `passes`, and the CPU seconds that they took, at least `seconds`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"seconds": seconds, "passes": passes}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        return answer["done"], answer["spent_s"]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()
        self._folder.cleanup()


def _polars_joined(table: pa.Table) -> Run:
    polars: Any = import_module("polars")
    frame = polars.from_arrow(table).rechunk()
    expression = polars.concat_str(frame.columns, separator="_").hash()
    return lambda: frame.select(expression)


def _polars_struct(table: pa.Table) -> Run:
    polars: Any = import_module("polars")
    frame = polars.from_arrow(table).rechunk()
    expression = polars.struct(frame.columns).hash()
    return lambda: frame.select(expression)


def _polars_rows(table: pa.Table) -> Run:
    polars: Any = import_module("polars")
    run: Run = polars.from_arrow(table).rechunk().hash_rows
    return run


def _pandas_joined(table: pa.Table) -> Run:
    pandas: Any = import_module("pandas")
    frame = table.to_pandas()
    first, *rest = (frame[name].astype("str") for name in frame.columns)

    def run() -> Any:
        joined = first
        for column in rest:
            joined = joined + "_" + column
        return pandas.util.hash_array(joined.to_numpy(dtype=object))

    return run


def _pandas_rows(table: pa.Table) -> Run:
    pandas: Any = import_module("pandas")
    frame = table.to_pandas()
    return lambda: pandas.util.hash_pandas_object(frame, index=False)


def _texts(table: pa.Table, name: str) -> list[str]:
    return list(table[name].cast(pa.string()).to_pylist())  # decoded first: a tenth of the time


def _sklearn(table: pa.Table) -> Run:
    hasher = import_module("sklearn.feature_extraction").FeatureHasher(input_type="string")
    columns = [_texts(table, name) for name in table.schema.names]
    # zip makes each row a tuple of one string: a sample with one feature, without a line of Python per row
    return lambda: hasher.transform(zip(map("_".join, zip(*columns, strict=True))))


def _keras_text(table: pa.Table) -> RemoteRun:
    return RemoteRun([np.array(_texts(table, name), np.bytes_) for name in table.schema.names])


def _keras_integers(table: pa.Table) -> RemoteRun:
    columns = [table[name].combine_chunks() for name in table.schema.names]
    codes = [(c if pa.types.is_dictionary(c.type) else c.dictionary_encode()).indices for c in columns]
    return RemoteRun([code.to_numpy().astype(np.int64) for code in codes])


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One way to make a cross with a package.

    Attributes
    ----------
    package
        Its name on PyPI.
    how
        The form, in a few words.
    make
        From a table to what is timed: a pass, or a process that times itself.
    asked
        Whether the goal is set against it. The goal's peers are those that put values together and hash them;
        other forms are shown beside them, so that nobody is misled.
    rows
        Rows of a pass, at most. Polars takes longer for a row of ten million than of one (its results do not
        fit the cache), so it gets a million.
    modules
        What must be importable here; empty for a peer in a process of its own.
    """

    package: str
    how: str
    make: Callable[[pa.Table], Run | RemoteRun]
    asked: bool = True
    rows: int = MANY
    modules: tuple[str, ...] = ()


PEERS: Final[Mapping[str, Form]] = {
    "polars": Form(
        package="polars", how="columns joined and hashed", make=_polars_joined, modules=("polars",),
    ),
    "polars-struct": Form(
        package="polars", how="structs hashed", make=_polars_struct, modules=("polars",), asked=False,
    ),
    "polars-rows": Form(
        package="polars", how="hash_rows", make=_polars_rows, modules=("polars",), asked=False,
    ),
    "pandas": Form(
        package="pandas", how="columns joined and hashed", make=_pandas_joined, rows=FEW, modules=("pandas",),
    ),
    "pandas-rows": Form(
        package="pandas", how="hash_pandas_object", make=_pandas_rows, rows=ALL, modules=("pandas",),
        asked=False,
    ),
    "scikit-learn": Form(
        package="scikit-learn", how="FeatureHasher of joined columns", make=_sklearn, rows=FEW,
        modules=("sklearn",),
    ),
    "keras": Form(package="keras", how="HashedCrossing of text", make=_keras_text),
    "keras-integers": Form(package="keras", how="HashedCrossing of integers", make=_keras_integers),
}  # fmt: skip
"""By the suffix of their bars."""


def find_peers(wanted: tuple[str, ...]) -> tuple[list[str], str]:
    """Peers that can be run, and why the others cannot ("" where none is missing).

    Parameters
    ----------
    wanted
        Settings.peers: where it is empty, no environment is made; Keras' only where it has more than QUICK.
    """
    why = []
    if any(not _importable(form) for form in PEERS.values()):
        try:
            interpreter = prepare(ENVIRONMENT, cache_folder(), bool(wanted)).interpreter
        except Unavailable as missing:
            why.append(str(missing))
        else:
            packages = sorted(interpreter.parents[1].glob("lib/python3*/site-packages"))
            sys.path += [str(folder) for folder in packages if str(folder) not in sys.path]
            invalidate_caches()
    found = [name for name, form in PEERS.items() if form.modules and _importable(form)]
    try:
        prepare(KERAS, cache_folder(), bool(set(wanted) - set(QUICK)))
    except Unavailable as missing:
        why.append(str(missing))
    else:
        found += [name for name, form in PEERS.items() if not form.modules]
    lost = [name for name in PEERS if name not in found]
    return found, "; ".join([*([f"not installed: {', '.join(lost)}"] if lost else []), *why])


def _importable(form: Form) -> bool:
    return all(find_spec(module) is not None for module in form.modules)


def peer_name(name: str) -> str:
    """With its version and form."""
    form = PEERS[name]
    pinned = dict(package.split("==") for package in (*KERAS.packages, *ENVIRONMENT.packages))
    found = version(form.package) if form.modules else pinned[form.package]
    return f"{form.package} {found}, {form.how}"
