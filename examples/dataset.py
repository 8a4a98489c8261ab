# SPDX-License-Identifier: Apache-2.0
"""Ids of a log: derived once by feature_cross, kept as Parquet, read as jagged arrays.

Shapes: N examples; a feature has `ids` (total,) int64 (feature_cross's uint64, bit for bit, which is what
torch can hold) and `offsets` (N + 1,) int64: example i has ids[offsets[i]:offsets[i + 1]].
Thread safety: a Dataset is immutable.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from examples.recipe import MIRROR, Recipe
from feature_cross import Engine

LABEL: Final = "label"


@dataclass(frozen=True)
class Jagged:
    """One feature's ids, a bag per example."""

    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> "Jagged":
        """The bags of `rows`, in that order: new arrays."""
        lengths = np.diff(self.offsets)[rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        at = np.repeat(self.offsets[:-1][rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Jagged(self.ids[at], offsets)

    def slice(self, start: int, stop: int) -> "Jagged":
        """Bags start … stop - 1; ids are a view."""
        offsets = self.offsets[start : stop + 1]
        return Jagged(self.ids[offsets[0] : offsets[-1]], offsets - offsets[0])


@dataclass(frozen=True)
class Dataset:
    """Labels (N,) float32 and the features' bags by name."""

    labels: NDArray[np.float32]
    features: dict[str, Jagged]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> "Dataset":
        """Examples `rows`, in that order."""
        return Dataset(self.labels[rows], {n: j.take(rows) for n, j in self.features.items()})

    def batches(self, size: int) -> Iterator["Dataset"]:
        """Consecutive batches of `size` examples; the last may be smaller."""
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            yield Dataset(
                self.labels[start:stop], {n: j.slice(start, stop) for n, j in self.features.items()}
            )


def derive(log: pa.Table, engine: Engine, recipe: Recipe) -> pa.Table:
    """Derive the ids of a log.

    Parameters
    ----------
    log
        Raw columns and the label.
    engine
        Of the example's crosses.
    recipe
        Says the label, and which columns change places in the mirrored view.

    Returns
    -------
    pa.Table
        Per feature a column list<uint64>, the mirrored ones prefixed, and LABEL as float32.
    """
    columns = _columns(engine.transform(log).to_arrow())
    if recipe.mirror:
        names = [recipe.mirror.get(name, name) for name in log.column_names]
        mirrored = _columns(engine.transform(log.rename_columns(names)).to_arrow())
        columns |= {MIRROR + name: column for name, column in mirrored.items()}
    return pa.table({**columns, LABEL: log[recipe.label].cast(pa.float32())})


def _columns(batch: Any) -> dict[str, Any]:
    return dict(zip(batch.schema.names, batch.columns, strict=True))


def write(ids: pa.Table, path: Path) -> None:
    """Write derived ids; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(ids, path, compression="lz4")


def read(path: Path, features: list[str]) -> Dataset:
    """Read those features of a Parquet file that `write` wrote."""
    table = pq.read_table(path).select([*features, LABEL])  # `columns=` takes a dot for a nested field
    labels = table[LABEL].to_numpy().copy()  # torch takes no read-only memory, and Arrow's is
    return Dataset(labels, {name: _jagged(table[name]) for name in features})


def _jagged(column: Any) -> Jagged:
    lists = column.combine_chunks()
    offsets = lists.offsets.to_numpy().astype(np.int64)
    ids = lists.values.to_numpy()[offsets[0] : offsets[-1]]
    return Jagged(ids.view(np.int64).copy(), offsets - offsets[0])


def distinct_ids(ids: pa.Table, feature: str) -> int:
    """Number of distinct ids of one feature."""
    lists = ids[feature].combine_chunks()
    return len(lists.flatten().unique())
