# SPDX-License-Identifier: Apache-2.0
"""A config with every family of crosses, rows for it, and `feature-cross` as tests call it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from feature_cross.author.cli import main

CONFIG = """\
ids: {slot_bits: 6}
entities:
  user:
    key: id
    attributes:
      id: {type: int, column: user}
      city: {type: string, normalise: [strip, lower], missing: own_id}
      seen: {type: string, list: true, max_length: 3, keep: last}
  item:
    attributes:
      price: {type: float, buckets: {edges: [1, 10]}}
      day: {type: date, part: weekday}
      new: {type: bool}
features:
  user_x_city: {kind: categorical, slot: 1, of: [user.id, user.city]}
  city_x_price: {kind: interaction, slot: 2, of: [user.city, item.price]}
  deep: {kind: weak, slot: 3, of: [city_x_price, item.day, item.new]}
  seen: {kind: combination, of: user.seen, slots: {permutation: 4, single: 5, sorted: 6}}
  pairs: {kind: combination, form: sorted, size: [2, 3], multiset: true, slot: 7, of: user.seen}
  seen_x_day: {kind: weak, slot: 8, of: [user.seen, item.day], limit: 2, past_limit: cut}
"""


def write_files(folder: Path) -> Path:
    """Write c.yaml and t.parquet (200 rows, four row groups) into the folder, which is returned."""
    rows = 200
    random = np.random.default_rng(1)
    user = random.integers(0, 50, rows)
    table = pa.table(
        {
            "user": user,
            "city": pa.array([[" Oslo", "ROMA", None][u % 3] for u in user]),
            "seen": [list(random.choice(["a", "b", "c"], random.integers(0, 6))) for _ in range(rows)],
            "price": random.random(rows) * 20,
            "day": pa.array(random.integers(0, 10**9, rows), pa.timestamp("s")),
            "new": random.random(rows) < 0.5,
            "label": random.integers(0, 2, rows),
        }
    )
    pa.parquet.write_table(table, folder / "t.parquet", row_group_size=64)
    (folder / "c.yaml").write_text(CONFIG)
    return folder


def run(*arguments: object) -> int:
    """The exit code of one command."""
    return main([str(argument) for argument in arguments])
