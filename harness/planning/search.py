"""Which trials a cell needs next: those of its search on validation, then the reported ones.

A pure function of the cell and the records so far, so it is asked again after every round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from harness.contract.record import Record, State
from harness.contract.trial import Trial

TUNE_SEED = 1_000_003  # rates and settings are chosen on seeds from this one on, which no report uses
MOST_EXTENSIONS = 4  # times that a grid grows when its best rate lies on an edge

Look = Callable[[Trial], Record | None]
Settles = Callable[[Record], bool]


@dataclass(frozen=True)
class Cell:
    """One (task, model, budget, method): what gets a score. Its trials differ in learning rate, seed and purpose.

    Attributes:
        template: A trial with everything but learning rate, seed and purpose.
        rates: Learning rates to report at, or to choose one of.
        tune: Size of the first learning-rate grid; 0: no grid.
        seeds: Of the reported trials.
        centre: Where the grid is centred.
        higher_is_better: Direction of the task's main metric.
        notes: What a reader must know of the model, e.g. which of its layers get no adapter, and why.
        others: Templates with other settings of the same method; where there are any, one of all is chosen.
        chooses: Whether one of ``rates`` is chosen; else every one is reported.
        tune_seeds: On which the choice is made, by the mean.
    """

    template: Trial
    rates: tuple[float, ...]
    tune: int
    seeds: tuple[int, ...]
    centre: float
    higher_is_better: bool
    notes: tuple[str, ...] = ()
    others: tuple[Trial, ...] = ()
    chooses: bool = False
    tune_seeds: tuple[int, ...] = (TUNE_SEED,)

    @property
    def searches(self) -> bool:
        """Whether something is chosen on validation before anything is reported."""
        return bool(self.tune or self.others or self.chooses)

    def most_trials(self, seeds: int) -> int:
        """Return the most trials that it can take, with so many seeds and every grid as large as it may grow."""
        if not self.searches:
            return len(self.rates) * seeds
        rates = self.tune + 2 * MOST_EXTENSIONS if self.tune else len(self.rates)
        return rates * (1 + len(self.others)) * len(self.tune_seeds) + seeds

    def trial(self, learning_rate: float, seed: int, purpose: str, template: Trial | None = None) -> Trial:
        """Return one trial of this cell."""
        return replace(template or self.template, learning_rate=float(learning_rate), seed=seed, purpose=purpose)

    def grid(self, below: int = 0, above: int = 0) -> list[float]:
        """Return the learning rates of the search: those given, or half a decade apart and extended on either side."""
        if not self.tune:
            return list(self.rates)
        first = -(self.tune // 2) - below
        steps = range(first, first + self.tune + below + above)
        return [float(f"{self.centre * 10 ** (step / 2):.3g}") for step in steps]


def has_ended(record: Record) -> bool:
    """Return whether a trial came to an end of its own, good or bad. Whether a bad one is tried again, runs decide."""
    return record.state is not State.INTERRUPTED


def pending(cells: Sequence[Cell], look_up: Look, settles: Settles = has_ended) -> list[Trial]:
    """Return the trials that can and must run now, in order of cells; empty when the sweep is complete.

    Args:
        cells: Of the sweep.
        look_up: Returns a trial's record, or ``None``.
        settles: Whether a record leaves nothing to do (``planning.retry``).
    """
    return [
        trial
        for cell in cells
        for trial in wanted(cell, look_up, settles)
        if (record := look_up(trial)) is None or not settles(record)
    ]


def wanted(cell: Cell, look_up: Look, settles: Settles = has_ended) -> list[Trial]:
    """Return every trial of a cell that is known to be needed, finished or not."""
    if not cell.searches:
        return [cell.trial(rate, seed, "report") for rate in cell.rates for seed in cell.seeds]
    found = [_search(cell, template, look_up, settles) for template in (cell.template, *cell.others)]
    search = [trial for each in found for trials in each.rates for trial in trials]
    if not all(each.is_over for each in found):
        return search
    best = [each.rates[each.best] for each in found if each.best is not None]
    if best:
        (chosen, *_) = best[best_index([_looked_up(each, look_up) for each in best], cell.higher_is_better) or 0]
    else:  # nothing trained at any rate: report the centre, whose failure is a result
        (chosen, *_) = found[0].rates[len(found[0].rates) // 2]
    return [*search, *(cell.trial(chosen.learning_rate, seed, "report", chosen) for seed in cell.seeds)]


@dataclass(frozen=True)
class _Search:
    """The trials that search the rate of one template, by rate, whether all have ended, and the place of the best."""

    rates: list[list[Trial]]
    is_over: bool = False
    best: int | None = None


def _search(cell: Cell, template: Trial, look_up: Look, settles: Settles) -> _Search:
    below = above = 0
    while True:
        rates = [
            [cell.trial(rate, seed, "tune", template) for seed in cell.tune_seeds] for rate in cell.grid(below, above)
        ]
        records = [_looked_up(trials, look_up) for trials in rates]
        if not all(record is not None and settles(record) for found in records for record in found):
            return _Search(rates)
        best = best_index(records, cell.higher_is_better)
        if cell.tune and best == 0 and below < MOST_EXTENSIONS:
            below += 1
        elif cell.tune and best == len(rates) - 1 and above < MOST_EXTENSIONS:
            above += 1
        else:
            return _Search(rates, True, best)


def _looked_up(trials: Sequence[Trial], look_up: Look) -> list[Record | None]:
    return [look_up(trial) for trial in trials]


def best_index(records: Sequence[Sequence[Record | None]], higher_is_better: bool) -> int | None:
    """Return the place of the best mean score over the search's seeds.

    What has a score on more of them comes first: a rate that diverges on one is not chosen while another never does.
    Ties go to the one nearest the middle, so that a flat grid does not grow.
    """
    scored = []
    for place, found in enumerate(records):
        scores = [each.score for each in found if each is not None and each.score is not None]
        if finite := [score for score in scores if math.isfinite(score)]:
            scored.append((place, len(finite), fmean(finite)))
    if not scored:
        return None
    sign = 1 if higher_is_better else -1
    middle = (len(records) - 1) / 2
    return max(scored, key=lambda each: (each[1], sign * each[2], -abs(each[0] - middle)))[0]
