# SPDX-License-Identifier: Apache-2.0
"""Online Retail as a question: will this customer buy this item on this day?

A positive is a distinct (customer, item, day) of the invoices; cancellations and lines without a customer
are left out. Each positive gets NEGATIVES other items, drawn in proportion to popularity^0.75 within its
own part (training or test), never one that the customer bought that day. The last 20 % of the time is the
test.

No leakage: `recent` holds what the customer bought on earlier days only, and nothing else is computed from
the log. Popularity serves to draw negatives and is no feature.

Source: D. Chen (2015), Online Retail, UCI Machine Learning Repository.
Thread safety: pure functions of their arguments.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

NEGATIVES: Final = 1
"""Negatives per positive. AUC does not depend on it, the cost of a demo does."""

POPULARITY_POWER: Final = 0.75
RECENT: Final = 20
"""Items in the customer's recent history: about one basket."""

TEST_FRACTION: Final = 0.2
TEST_EXAMPLES_MAX: Final = 60_000
"""More test examples only cost time: at 60,000 the standard error of the AUC is 0.0022."""

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Purchases:
    """Distinct (customer, item, day), sorted by customer, then time. `item` counts from 0 into `items`."""

    customer: Codes
    item: Codes
    time: NDArray[np.datetime64]
    country: Codes
    items: pa.Array
    countries: pa.Array

    @property
    def day(self) -> Codes:
        """Days since 1970."""
        return self.time.astype("datetime64[D]").astype(np.int64)


def make(data: Path | None = None, rows: int | None = None, seed: int = 0) -> tuple[pa.Table, pa.Table]:
    """Read the invoices and make the two parts.

    Parameters
    ----------
    data
        online_retail.parquet.
    rows
        Read only so many of its lines, the earliest; None reads all.
    seed
        Of the negatives and of the order of examples.

    Returns
    -------
    tuple
        The training and the test part: customer, country, time, recent (list), item, bought (bool).

    Raises
    ------
    ValueError
        No file was given.
    """
    if data is None:
        raise ValueError("the retail example needs --data PATH of online_retail.parquet")
    purchases = read_purchases(data, rows)
    recent = recent_items(purchases)
    day = purchases.day
    first_test_day = day.min() + (1 - TEST_FRACTION) * (day.max() + 1 - day.min())
    rng = np.random.default_rng(seed)
    train, test = (
        _part(purchases, recent, np.flatnonzero(part), rng)
        for part in (day < first_test_day, day >= first_test_day)
    )
    return train, test.slice(0, TEST_EXAMPLES_MAX)


def read_purchases(data: Path, rows: int | None = None) -> Purchases:
    """Read the invoice lines of `data` (the first `rows` of them) that are purchases of a known customer."""
    columns = ["InvoiceNo", "StockCode", "InvoiceDate", "CustomerID", "Country"]
    lines = pq.read_table(data, columns=columns).slice(0, rows)
    cancelled = pc.starts_with(lines["InvoiceNo"], "C")
    lines = lines.filter(pc.and_(pc.is_valid(lines["CustomerID"]), pc.invert(cancelled)))
    customer = lines["CustomerID"].to_numpy().astype(np.int64)
    time = lines["InvoiceDate"].to_numpy()
    item, country = (lines[c].combine_chunks().dictionary_encode() for c in ("StockCode", "Country"))
    item_code, country_code = (c.indices.to_numpy().astype(np.int64) for c in (item, country))
    order = np.lexsort((time, customer))
    day = time.astype("datetime64[D]").astype(np.int64)
    _, first = np.unique(np.stack([customer, day, item_code])[:, order], axis=1, return_index=True)
    keep = order[np.sort(first)]
    return Purchases(
        customer[keep], item_code[keep], time[keep], country_code[keep], item.dictionary, country.dictionary
    )


def recent_items(purchases: Purchases) -> tuple[Codes, Codes]:
    """What each purchase's customer bought on earlier days: (starts, stops) of runs in `purchases.item`.

    A run ends where the day of its purchase begins, starts no earlier than the customer's first purchase,
    and has at most RECENT items, the latest.
    """
    count = len(purchases.customer)
    new_customer = np.ones(count, np.bool_)
    new_customer[1:] = purchases.customer[1:] != purchases.customer[:-1]
    new_day = new_customer.copy()
    new_day[1:] |= purchases.day[1:] != purchases.day[:-1]
    at = np.arange(count)
    customer_start = np.maximum.accumulate(np.where(new_customer, at, 0))
    day_start = np.maximum.accumulate(np.where(new_day, at, 0))
    return np.maximum(customer_start, day_start - RECENT), day_start


def sample_negatives(purchases: Purchases, positives: Codes, rng: np.random.Generator) -> tuple[Codes, Codes]:
    """Draw NEGATIVES items for each positive; (index of the positive, item), both (n,).

    A draw that the customer bought that day is drawn again, a few times at most; one that is still such is
    left out.
    """
    popularity = np.bincount(purchases.item[positives], minlength=len(purchases.items)) ** POPULARITY_POWER
    mass = np.cumsum(popularity)
    chance = mass / mass[-1]  # ends at exactly 1, which no draw reaches
    day = purchases.day

    def key(rows: Codes, items: Codes) -> Codes:
        span = int(day.max()) + 1  # customers, days and items fit 63 bits together
        return (purchases.customer[rows] * span + day[rows]) * len(purchases.items) + items

    bought = np.unique(key(positives, purchases.item[positives]))
    source = np.repeat(positives, NEGATIVES)
    items = np.searchsorted(chance, rng.random(len(source)), side="right")
    for _ in range(8):
        wrong = np.isin(key(source, items), bought)
        items[wrong] = np.searchsorted(chance, rng.random(int(wrong.sum())), side="right")
    right = ~np.isin(key(source, items), bought)
    return source[right], items[right]


def _part(
    purchases: Purchases, recent: tuple[Codes, Codes], positives: Codes, rng: np.random.Generator
) -> pa.Table:
    """Positives and their negatives, shuffled."""
    negatives, negative_items = sample_negatives(purchases, positives, rng)
    rows = np.concatenate([positives, negatives])
    items = np.concatenate([purchases.item[positives], negative_items])
    bought = np.arange(len(rows)) < len(positives)
    order = rng.permutation(len(rows))
    rows, items, bought = rows[order], items[order], bought[order]
    starts, stops = recent[0][rows], recent[1][rows]
    offsets = np.concatenate([[0], np.cumsum(stops - starts)])
    at = np.repeat(starts - offsets[:-1], stops - starts) + np.arange(offsets[-1])
    history = purchases.items.take(pa.array(purchases.item[at]))
    return pa.table(
        {
            "customer": purchases.customer[rows],
            "country": purchases.countries.take(pa.array(purchases.country[rows])),
            "time": pa.array(purchases.time[rows]),
            "recent": pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), history),
            "item": purchases.items.take(pa.array(items)),
            "bought": bought,
        }
    )
