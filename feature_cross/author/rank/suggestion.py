# SPDX-License-Identifier: Apache-2.0
"""Finds crosses that a config lacks: a beam search over pairs and triples of its plain columns.

1. A base model of all that the config has, and its plain columns. 2. Every pair is tried on top of it, then
the triples of the best pairs; selection rows are the judge. 3. Greedily, the best one joins the model and
the others are tried again on top (lazily: Minoux 1978, "Accelerated greedy algorithms for maximizing
submodular set functions"), within a budget of bytes. 4. Only then the final rows are read: the gain of each
step over the one before, corrected for the number of steps. However many candidates were tried, they are
no tests: no figure that chose one is reported. Thread safety: pure functions.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.dataset
from rowhouse.problem import nearest

from feature_cross.author.check.lint import FUTILE_RATIO
from feature_cross.author.rank.candidate import (
    Candidate,
    code,
    declare,
    existing,
    highest_slot,
    pairs,
    triples,
)
from feature_cross.author.rank.coding import Coded
from feature_cross.author.rank.inference import Estimate, Gain, adjust, compare, compare_losses, z_value
from feature_cross.author.rank.model import Model, Trainer
from feature_cross.author.rank.part import Probe, make_probe
from feature_cross.author.rank.ranking import Judgement
from feature_cross.author.rank.sample import Design, Sample, read_sample
from feature_cross.author.rank.work import Progress, no_progress, run_tasks
from feature_cross.author.size import RowShape
from feature_cross.config.config import CrossConfig
from feature_cross.config.node import Plan, declared
from feature_cross.config.plan import build_plan
from feature_cross.data.source import open_dataset
from feature_cross.error import FlagError, LimitError

__all__ = ["Found", "Search", "Step", "Suggestion", "suggest"]

T = TypeVar("T")

_CHOICE_Z = 2.0
"""A candidate joins if its gain on selection rows is so many standard errors above 0; no claim rests here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """What to look for.

    Attributes
    ----------
    budget
        Bytes that all suggestions together may take; None: any.
    bytes_per_row
        Of one id's row.
    top
        Most suggestions.
    beam
        Pairs that are extended to triples.
    order
        2: pairs; 3: triples as well.
    columns
        Only these plain columns (entity.attribute); empty: all that the data has.
    """

    budget: int | None = None
    bytes_per_row: int = RowShape().row_bytes("memory")
    top: int = 5
    beam: int = 10
    order: int = 3
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """A candidate on selection rows, over the base model. `reason` says why it was left aside, if it was."""

    candidate: Candidate
    distinct: int
    size_bytes: int
    gain: Estimate
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """One suggested cross.

    Attributes
    ----------
    name, body
        What to write under `features:`; where it is not significant, what to call it and None.
    candidate
        Its columns.
    distinct, size_bytes
        Distinct ids in the rows read, and the bytes of their rows.
    gain
        On the final rows, over the model with the suggestions before this one.
    p_adjusted, significant
        Two-sided, of no gain in log loss, corrected for the number of suggestions.
    """

    name: str
    body: dict[str, Any] | None
    candidate: Candidate
    distinct: int
    size_bytes: int
    gain: Gain
    p_adjusted: float
    significant: bool


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found: `screened` by gain on selection rows, best first; `total` for all suggestions."""

    suggestions: tuple[Suggestion, ...]
    total: Gain | None
    screened: tuple[Step, ...]
    planned: int
    z: float
    rows: tuple[int, int, int]
    rows_total: int
    interrupted: bool


def suggest(
    config: CrossConfig,
    source: Any,
    design: Design,
    search: Search,
    *,
    judgement: Judgement | None = None,
    threads: int = 1,
    progress: Progress = no_progress,
) -> Found:
    """Search for crosses that a config lacks.

    Parameters
    ----------
    config
        From `feature_cross.load`.
    source
        Path of a file or folder, a pyarrow dataset or Table.
    design
        The label, and how rows are divided.
    search
        Budget, width and depth.
    judgement
        Level and correction; None takes the defaults.
    threads
        Candidates worked on at once.
    progress
        Is told how far the work is.

    Returns
    -------
    Found
        Not whole if a KeyboardInterrupt came; then `interrupted` is true.

    Raises
    ------
    DataError, FlagError
        As `read_sample`; or `search.columns` names no plain column of the data.
    """
    judgement = judgement or Judgement()
    plan = build_plan(config)
    path = None if isinstance(source, pa.dataset.Dataset | pa.Table) else str(source)
    opened = source if path is None else open_dataset(path, plan)
    probe = make_probe(config, plan, opened.schema.names)
    # again, for a CSV file: columns that no feature uses have a declared type too
    source = source if path is None else open_dataset(path, build_plan(probe.config))
    labels = _labels(config, probe, search)
    _check_slots(config, plan, search)
    sample = read_sample(probe.config, source, design, progress)
    searcher = _Searcher(config, plan, probe, sample, search, labels, threads, progress)
    interrupted = searcher.screen()
    steps: list[tuple[Step, Model, Model]] = []
    if not interrupted:
        steps, interrupted = searcher.choose()
    return searcher.found(steps, judgement, interrupted)


def _labels(config: CrossConfig, probe: Probe, search: Search) -> list[str]:
    """Plain columns that are read with their own missing policy."""
    known = [use.label for use in declared(config) if (use.label, use.missing) in probe.columns]
    for name in search.columns:
        if name not in known:
            raise FlagError(
                f"--column is {name!r}, which is no plain column of the data; {nearest(name, known)}"
            )
    chosen = [label for label in known if not search.columns or label in search.columns]
    if len(chosen) < 2:
        raise FlagError(f"{config.source} has {len(chosen)} plain columns to cross; a search needs two")
    return chosen


def _check_slots(config: CrossConfig, plan: Plan, search: Search) -> None:
    bits, highest = config.ids.slot_bits, highest_slot(config, plan)
    if bits is not None and highest + search.top >= 1 << bits:
        raise FlagError(
            f"--top is {search.top}, but {(1 << bits) - 1 - highest} slots are left above {highest}"
            f" (slot_bits {bits}): lower --top, or raise slot_bits, which changes every id"
        )


class _Searcher:
    def __init__(
        self, config: CrossConfig, plan: Plan, probe: Probe, sample: Sample, search: Search,
        labels: Sequence[str], threads: int, progress: Progress,
    ) -> None:  # fmt: skip
        self.config, self.plan, self.search = config, plan, search
        self.sample, self.threads, self.progress = sample, threads, progress
        self.trainer = Trainer(sample)
        self.labels = list(labels)
        self.columns: dict[str, Coded] = {
            use.label: sample.columns[probe.columns[use.label, use.missing]]
            for use in declared(config)
            if use.label in self.labels
        }
        self.base: Model = self.trainer.start()
        self.screened: dict[Candidate, Step] = {}
        self.planned = 0

    def screen(self) -> bool:
        """Try all pairs, then the triples of the best; true if an interrupt came."""
        fitted, interrupted = self._run("base model", [partial(self.trainer.fit, self.sample.columns)], 1)
        if interrupted:
            return True
        self.base = fitted[0]
        known = existing(self.plan)
        lists = [label for label in self.labels if self._is_list(label)]
        first = [one for one in pairs(self.labels, lists) if one not in known]
        if self._screen("pairs", first):
            return True
        if self.search.order < 3:
            return False
        beam = [step.candidate for step in self._best() if len(step.candidate.operands) == 2]
        # pairs that the config has already lead on to triples too
        beam = [*beam[: self.search.beam], *(one for one in known if len(one.operands) == 2)]
        beam = [one for one in beam if all(label in self.columns for label in one.operands)]
        return self._screen("triples", [one for one in triples(beam, self.labels) if one not in known])

    def _run(self, stage: str, tasks: Sequence[Callable[[], T]], threads: int) -> tuple[dict[int, T], bool]:
        return run_tasks(stage, tasks, threads, self.progress, self.trainer.stop)

    def _is_list(self, label: str) -> bool:
        entity, name = label.split(".")
        return self.config.entities[entity].attributes[name].list

    def _screen(self, stage: str, candidates: list[Candidate]) -> bool:
        self.planned += len(candidates)
        tasks = [partial(self._try, candidate, self.base) for candidate in candidates]
        done, interrupted = self._run(stage, tasks, self.threads)
        self.screened |= {step.candidate: step for step in done.values()}
        return interrupted

    def _best(self) -> list[Step]:
        """Candidates that were not left aside, by their gain."""
        open_steps = [step for step in self.screened.values() if not step.reason]
        return sorted(open_steps, key=lambda step: (-step.gain.value, step.candidate))

    def _try(self, candidate: Candidate, model: Model) -> Step:
        """One candidate on top of a model, as selection rows see it."""
        nothing = Estimate(0.0, 0.0)
        try:
            coded = code(candidate, self.columns)
        except LimitError as error:
            return Step(candidate, 0, 0, nothing, str(error))
        size = coded.size * self.search.bytes_per_row
        part = max(self._parts(candidate), key=lambda one: one[1])
        if len(set(candidate.operands)) > 1 and coded.size <= FUTILE_RATIO * part[1]:
            reason = f"futile: {coded.size} ids, and {part[0]} alone has {part[1]}"
            return Step(candidate, coded.size, size, nothing, reason)
        if self.search.budget is not None and size > self.search.budget:
            return Step(candidate, coded.size, size, nothing, "alone past the budget")
        better = self.trainer.extend(model, candidate.label, coded)
        gain, _ = compare_losses(
            model.selection, better.selection, self.trainer.selection_labels, self.trainer.selection_groups
        )
        return Step(candidate, coded.size, size, gain)

    def _parts(self, candidate: Candidate) -> list[tuple[str, int]]:
        """Label and distinct ids of each plain column in it, and of each pair that was tried before it."""
        parts = [(label, self.columns[label].size) for label in candidate.operands]
        smaller = [step for step in self.screened.values() if step.candidate.is_part_of(candidate)]
        return parts + [(step.candidate.label, step.distinct) for step in smaller]

    def choose(self) -> tuple[list[tuple[Step, Model, Model]], bool]:
        """Steps, each with the models before and after it: by gain, or by gain per byte if a budget binds."""
        by_gain: list[tuple[Step, Model, Model]] = []
        task = partial(self._greedy, lambda step: step.gain.value, by_gain)
        squeezed, interrupted = self._run("choose", [task], 1)
        if interrupted or not squeezed[0]:
            return by_gain, interrupted
        by_byte: list[tuple[Step, Model, Model]] = []
        task = partial(self._greedy, lambda step: step.gain.value / max(step.size_bytes, 1), by_byte)
        _, interrupted = self._run("choose by bytes", [task], 1)
        better = bool(by_byte) and (
            not by_gain or by_byte[-1][2].selection_loss < by_gain[-1][2].selection_loss
        )
        return (by_byte if better and not interrupted else by_gain), interrupted

    def _greedy(self, score: Callable[[Step], float], steps: list[tuple[Step, Model, Model]]) -> bool:
        """Append steps, each as soon as it is made; true if the budget left some candidate aside."""
        heap = [(-score(step), step.candidate, 0, step) for step in self._best() if _helps(step)]
        heapq.heapify(heap)
        model, left, squeezed = self.base, self.search.budget, False
        while heap and len(steps) < self.search.top:
            _, candidate, tried, step = heapq.heappop(heap)
            if left is not None and step.size_bytes > left:
                squeezed = True
                continue
            if tried < len(steps):  # its gain is from before the last one joined
                again = self._try(candidate, model)
                if _helps(again):
                    heapq.heappush(heap, (-score(again), candidate, len(steps), again))
                continue
            simpler = self._simpler(step, model, {one.candidate for one, _, _ in steps})
            if simpler is not step:
                heapq.heappush(heap, (-score(step), candidate, len(steps), step))
                step, candidate = simpler, simpler.candidate
            extended = self.trainer.extend(model, candidate.label, code(candidate, self.columns))
            better = self.trainer.refine(extended)
            steps.append((step, model, better))
            model = better
            left = None if left is None else left - step.size_bytes
        return squeezed

    def _simpler(self, step: Step, model: Model, chosen: set[Candidate]) -> Step:
        """A pair in the candidate that gains as much, but for one standard error: the rest may still join."""
        open_parts = [
            one.candidate
            for one in self._best()
            if one.candidate.is_part_of(step.candidate) and one.candidate not in chosen
        ]
        parts = [self._try(candidate, model) for candidate in open_parts]
        enough = step.gain.value - step.gain.error
        good = [one for one in parts if _helps(one) and one.gain.value >= enough]
        return max(good, key=lambda one: (one.gain.value, one.candidate), default=step)

    def _lengths(self) -> dict[str, int]:
        """The longest list of each plain column."""
        columns = self.columns.items()
        return {label: int(np.diff(coded.offsets).max()) for label, coded in columns if self._is_list(label)}

    def found(self, steps: list[tuple[Step, Model, Model]], judgement: Judgement, interrupted: bool) -> Found:
        """The final rows' word on each step; they are read here and nowhere before."""
        trainer = self.trainer
        gains = []
        for _, before, after in steps:
            margins = trainer.final_margins(before), trainer.final_margins(after)
            gains.append(compare(*margins, trainer.final_labels, trainer.final_groups))
        adjusted = adjust([gain.log_loss.p_value for gain in gains], judgement.correction)
        shown = [
            step.candidate for (step, _, _), p in zip(steps, adjusted, strict=True) if p < 1 - judgement.level
        ]
        written = dict(
            zip(shown, declare(self.config, self.plan, shown, self._lengths()).items(), strict=True)
        )
        suggestions = []
        for (step, _, _), gain, p in zip(steps, gains, adjusted, strict=True):
            name, body = written.get(step.candidate, (step.candidate.label, None))
            suggestions.append(
                Suggestion(
                    name, body, step.candidate, step.distinct, step.size_bytes, gain, p, body is not None
                )
            )
        total = None
        if steps:
            margins = trainer.final_margins(self.base), trainer.final_margins(steps[-1][2])
            total = compare(*margins, trainer.final_labels, trainer.final_groups)
        rest = sorted(self.screened.values(), key=lambda step: (-step.gain.value, step.candidate))
        return Found(
            tuple(suggestions), total, tuple(rest), self.planned, z_value(judgement.level, len(steps)),
            self.sample.rows, self.sample.rows_total, interrupted,
        )  # fmt: skip


def _helps(step: Step) -> bool:
    return not step.reason and step.gain.value > _CHOICE_Z * step.gain.error
