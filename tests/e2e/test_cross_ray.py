# SPDX-License-Identifier: Apache-2.0
"""ArrowMap inside Ray Data's map_batches, as docs/feature_cross.md shows it, on a local cluster."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from feature_cross import ArrowMap, Engine, load

ray: Any = pytest.importorskip("ray", reason="ray is not installed: pip install 'rowhouse-ps[ray]'")
pytest.importorskip("ray.data", reason="ray is installed without its data part: pip install 'ray[data]'")

CONFIG: dict[str, Any] = {
    "ids": {"slot_bits": 8},
    "entities": {
        "user": {"attributes": {"id": {"type": "int"}, "seen": {"type": "string", "list": True}}},
        "item": {"attributes": {"category": {"type": "string"}}},
    },
    "features": {
        "user_x_category": {"kind": "interaction", "slot": 1, "of": ["user.id", "item.category"]},
        "seen": {"kind": "combination", "form": "single", "slot": 2, "of": "user.seen"},
    },
}
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, of which there are many


def test_map_batches_gives_the_engines_ids(tmp_path: Path) -> None:
    rows = 2_000
    table = pa.table(
        {
            "label": np.arange(rows),
            "id": np.arange(rows) % 97,
            "seen": [[f"c{n % 5}"] * (n % 3) for n in range(rows)],
            "category": [f"c{n % 11}" for n in range(rows)],
            "unused": ["x"] * rows,
        }
    )
    (tmp_path / "in").mkdir()
    for part in range(4):
        pa.parquet.write_table(table.slice(part * 500, 500), tmp_path / "in" / f"{part}.parquet")
    ids = ArrowMap(load(CONFIG), keep=["label"])
    ray.init(
        num_cpus=1, object_store_memory=200 << 20, include_dashboard=False, log_to_driver=False,
        configure_logging=False,
    )  # fmt: skip
    try:
        read = ray.data.read_parquet(str(tmp_path / "in"), columns=list(ids.columns))
        mapped = read.map_batches(ids, batch_format="pyarrow", zero_copy_batch=True, batch_size=300)
        mapped.write_parquet(str(tmp_path / "out"))
    finally:
        ray.shutdown()
    made = pa.parquet.read_table(tmp_path / "out").sort_by("label").to_pylist()
    wanted = Engine(load(CONFIG)).transform(table).to_arrow().to_pylist()
    assert made == [{"label": label, **row} for label, row in enumerate(wanted)]
