# SPDX-License-Identifier: Apache-2.0
"""A linear model over coded ids: one weight per id, one ridge penalty per feature.

A feature's penalty is chosen on the selection rows, with the rest of the model held fixed; "leave it out"
is one of the choices, so a feature of pure noise adds nothing rather than noise. Then all weights are
refined together until the loss no longer falls: a gain is never the effect of a learning rate or of the
order of rows. Invariant: fitting reads labels of training and selection rows only; the final rows are
read by `final_margins` and feature_cross/author/rank/inference.py.
Thread safety: a Trainer may be used by several threads at once; a Model is immutable.
"""

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from feature_cross.author.kernel.logistic import add_margins, index_rows, row_losses, sweep
from feature_cross.author.rank.coding import Coded
from feature_cross.author.rank.sample import Sample

__all__ = ["PENALTIES", "Model", "StoppedError", "Trainer"]

PENALTIES = tuple(float(4**power) for power in range(6, -1, -1))
"""Ridge penalties that are tried: 4096 keeps a weight at zero until thousands of rows speak for it."""

_PATH_SWEEPS = 2
"""Sweeps for each penalty tried; each starts from the weights of the one before."""

_PATIENCE = 2
"""Penalties in a row that may bring no better selection loss before the rest are left out."""

_SWEEPS_MAX = 40
_FALL_MIN = 1e-6
"""Refining stops when a sweep over all features lowers the loss per row by less, in nats."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A fit.

    Attributes
    ----------
    intercept
        Log-odds of a row without any trained id.
    weights
        (K',) float64 of each feature, by name; a code past K' has weight 0.
    penalties
        Ridge penalty of each feature.
    train, selection
        Margins (log-odds) of those rows, float64.
    selection_loss
        Mean log loss of the selection rows, in nats.
    columns
        The features that are in `weights`, and those whose best penalty was to leave them out.
    """

    intercept: float
    weights: Mapping[str, Floats]
    penalties: Mapping[str, float]
    train: Floats
    selection: Floats
    selection_loss: float
    columns: Mapping[str, Coded] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class _Index:
    starts: NDArray[np.int64]
    rows: NDArray[np.int32]


class StoppedError(Exception):
    """A fit was given up half way: `Trainer.stop` was called."""


class Trainer:
    """Fits models to a sample.

    Parameters
    ----------
    sample
        The rows.
    """

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self._selection_first, self._final_first, self._rows = sample.bounds
        self._train_labels = sample.labels[: self._selection_first]
        self._selection_labels = sample.labels[self._selection_first : self._final_first]
        self._indexes: dict[int, tuple[Coded, _Index]] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Make every fit that is under way, in other threads, end with StoppedError soon."""
        self._stopped.set()

    def _sweep(self, index: _Index, margins: Floats, weights: Floats, penalty: float) -> float:
        if self._stopped.is_set():
            raise StoppedError
        return float(sweep(index.starts, index.rows, self._train_labels, margins, weights, penalty))

    def start(self) -> Model:
        """The model without features: the base rate."""
        rate = float(self._train_labels.mean())
        intercept = float(np.log(rate / (1 - rate)))
        train = np.full(len(self._train_labels), intercept)
        selection = np.full(len(self._selection_labels), intercept)
        return Model(intercept, {}, {}, train, selection, self._loss(selection))

    def fit(self, columns: Mapping[str, Coded]) -> Model:
        """A model of all `columns`: small ones first, each with its best penalty, then refined together."""
        model = self.start()
        for name in sorted(columns, key=lambda name: (columns[name].size, name)):
            model = self.extend(model, name, columns[name], keep_index=True)
        return self.refine(model)

    def extend(self, model: Model, name: str, column: Coded, keep_index: bool = False) -> Model:
        """The model and one more feature, the others' weights held fixed.

        Parameters
        ----------
        model
            From `start`, `fit` or `extend`.
        name, column
            The feature; not in the model yet.
        keep_index
            Keep the feature's index for other fits; for features that are in many.
        """
        columns = {**model.columns, name: column}
        index = self._index(column, keep_index)
        weights = np.zeros(len(index.starts) - 1)
        train = model.train.copy()
        best = replace(model, columns=columns)
        worse = 0
        for penalty in PENALTIES:
            for _ in range(_PATH_SWEEPS):
                self._sweep(index, train, weights, penalty)
            selection = model.selection.copy()
            self._add(column, weights, self._selection_first, selection)
            loss = self._loss(selection)
            if loss < best.selection_loss:
                best = Model(
                    model.intercept, {**model.weights, name: weights.copy()},
                    {**model.penalties, name: penalty}, train.copy(), selection, loss, columns,
                )  # fmt: skip
                worse = 0
            else:
                worse += 1
                if worse >= _PATIENCE and name in best.weights:
                    break
        return best

    def refine(self, model: Model) -> Model:
        """All weights together, penalties held fixed, until the loss no longer falls."""
        train = model.train.copy()
        weights = {name: values.copy() for name, values in model.weights.items()}
        intercept = model.intercept
        for _ in range(_SWEEPS_MAX):
            step = _intercept_step(train, self._train_labels)
            intercept += step
            train += step
            fell = 0.0
            for name, values in weights.items():
                index = self._index(model.columns[name], True)
                fell += self._sweep(index, train, values, model.penalties[name])
            if fell < _FALL_MIN * len(train):
                break
        selection = np.full(len(self._selection_labels), intercept)
        for name, values in weights.items():
            self._add(model.columns[name], values, self._selection_first, selection)
        loss = self._loss(selection)
        return replace(
            model, intercept=intercept, weights=weights, train=train, selection=selection, selection_loss=loss
        )

    def without(self, model: Model, names: Iterable[str]) -> Model:
        """The model refined again after features were taken out of it."""
        out = set(names)
        train, selection = model.train.copy(), model.selection.copy()
        for name in out & model.weights.keys():
            self._add(model.columns[name], -model.weights[name], 0, train)
            self._add(model.columns[name], -model.weights[name], self._selection_first, selection)
        kept = {name: values for name, values in model.weights.items() if name not in out}
        left = replace(
            model,
            weights=kept,
            penalties={name: model.penalties[name] for name in kept},
            columns={name: column for name, column in model.columns.items() if name not in out},
            train=train,
            selection=selection,
        )
        return self.refine(left)

    def forget(self, column: Coded) -> None:
        """Let go of a feature's index; for a candidate that is in no other fit."""
        with self._lock:
            self._indexes.pop(id(column), None)

    def final_margins(self, model: Model) -> Floats:
        """Margins of the final rows, (rows,) float64."""
        margins = np.full(self._rows - self._final_first, model.intercept)
        for name, values in model.weights.items():
            self._add(model.columns[name], values, self._final_first, margins)
        return margins

    @property
    def final_labels(self) -> Floats:
        """Labels of the final rows."""
        return self.sample.labels[self._final_first :]

    @property
    def selection_labels(self) -> Floats:
        """Labels of the selection rows."""
        return self._selection_labels

    @property
    def selection_groups(self) -> NDArray[np.int64] | None:
        """Groups of the selection rows."""
        groups = self.sample.groups
        return None if groups is None else groups[self._selection_first : self._final_first]

    @property
    def final_groups(self) -> NDArray[np.int64] | None:
        """Groups of the final rows."""
        return None if self.sample.groups is None else self.sample.groups[self._final_first :]

    def _add(self, column: Coded, weights: Floats, first: int, margins: Floats) -> None:
        add_margins(column.codes, column.offsets[first : first + len(margins) + 1], weights, margins)

    def _loss(self, selection: Floats) -> float:
        out = np.empty(len(selection))
        row_losses(selection, self._selection_labels, out)
        return float(out.mean())

    def _index(self, column: Coded, keep: bool) -> _Index:
        with self._lock:
            found = self._indexes.get(id(column))
        if found is not None:
            return found[1]
        size = column.trained(self._selection_first)
        index = _Index(*index_rows(column.codes, column.offsets[: self._selection_first + 1], size))
        if keep:
            with self._lock:  # with the column itself, so that its id() stays its own
                self._indexes[id(column)] = (column, index)
        return index


def _intercept_step(margins: Floats, labels: Floats) -> float:
    chance = 1.0 / (1.0 + np.exp(-margins))
    return float((labels - chance).sum() / max(float((chance * (1 - chance)).sum()), 1e-9))
