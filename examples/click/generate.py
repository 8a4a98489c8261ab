# SPDX-License-Identifier: Apache-2.0
"""A synthetic click log with planted effects, each of which one family of crosses can represent.

Users and items follow Zipf's law. The log-odds of a click are the sum of what single columns explain
(a bias per user, item and category) and of effects that no single column explains:

- categorical: a bias of each (city, age band), both attributes of the user;
- interaction: an affinity of each (age band, category) and of each (city, brand);
- combination, sorted: an effect of each unordered pair of categories in the basket;
- combination, permutation: an effect of each ordered trail of the last three pages;
- weak: an effect of each (top category of last month, promotion), which never occur in one event.

Thread safety: pure functions of their arguments.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

USERS: Final = 20_000
ITEMS: Final = 5_000
AGE_BANDS: Final = 8
CITIES: Final = 40
CATEGORIES: Final = 24
BRANDS: Final = 60
PROMOTIONS: Final = 30
PAGES: Final = 8
BASKET: Final = 3
TRAIL: Final = 3
ZIPF_EXPONENT: Final = 1.05
BASE_LOG_ODDS: Final = -1.2
"""With the effects below, about one impression in three is a click."""


@dataclass(frozen=True, kw_only=True)
class Strength:
    """Standard deviation of each planted effect, in log-odds.

    Attributes
    ----------
    single
        Biases of a user, an item and a category.
    categorical, interaction, combination, permutation, weak
        The effect of that name in the module's text.
    """

    single: float = 0.4
    categorical: float = 0.4
    interaction: float = 0.5
    combination: float = 0.4
    permutation: float = 0.5
    weak: float = 0.5


def generate(rows: int, seed: int, strength: Strength | None = None) -> pa.Table:
    """Generate a log.

    Parameters
    ----------
    rows
        Impressions, at least 1, in time order.
    seed
        Of the world and of the log; equal arguments give equal tables.
    strength
        How strong each effect is; None takes the defaults.

    Returns
    -------
    pa.Table
        Columns user_id, age_band, city, top_category, item_id, category, brand, promotion,
        basket (list), trail (list) and clicked (bool).
    """
    size = strength or Strength()
    rng = np.random.default_rng(seed)
    user, item = _zipf(rng, USERS, rows), _zipf(rng, ITEMS, rows)
    age = rng.integers(AGE_BANDS, size=USERS)[user]
    city = rng.integers(CITIES, size=USERS)[user]
    top = rng.integers(CATEGORIES, size=USERS)[user]
    category = rng.integers(CATEGORIES, size=ITEMS)[item]
    brand = rng.integers(BRANDS, size=ITEMS)[item]
    promotion = rng.integers(PROMOTIONS, size=rows)
    basket = np.argsort(rng.random((rows, CATEGORIES)), axis=1)[:, :BASKET]  # distinct, in random order
    trail = rng.integers(PAGES, size=(rows, TRAIL))

    def effect(deviation: float, *shape: int) -> NDArray[np.float64]:
        return rng.normal(0.0, deviation, shape)

    logit = np.full(rows, BASE_LOG_ODDS)
    logit += effect(size.single, USERS)[user] + effect(size.single, ITEMS)[item]
    logit += effect(size.single, CATEGORIES)[category]
    logit += effect(size.categorical, CITIES, AGE_BANDS)[city, age]
    logit += effect(size.interaction, AGE_BANDS, CATEGORIES)[age, category]
    logit += effect(size.interaction, CITIES, BRANDS)[city, brand]
    pair = effect(size.combination, CATEGORIES, CATEGORIES)
    for a in range(BASKET):
        for b in range(a + 1, BASKET):
            logit += pair[np.minimum(basket[:, a], basket[:, b]), np.maximum(basket[:, a], basket[:, b])]
    logit += effect(size.permutation, *[PAGES] * TRAIL)[tuple(trail.T)]
    logit += effect(size.weak, CATEGORIES, PROMOTIONS)[top, promotion]
    clicked = rng.random(rows) < 1.0 / (1.0 + np.exp(-logit))
    return pa.table(
        {
            "user_id": user,
            "age_band": age,
            "city": _named(city, CITIES, "city"),
            "top_category": _named(top, CATEGORIES, "category"),
            "item_id": item,
            "category": _named(category, CATEGORIES, "category"),
            "brand": _named(brand, BRANDS, "brand"),
            "promotion": _named(promotion, PROMOTIONS, "promotion"),
            "basket": _lists(_named(basket.ravel(), CATEGORIES, "category"), BASKET),
            "trail": _lists(_named(trail.ravel(), PAGES, "page"), TRAIL),
            "clicked": clicked,
        }
    )


def _zipf(rng: np.random.Generator, count: int, rows: int) -> NDArray[np.int64]:
    """`rows` draws from 0 … count - 1, the chance of rank r being in proportion to 1 / (r + 1)^exponent."""
    mass = np.cumsum(1.0 / np.arange(1, count + 1) ** ZIPF_EXPONENT)
    return np.searchsorted(mass / mass[-1], rng.random(rows), side="right").astype(np.int64)


def _named(codes: NDArray[np.int64], count: int, prefix: str) -> pa.Array:
    names = pa.array([f"{prefix}-{i}" for i in range(count)])
    return names.take(pa.array(codes))


def _lists(values: pa.Array, length: int) -> pa.Array:
    offsets = np.arange(0, len(values) + 1, length, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)
