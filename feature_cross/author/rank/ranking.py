# SPDX-License-Identifier: Apache-2.0
"""What each cross of a config is worth: gain in held-out log loss and AUC over a model without it.

For every cross two models are fitted that differ in it alone. Penalties are chosen on selection rows; the
figures come from final rows, which nothing before them has seen. All crosses of one ranking are one family
of tests: intervals hold for all of them together (Bonferroni), p-values are corrected (Holm, or BH).
Thread safety: pure functions.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from rowhouse.problem import nearest

from feature_cross.author.rank.inference import Gain, adjust, compare, z_value
from feature_cross.author.rank.model import Model, Trainer
from feature_cross.author.rank.part import Probe, is_cross, make_probe, unique
from feature_cross.author.rank.sample import Design, Sample, read_sample
from feature_cross.author.rank.work import Progress, no_progress, run_tasks
from feature_cross.config.config import CrossConfig
from feature_cross.config.node import Node
from feature_cross.config.plan import build_plan
from feature_cross.error import FlagError

__all__ = ["CrossGain", "Judgement", "Ranking", "rank"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """How figures of one family of tests are corrected.

    Attributes
    ----------
    level
        Chance that all intervals of the family hold; 1 - level is the error that "significant" allows.
    correction
        `holm` (family-wise error) or `bh` (false discovery rate), of the p-values.
    """

    level: float = 0.95
    correction: str = "holm"


@dataclass(frozen=True, slots=True)
class CrossGain:
    """One cross on the final rows.

    Attributes
    ----------
    name
        The feature.
    over
        What it is judged against.
    distinct
        Its distinct ids in the rows read.
    known_rows
        Share of the final rows with an id of it that training has seen.
    penalty
        Ridge penalty that selection chose; None: selection left it out, so its gain is 0.
    gain
        On the final rows.
    p_value, p_adjusted
        Two-sided, of no gain in log loss; alone, and corrected.
    significant
        p_adjusted is below 1 - level.
    """

    name: str
    over: tuple[str, ...]
    distinct: int
    known_rows: float
    penalty: float | None
    gain: Gain
    p_value: float
    p_adjusted: float
    significant: bool


@dataclass(frozen=True, slots=True)
class Ranking:
    """Crosses by their log-loss gain, best first. `planned` counts the family; `crosses` is what was done."""

    crosses: tuple[CrossGain, ...]
    planned: int
    z: float
    rows: tuple[int, int, int]
    rows_total: int
    interrupted: bool


def rank(
    config: CrossConfig,
    source: Any,
    design: Design,
    *,
    over: str = "parts",
    features: Sequence[str] = (),
    judgement: Judgement | None = None,
    threads: int = 1,
    progress: Progress = no_progress,
) -> Ranking:
    """Rank the crosses of a config.

    Parameters
    ----------
    config
        From `feature_cross.load`.
    source
        Path of a file or folder, a pyarrow dataset or Table.
    design
        The label, and how rows are divided.
    over
        One of OVER.
    features
        Only these crosses; empty: all.
    judgement
        Level and correction; None takes the defaults.
    threads
        Crosses worked on at once.
    progress
        Is told how far the work is.

    Returns
    -------
    Ranking
        Not whole if a KeyboardInterrupt came; then `interrupted` is true.

    Raises
    ------
    DataError, FlagError
        As `read_sample`; or `features` names something that is no cross, or there is none.
    """
    judgement = judgement or Judgement()
    plan = build_plan(config)
    nodes = _wanted([node for node in plan.nodes if is_cross(node)], list(features), config)
    probe = make_probe(config, plan)
    sample = read_sample(probe.config, source, design, progress)
    ranker = _Ranker(sample, probe, over, [node.name for node in plan.nodes])
    ranker.expect(node.name for node in nodes)
    tasks = [partial(ranker.judge, node.name) for node in nodes]
    done, interrupted = run_tasks("crosses", tasks, threads, progress, ranker.trainer.stop)
    z = z_value(judgement.level, len(nodes))
    return Ranking(
        _judged(list(done.values()), judgement, len(nodes)), len(nodes), z, sample.rows, sample.rows_total,
        interrupted,
    )  # fmt: skip


def _wanted(crosses: list[Node], names: list[str], config: CrossConfig) -> list[Node]:
    known = [node.name for node in crosses]
    if not known:
        raise FlagError(f"{config.source} has no cross to rank: every feature is one column")
    for name in names:
        if name not in known:
            raise FlagError(f"--feature is {name!r}, which is no cross of the config; {nearest(name, known)}")
    return [node for node in crosses if not names or node.name in names]


class _Ranker:
    """Judges crosses one by one; bases that several crosses share are fitted once."""

    def __init__(self, sample: Sample, probe: Probe, over: str, features: list[str]) -> None:
        self.sample = sample
        self.probe = probe
        self.over = over
        self.features = features
        self.trainer = Trainer(sample)
        self.bases: dict[frozenset[str], Model] = {}
        self.locks: dict[frozenset[str], threading.Lock] = {}
        self.lock = threading.Lock()
        self.waiting: Counter[frozenset[str]] = Counter()

    def expect(self, names: Iterable[str]) -> None:
        """Tell which crosses will be judged: a base is kept until the last of them has used it."""
        self.waiting.update(self._base_names(name) for name in names)

    def _base_names(self, name: str) -> frozenset[str]:
        over = self._over(name)
        return frozenset([*self._over(""), *over, name] if self.over == "rest" else over)

    def judge(self, name: str) -> CrossGain:
        column = self.sample.columns[name]
        over = self._over(name)
        if self.over == "rest":
            whole = self._base(self._base_names(name))
            base, better = self.trainer.without(whole, [name]), whole
        else:
            base = self._base(self._base_names(name))
            better = self.trainer.extend(base, name, column, keep_index=True)
            if name in better.weights:
                better = self.trainer.refine(better)
            self.trainer.forget(column)
        gain = compare(
            self.trainer.final_margins(base), self.trainer.final_margins(better), self.trainer.final_labels,
            self.trainer.final_groups,
        )  # fmt: skip
        labels = tuple(unique(self.probe.labels[part] for part in over))
        p_value = gain.log_loss.p_value
        return CrossGain(
            name, labels, column.size, self._known(name), better.penalties.get(name), gain, p_value, p_value,
            False,
        )  # fmt: skip

    def _over(self, name: str) -> tuple[str, ...]:
        if self.over == "parts":
            return self.probe.parts[name]
        columns = tuple(self.probe.columns.values())
        if self.over == "columns":
            parts = self.probe.parts[name]
            return (*columns, *(part for part in parts if part not in columns))
        return (*columns, *(feature for feature in self.features if feature != name))

    def _base(self, names: frozenset[str]) -> Model:
        with self.lock:
            lock = self.locks.setdefault(names, threading.Lock())
        with lock:  # others that need this base wait for it
            if names not in self.bases:
                self.bases[names] = self.trainer.fit({name: self.sample.columns[name] for name in names})
            model = self.bases[names]
            self.waiting[names] -= 1
            if self.waiting[names] == 0:
                del self.bases[names]
        return model

    def _known(self, name: str) -> float:
        """Share of final rows with at least one id that training has."""
        column, (first, second, _) = self.sample.columns[name], self.sample.bounds
        known = column.codes[column.offsets[second] :] < column.trained(first)
        offsets = column.offsets[second:] - column.offsets[second]
        totals = np.concatenate([[0], np.cumsum(known)])
        return float((totals[offsets[1:]] > totals[offsets[:-1]]).mean())


def _judged(found: list[CrossGain], judgement: Judgement, planned: int) -> tuple[CrossGain, ...]:
    """Corrected for the number of tests, the best first."""
    adjusted = adjust([one.p_value for one in found], judgement.correction, planned)
    gains = [
        replace(one, p_adjusted=p, significant=p < 1 - judgement.level)
        for one, p in zip(found, adjusted, strict=True)
    ]
    return tuple(sorted(gains, key=lambda one: (-one.gain.log_loss.value, one.name)))
