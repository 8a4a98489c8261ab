# SPDX-License-Identifier: Apache-2.0
"""Drops features whose removal does not hurt, and more where a budget of bytes asks for it.

"Does not hurt" is shown, not presumed: the upper bound of the interval of what the log loss rises by, against
the model with all features, is within a tolerance (a non-inferiority test). Selection rows decide, one
feature at a time, so of two features that say the same one stays; the final rows, read once, then say what
the pruned model loses. Features whose ids divide the rows exactly alike need no test: one of them stays.
Thread safety: pure functions.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np
from rowhouse.problem import nearest

from feature_cross.author.rank.inference import Estimate, Gain, compare, compare_losses
from feature_cross.author.rank.model import Model, Trainer
from feature_cross.author.rank.part import make_probe
from feature_cross.author.rank.sample import Design, Sample, read_sample
from feature_cross.author.rank.work import Progress, no_progress, run_tasks
from feature_cross.author.size import RowShape
from feature_cross.config.config import CrossConfig
from feature_cross.config.node import Plan
from feature_cross.config.plan import build_plan
from feature_cross.error import FlagError

__all__ = ["Limits", "Pruned", "Verdict", "prune"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How far to prune.

    Attributes
    ----------
    budget
        Bytes that the remaining features may take; None: any.
    tolerance
        Rise of the log loss that counts as no harm, as a share of the log loss of the whole model.
    bytes_per_row
        Of one id's row.
    keep
        Features that stay whatever they are worth.
    level
        Chance that a bound holds.
    """

    budget: int | None = None
    tolerance: float = 0.001
    bytes_per_row: int = RowShape().row_bytes("memory")
    keep: tuple[str, ...] = ()
    level: float = 0.95


@dataclass(frozen=True, slots=True)
class Verdict:
    """One feature: what its removal costs on selection rows, beside the removals before it.

    Attributes
    ----------
    name
        The feature.
    distinct, size_bytes
        Distinct ids in the rows read, and the bytes of their rows as if the feature were alone.
    hurt
        Rise of the selection log loss without it, in nats.
    dropped
        `duplicate`, `harmless`, `budget`, or empty if it stays.
    same_as
        The feature that stays, where this one divides the rows exactly as it does; else empty.
    """

    name: str
    distinct: int
    size_bytes: int
    hurt: Estimate
    dropped: str
    same_as: str = ""


@dataclass(frozen=True, slots=True)
class Pruned:
    """The outcome.

    Attributes
    ----------
    verdicts
        Every feature that was judged, in the order of the config.
    dropped
        Names of those that go.
    margin
        The tolerance in nats.
    loss
        What the whole model is better by than the pruned one, on the final rows; None if nothing goes.
    harmless
        The final rows show `loss` to be within the margin.
    z
        Standard errors from `loss` to its one-sided bound.
    bytes_before, bytes_after
        Of the rows of all features; ids that several share are counted once.
    rows, rows_total
        Rows of training, selection and final, and of the source.
    interrupted
        An interrupt came, and features are missing in `verdicts`.
    """

    verdicts: tuple[Verdict, ...]
    dropped: tuple[str, ...]
    margin: float
    loss: Gain | None
    harmless: bool
    z: float
    bytes_before: int
    bytes_after: int
    rows: tuple[int, int, int]
    rows_total: int
    interrupted: bool


def prune(
    config: CrossConfig,
    source: Any,
    design: Design,
    limits: Limits,
    *,
    threads: int = 1,
    progress: Progress = no_progress,
) -> Pruned:
    """Find features to drop.

    Parameters
    ----------
    config
        From `feature_cross.load`.
    source
        Path of a file or folder, a pyarrow dataset or Table.
    design
        The label, and how rows are divided.
    limits
        Tolerance and budget.
    threads
        Features worked on at once.
    progress
        Is told how far the work is.

    Returns
    -------
    Pruned
        Not whole if a KeyboardInterrupt came; then `interrupted` is true.

    Raises
    ------
    DataError, FlagError
        As `read_sample`; or `limits.keep` names no feature, or asks for more than the budget.
    """
    plan = build_plan(config)
    for name in limits.keep:
        if name not in plan.outputs:
            message = f"--keep is {name!r}, which is no feature of the config"
            raise FlagError(f"{message}; {nearest(name, list(plan.outputs))}")
    probe = make_probe(config, plan)
    sample = read_sample(probe.config, source, design, progress)
    pruner = _Pruner(sample, plan, limits, threads, progress)
    return pruner.result(pruner.run())


class _Pruner:
    def __init__(self, sample: Sample, plan: Plan, limits: Limits, threads: int, progress: Progress) -> None:
        self.sample, self.names, self.limits = sample, plan.outputs, limits
        self.groups = plan.groups.values()
        self.parts = {name: len(plan.node(name).operands) for name in plan.outputs}
        self.threads, self.progress = threads, progress
        self.trainer = Trainer(sample)
        self.size = {name: sample.columns[name].size * limits.bytes_per_row for name in self.names}
        self.z = NormalDist().inv_cdf(limits.level)
        self.hurt: dict[str, Estimate] = {}
        self.dropped: dict[str, str] = {}
        self.whole = self.current = self.trainer.start()
        self.margin = 0.0
        self.same_as = self._duplicates()
        for name in self.same_as:
            self.dropped[name], self.hurt[name] = "duplicate", Estimate(0.0, 0.0)
        self._check_budget()

    def _duplicates(self) -> dict[str, str]:
        """Of features that divide the rows alike, those that can go, by name: the one that stays.

        Those of --keep stay; else the one of the fewest parts, and of these the first of the config.
        """
        alike: dict[bytes, list[str]] = {}
        for name in self.names:
            alike.setdefault(self.sample.columns[name].fingerprint(), []).append(name)
        found: dict[str, str] = {}
        for names in alike.values():
            first = min(names, key=lambda name: (name not in self.limits.keep, self.parts[name]))
            found |= {name: first for name in names if name != first and name not in self.limits.keep}
        return found

    def _check_budget(self) -> None:
        budget, kept = self.limits.budget, self._bytes(self.limits.keep)
        least = kept or min(self.size.values())
        if budget is not None and least > budget:
            what = "the features of --keep take" if kept else "the smallest feature takes"
            raise FlagError(f"--budget is {budget} bytes, but {what} {least}")

    def run(self) -> bool:
        """Decide on every feature; true if an interrupt came."""
        if self._alone("whole model", self._fit):
            return True
        if self._judge("features", self._open()) or self._alone("drop", self._drop_harmless):
            return True
        return self._drop_for_budget()

    def _fit(self) -> None:
        self.whole = self.trainer.fit({name: self.sample.columns[name] for name in self._left()})
        self.current = self.whole
        self.margin = self.limits.tolerance * self.whole.selection_loss

    def _alone(self, stage: str, task: Callable[[], None]) -> bool:
        _, interrupted = run_tasks(stage, [task], 1, self.progress, self.trainer.stop)
        return interrupted

    def _open(self) -> list[str]:
        return [name for name in self.names if name not in self.dropped and name not in self.limits.keep]

    def _judge(self, stage: str, names: list[str]) -> bool:
        tasks = [partial(self._cost, name) for name in names]
        done, interrupted = run_tasks(stage, tasks, self.threads, self.progress, self.trainer.stop)
        self.hurt |= {names[position]: hurt for position, hurt in done.items()}
        return interrupted

    def _cost(self, name: str) -> Estimate:
        """Without the model, which is as large as all rows: only those under way are in memory."""
        return self._without(name)[1]

    def _without(self, name: str) -> tuple[Model, Estimate]:
        """The current model without a feature, and its loss over the whole one on selection rows."""
        model = self.trainer.without(self.current, [name])
        hurt, _ = compare_losses(
            model.selection,
            self.whole.selection,
            self.trainer.selection_labels,
            self.trainer.selection_groups,
        )
        return model, hurt

    def _is_harmless(self, hurt: Estimate) -> bool:
        return hurt.interval(self.z)[1] <= self.margin

    def _drop_harmless(self) -> None:
        """The largest first: of two that say the same, the smaller one stays."""
        harmless = [name for name in self._open() if self._is_harmless(self.hurt[name])]
        harmless.sort(key=lambda name: (-self.size[name], name))
        for name in harmless:
            if len(self.dropped) == len(self.names) - 1:
                break
            model, hurt = self._without(name)
            self.hurt[name] = hurt
            if self._is_harmless(hurt):
                self.dropped[name], self.current = "harmless", model

    def _drop_for_budget(self) -> bool:
        """The least rise of the loss per byte goes, until the rest fits."""
        budget = self.limits.budget
        while budget is not None and self._bytes(self._left()) > budget:
            names = self._open()
            if self._judge("fit the budget", names):
                return True
            worst = min(names, key=lambda name: (self.hurt[name].value / self.size[name], name))
            if self._alone("drop for the budget", partial(self._drop, worst)):
                return True
        return False

    def _drop(self, name: str) -> None:
        self.current, self.hurt[name] = self._without(name)
        self.dropped[name] = "budget"

    def _left(self) -> list[str]:
        return [name for name in self.names if name not in self.dropped]

    def _bytes(self, names: Iterable[str]) -> int:
        """Of a set of features; an id that several share is one row."""
        wanted, total = set(names), 0
        for group in self.groups:
            chosen = [name for name in group if name in wanted]
            sets = [self.sample.columns[name].ids for name in chosen]
            together = [ids for ids in sets if ids is not None]
            if len(together) > 1:
                total += len(np.unique(np.concatenate(together))) * self.limits.bytes_per_row
            else:
                total += sum(self.size[name] for name in chosen)
        return total

    def result(self, interrupted: bool) -> Pruned:
        """The final rows' word; they are read here and nowhere before."""
        trainer = self.trainer
        loss, harmless = None, True
        if self.dropped:
            margins = trainer.final_margins(self.current), trainer.final_margins(self.whole)
            loss = compare(*margins, trainer.final_labels, trainer.final_groups)
            harmless = self._is_harmless(loss.log_loss)
        verdicts = tuple(
            Verdict(
                name, self.sample.columns[name].size, self.size[name], self.hurt[name],
                self.dropped.get(name, ""), self.same_as.get(name, ""),
            )
            for name in self.names
            if name in self.hurt
        )  # fmt: skip
        return Pruned(
            verdicts, tuple(self.dropped), self.margin, loss, harmless, self.z, self._bytes(self.names),
            self._bytes(self._left()), self.sample.rows, self.sample.rows_total,
            interrupted,
        )  # fmt: skip
