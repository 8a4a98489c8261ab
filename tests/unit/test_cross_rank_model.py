# SPDX-License-Identifier: Apache-2.0
"""The linear learner and the inference of `rank`, against plain NumPy."""

import numpy as np
import pytest
from numpy.typing import NDArray

from feature_cross.author.kernel.logistic import add_margins, index_rows, row_losses, sweep
from feature_cross.author.rank.coding import Coded, code_ids, cross_product, cross_subsets
from feature_cross.author.rank.inference import Estimate, adjust, compare, z_value
from feature_cross.author.rank.model import Trainer
from feature_cross.author.rank.sample import Sample
from feature_cross.error import LimitError


def jagged(lists: list[list[int]]) -> Coded:
    offsets = np.cumsum([0, *map(len, lists)]).astype(np.int64)
    return code_ids(np.array([v for row in lists for v in row], np.uint64), offsets)


def design_matrix(columns: list[Coded]) -> NDArray[np.float64]:
    rows = len(columns[0].offsets) - 1
    matrix = np.zeros((rows, sum(column.size for column in columns)))
    base = 0
    for column in columns:
        for r in range(rows):
            for code in column.codes[column.offsets[r] : column.offsets[r + 1]]:
                matrix[r, base + code] += 1
        base += column.size
    return matrix


def naive_ridge(x: NDArray[np.float64], y: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
    """Newton's method on the whole matrix."""
    weights = np.zeros(x.shape[1])
    for _ in range(100):
        chance = 1 / (1 + np.exp(-x @ weights))
        curvature = (x * (chance * (1 - chance))[:, None]).T @ x + penalty * np.eye(x.shape[1])
        weights += np.linalg.solve(curvature, x.T @ (y - chance) - penalty * weights)
    return weights


def test_sweeps_converge_to_the_ridge_solution() -> None:
    random = np.random.default_rng(3)
    rows, penalty = 400, 2.0
    # lists with repeats, which count as often as they occur, and empty ones
    lists = [random.integers(0, 6, random.integers(0, 5)).tolist() for _ in range(rows)]
    column = jagged(lists)
    labels = (random.random(rows) < 0.4).astype(np.float64)
    starts, of_code = index_rows(column.codes, column.offsets, column.size)
    for code in range(column.size):
        mine = of_code[starts[code] : starts[code + 1]].tolist()
        assert mine == [
            r for r in range(rows) for c in column.codes[slice(*column.offsets[r : r + 2])] if c == code
        ]
    margins, weights = np.zeros(rows), np.zeros(column.size)
    for _ in range(200):
        fell = sweep(starts, of_code, labels, margins, weights, penalty)
    x = design_matrix([column])
    assert fell < 1e-12
    np.testing.assert_allclose(weights, naive_ridge(x, labels, penalty), atol=1e-9)
    np.testing.assert_allclose(margins, x @ weights, atol=1e-9)
    again = np.zeros(rows)
    add_margins(column.codes, column.offsets, weights, again)
    np.testing.assert_allclose(again, margins, atol=1e-9)
    fewer = np.zeros(rows)
    add_margins(column.codes, column.offsets, weights[:2], fewer)
    np.testing.assert_allclose(fewer, x[:, :2] @ weights[:2], atol=1e-9)


def test_a_separable_code_does_not_run_away() -> None:
    labels = np.ones(50)
    starts, rows = np.array([0, 50]), np.arange(50, dtype=np.int32)
    margins, weights = np.full(50, -40.0), np.zeros(1)
    for _ in range(200):
        sweep(starts, rows, labels, margins, weights, 1.0)
    assert np.isfinite(weights).all() and abs(margins[0]) < 50


def test_row_losses_do_not_overflow() -> None:
    margins, labels, out = np.array([0.0, 800.0, -800.0, 2.0]), np.array([1.0, 1.0, 1.0, 0.0]), np.empty(4)
    row_losses(margins, labels, out)
    np.testing.assert_allclose(out, [np.log(2), 0.0, 800.0, np.log1p(np.exp(2.0))])


def test_a_fit_is_the_joint_ridge_solution() -> None:
    random = np.random.default_rng(5)
    rows = 3000
    a, b = (jagged([[v] for v in random.integers(0, size, rows)]) for size in (4, 7))
    logit = np.array([-1, 0, 0.5, 1])[a.codes] + np.linspace(-1, 1, 7)[b.codes]
    labels = (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float64)
    trainer = Trainer(Sample(labels, {}, None, (2000, 2500, rows), rows))
    model = trainer.fit({"a": a, "b": b})
    x = design_matrix([a, b])[:2000]
    chance = 1 / (1 + np.exp(-model.train))
    weights = np.concatenate([model.weights["a"], model.weights["b"]])
    penalty = np.repeat([model.penalties["a"], model.penalties["b"]], [4, 7])
    assert np.abs(x.T @ (labels[:2000] - chance) - penalty * weights).max() < 0.5  # of hundreds at the start
    assert abs((labels[:2000] - chance).sum()) < 0.5
    all_margins = model.intercept + design_matrix([a, b]) @ weights
    np.testing.assert_allclose(model.selection, all_margins[2000:2500], atol=1e-9)
    np.testing.assert_allclose(trainer.final_margins(model), all_margins[2500:], atol=1e-9)
    alone = trainer.without(model, ["b"])
    assert set(alone.weights) == {"a"}
    np.testing.assert_allclose(alone.weights["a"], trainer.fit({"a": a}).weights["a"], atol=0.05)


def test_a_feature_of_noise_is_left_out_or_held_at_zero() -> None:
    random = np.random.default_rng(6)
    rows = 6000
    labels = (random.random(rows) < 0.3).astype(np.float64)
    noise = jagged([[v] for v in random.integers(0, 2000, rows)])
    trainer = Trainer(Sample(labels, {}, None, (4000, 5000, rows), rows))
    model = trainer.extend(trainer.start(), "noise", noise)
    assert model.penalties.get("noise", 4096.0) >= 64
    assert all(np.abs(weights).max() < 0.1 for weights in model.weights.values())


def naive_auc(margins: NDArray[np.float64], labels: NDArray[np.float64]) -> float:
    up, down = margins[labels == 1], margins[labels == 0]
    return float((up[:, None] > down).mean() + 0.5 * (up[:, None] == down).mean())


def test_gains_and_their_errors_are_those_of_the_bootstrap() -> None:
    random = np.random.default_rng(7)
    rows = 1500
    truth = random.normal(size=rows)
    labels = (random.random(rows) < 1 / (1 + np.exp(-truth))).astype(np.float64)
    base = np.round(0.3 * truth + random.normal(size=rows), 1)  # rounded: ties
    better = np.round(0.8 * truth + 0.5 * random.normal(size=rows), 1)
    gain = compare(base, better, labels)
    losses = [np.log1p(np.exp(m)) - labels * m for m in (base, better)]
    assert gain.log_loss.value == pytest.approx((losses[0] - losses[1]).mean())
    assert gain.base_auc == pytest.approx(naive_auc(base, labels))
    assert gain.auc.value == pytest.approx(naive_auc(better, labels) - naive_auc(base, labels))
    resampled = []
    for _ in range(400):
        at = random.integers(0, rows, rows)
        one = compare(base[at], better[at], labels[at])
        resampled.append((one.log_loss.value, one.auc.value))
    assert gain.log_loss.error == pytest.approx(np.std(resampled, axis=0)[0], rel=0.12)
    assert gain.auc.error == pytest.approx(np.std(resampled, axis=0)[1], rel=0.12)


def test_rows_of_one_group_do_not_count_as_many() -> None:
    random = np.random.default_rng(8)
    truth = random.normal(size=300)
    labels = (random.random(300) < 1 / (1 + np.exp(-truth))).astype(np.float64)
    base, better = random.normal(size=300), truth + random.normal(size=300)
    once = compare(base, better, labels)
    three = [np.repeat(values, 3) for values in (base, better, labels)]
    naive = compare(three[0], three[1], three[2])
    grouped = compare(three[0], three[1], three[2], np.repeat(np.arange(300), 3))
    assert naive.log_loss.error == pytest.approx(once.log_loss.error / 3**0.5, rel=0.01)
    assert grouped.log_loss.error == pytest.approx(once.log_loss.error, rel=1e-9)
    assert grouped.auc.error == pytest.approx(once.auc.error, rel=1e-9)


def test_corrections_are_those_of_the_papers() -> None:
    p_values = [0.01, 0.04, 0.03, 0.005]
    assert adjust(p_values, "holm") == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust(p_values, "bh") == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert adjust(p_values, "holm", 10) == pytest.approx([0.09, 0.28, 0.24, 0.05])
    assert adjust([0.01], "bh", 4) == pytest.approx([0.04])
    assert adjust([0.9, 0.8], "holm") == [1.0, 1.0]
    with pytest.raises(ValueError, match="it must be holm or bh"):
        adjust([0.1], "none")


def test_intervals_and_p_values() -> None:
    assert z_value(0.95, 1) == pytest.approx(1.959964, abs=1e-5)
    assert z_value(0.95, 10) == pytest.approx(2.807034, abs=1e-5)
    assert Estimate(1.0, 0.5).interval(2.0) == (0.0, 2.0)
    assert Estimate(1.0, 0.5).p_value == pytest.approx(0.0455, abs=1e-5)
    assert Estimate(-1.0, 0.5).p_value == 1.0
    assert Estimate(0.0, 0.0).p_value == 1.0 and Estimate(0.1, 0.0).p_value == 0.0


def test_crosses_of_codes_are_the_pairings_of_each_row() -> None:
    random = np.random.default_rng(9)
    a = [random.integers(0, 5, random.integers(0, 4)).tolist() for _ in range(200)]
    b = [random.integers(0, 5, random.integers(0, 3)).tolist() for _ in range(200)]
    product = cross_product("a x b", [jagged(a), jagged(b)])
    meaning: dict[int, tuple[int, int]] = {}
    for r in range(200):
        pairs = [(x, y) for x in a[r] for y in b[r]]
        codes = product.codes[product.offsets[r] : product.offsets[r + 1]].tolist()
        assert len(codes) == len(pairs)
        for code, pair in zip(codes, pairs, strict=True):
            assert meaning.setdefault(code, pair) == pair
    assert product.size == len(meaning) == len(set(meaning.values()))
    subsets = cross_subsets("a", jagged(a), 2)
    expected = [len({(x, y) for x in row for y in row if x < y}) for row in a]
    assert np.diff(subsets.offsets).tolist() == expected


def test_a_candidate_past_a_limit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    long = jagged([list(range(300))])
    with pytest.raises(LimitError, match="l x l gives more than 65536 ids for one row"):
        cross_product("l x l", [long, long])
    monkeypatch.setattr("feature_cross.author.rank.coding.CANDIDATE_IDS_MAX", 10)
    with pytest.raises(LimitError, match="pairs of l gives 44850 ids for 1 rows; at most 10"):
        cross_subsets("pairs of l", long, 2)
