# SPDX-License-Identifier: Apache-2.0
"""The stated error of projections on real data: the figures of docs/estimate.md come from here.

ROWHOUSE_DATA=FOLDER pytest -s tests/unit/test_cross_estimate_real.py, the folder with online_retail.parquet
and dota2_matches.parquet (docs/demo.md says where they come from). Skipped without it: the data are not ours.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from feature_cross import Engine
from feature_cross.author.estimate.growth import project
from feature_cross.author.estimate.measure import measure
from feature_cross.config.loader import load_text

FOLDER = Path(os.environ.get("ROWHOUSE_DATA", "/nonexistent"))
FACTORS = (2, 4, 10, 30)

RETAIL = """\
entities:
  customer:
    attributes: {id: {type: int, column: CustomerID, cast: true}, country: {type: string, column: Country}}
  item: {attributes: {id: {type: string, column: StockCode}}}
  invoice:
    attributes:
      id: {type: string, column: InvoiceNo}
      hour: {type: date, part: hour_of_week, column: InvoiceDate}
features:
  customer: {kind: attribute, of: customer.id}
  item: {kind: attribute, of: item.id}
  invoice: {kind: attribute, of: invoice.id}
  customer_x_item: {kind: interaction, of: [customer.id, item.id]}
  country_x_item: {kind: interaction, of: [customer.country, item.id]}
  item_x_hour: {kind: interaction, of: [item.id, invoice.hour]}
  customer_x_hour: {kind: interaction, of: [customer.id, invoice.hour]}
"""
DOTA2 = """\
entities:
  radiant: {attributes: {heroes: {type: int, list: true, column: radiant, max_length: 5}}}
  dire: {attributes: {heroes: {type: int, list: true, column: dire, max_length: 5}}}
  match: {attributes: {mode: {type: int}}}
features:
  hero: {kind: combination, form: single, of: radiant.heroes}
  pairs: {kind: combination, form: sorted, size: 2, of: radiant.heroes}
  triples: {kind: combination, form: sorted, size: 3, of: radiant.heroes}
  fours: {kind: combination, form: sorted, size: 4, of: radiant.heroes}
  matchups: {kind: weak, of: [radiant.heroes, dire.heroes]}
  mode_x_triples: {kind: weak, of: [match.mode, triples]}
"""


def tries(config_text: str, table: pa.Table) -> list[dict[str, Any]]:
    """Each feature's projection from the first part of the rows, beside the truth."""
    config = load_text(config_text)
    truth = Engine(config).transform(table)
    found = []
    for factor in FACTORS:
        rows = len(table) // factor
        measured = measure(config, table, rows_max=rows)
        for name, one in measured.features.items():
            ids, offsets = truth[name]
            exact = len(np.unique(ids[: offsets[rows * factor]]))
            said = project(one.growth, rows * factor, one.occurrences / rows)
            inside = said.low - 1 <= exact <= said.high + 1
            ratio = said.distinct / exact
            found.append({"factor": factor, "name": name, "exact": exact, "ratio": ratio, "inside": inside})
            print(
                f"{factor:3} x  {name:16} {exact:9,}  said {ratio:6.3f} of it  bounds {said.low / exact:.3f}"
                f" to {said.high / exact:.3f}  by {said.method}{'' if inside else '  OUTSIDE'}"
            )
    return found


@pytest.mark.skipif(not FOLDER.is_dir(), reason="ROWHOUSE_DATA names no folder with the data")
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize(
    ("file", "config"), [("online_retail.parquet", RETAIL), ("dota2_matches.parquet", DOTA2)]
)
def test_projections_of_real_data(file: str, config: str, shuffled: bool) -> None:
    table = pa.parquet.read_table(FOLDER / file)
    if shuffled:
        table = table.take(pa.array(np.random.default_rng(0).permutation(len(table))))
    print(f"\n{file}, rows {'shuffled' if shuffled else 'in their own order'}")
    found = tries(config, table)
    for factor in FACTORS:
        errors = [abs(np.log(one["ratio"])) for one in found if one["factor"] == factor]
        print(f"{factor:3} x  median error {np.median(errors):.1%}, largest {np.max(errors):.1%}")
    near = [one for one in found if one["factor"] <= 4]
    assert np.median([abs(np.log(one["ratio"])) for one in near]) < 0.1
    assert np.mean([one["inside"] for one in found]) >= 0.85
