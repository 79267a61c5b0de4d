"""Which trials a cell needs next: those of its search on validation, then the reported ones.

A pure function of the cell and the records so far, so it is asked again after every round.

A search on several seeds may halve: after 1, 2, 4, ... of them, the worse half of what is searched gets no more. Every
method is searched by the same rule, and what is reported are other seeds, so boards stay what they are.

Source: Karnin, Koren and Somekh 2013, "Almost optimal exploration in multi-armed bandits" (sequential halving);
Jamieson and Talwalkar 2016, arXiv:1502.07943, for settings of training. Here scores of earlier rounds count on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from harness.contract.looks import rungs
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
        halves: Whether the worse half of what is searched gets no further seeds.
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
    halves: bool = False

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
    searched, chosen = _search(cell, look_up, settles)
    if chosen is None:
        return searched
    return [*searched, *(cell.trial(chosen.learning_rate, seed, "report", chosen) for seed in cell.seeds)]


@dataclass(frozen=True)
class _Candidate:
    """What may be chosen: a rate of a template.

    Attributes:
        trials: One per seed of the search.
        template: The template's place.
        from_middle: How far the template is from the middle one, and the rate from the middle of its grid.
        edge: Of the grid: -1 the lowest, 1 the highest, 0 neither.
    """

    trials: tuple[Trial, ...]
    template: int
    from_middle: tuple[float, float]
    edge: int


def _search(cell: Cell, look_up: Look, settles: Settles) -> tuple[list[Trial], Trial | None]:
    """Return the trials that the search is known to need and, once it is over, one that has what it chose."""
    templates = (cell.template, *cell.others)
    grown = [{-1: 0, 1: 0} for _ in templates]  # by how many rates, on either side
    counts = rungs(len(cell.tune_seeds)) if cell.halves else (len(cell.tune_seeds),)
    known: dict[str, Trial] = {}
    while True:
        left = [each for place in range(len(templates)) for each in _grid(cell, templates[place], place, grown[place])]
        grid = [each for each in left if each.template == 0]
        best = grid[len(grid) // 2]  # where nothing trains at any rate, its failure is a result
        for count in counts:
            trials = [trial for each in left for trial in each.trials[:count]]
            known |= {trial.id: trial for trial in trials}
            if not all((record := look_up(trial)) is not None and settles(record) for trial in trials):
                return list(known.values()), None
            ranked = _ranked(left, count, cell.higher_is_better, look_up)
            best = ranked[0] if ranked else best
            # At first the best of every template makes its grid grow, later the best of all.
            heads = {each.template: each for each in reversed(ranked)} if count == counts[0] else {best.template: best}
            if cell.tune and _grow(heads.values(), grown):
                break
            left = ranked[: math.ceil(len(ranked) / 2)]
            if len(left) < 2:
                return list(known.values()), best.trials[0]
        else:
            return list(known.values()), best.trials[0]


def _grid(cell: Cell, template: Trial, place: int, grown: dict[int, int]) -> list[_Candidate]:
    rates = cell.grid(grown[-1], grown[1])
    last = len(rates) - 1
    return [
        _Candidate(
            trials=tuple(cell.trial(rate, seed, "tune", template) for seed in cell.tune_seeds),
            template=place,
            from_middle=(abs(place - len(cell.others) / 2), abs(number - last / 2)),
            edge=-1 if number == 0 else 1 if number == last else 0,
        )
        for number, rate in enumerate(rates)
    ]


def _ranked(
    candidates: Sequence[_Candidate], count: int, higher_is_better: bool, look_up: Look
) -> list[_Candidate]:  # fmt: skip
    """Return those with a score on any of the first seeds, by their means on these, the best first.

    What has a score on more of them comes first: a rate that diverges on one is not chosen while another never does.
    Ties go to the one nearest the middle, so that a flat grid does not grow.
    """
    sign, scored = 1 if higher_is_better else -1, []
    for each in candidates:
        records = [look_up(trial) for trial in each.trials[:count]]
        scores = [record.score for record in records if record is not None and record.score is not None]
        if finite := [score for score in scores if math.isfinite(score)]:
            scored.append(((-len(finite), -sign * fmean(finite), each.from_middle), each))
    return [each for _, each in sorted(scored, key=lambda pair: pair[0])]


def _grow(heads: Iterable[_Candidate], grown: Sequence[dict[int, int]]) -> bool:
    """Let the grids grow whose best lies on an edge; return whether any did."""
    growing = [each for each in heads if each.edge and grown[each.template][each.edge] < MOST_EXTENSIONS]
    for each in growing:
        grown[each.template][each.edge] += 1
    return bool(growing)
