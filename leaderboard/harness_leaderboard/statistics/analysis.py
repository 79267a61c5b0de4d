"""What a board may claim: estimates with two intervals, every pair's difference, and ranks that follow from all pairs.

Two questions have two answers, and each interval says which it answers. *These items*: what if other seeds were
trained and scored on the same items? *New items*: what if the items were other ones of the same kind, too? Methods are
separated for new items wherever the records keep items. An interval ends where the metric does: what lies beyond cannot
hold the truth, so nothing of its coverage is lost.

Source: Owen 2007, arXiv:0712.1111 (the variance of a mean over crossed seeds and items).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy import stats

from harness_leaderboard.statistics.decision import decide
from harness_leaderboard.statistics.error import Array, Flags, Interval
from harness_leaderboard.statistics.pairs import Pairs
from harness_leaderboard.statistics.parts import Parts
from harness_leaderboard.statistics.ranks import letters, rank_ranges
from harness_leaderboard.statistics.scores import Scores, Stages, Units, units
from harness_leaderboard.statistics.search import Selection

NOTHING = 1e-12  # of a difference: below it, rounding is all that differs
LEVEL = 0.05  # of a whole board's claims; intervals cover 1 - LEVEL


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of a few, with its exact 95 % interval (Clopper and Pearson 1934)."""

    count: int
    of: int
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One method's score.

    Attributes:
        method: Its label.
        mean: Over its seeds, in the metric's unit; ``None``: no seed has a score.
        seeds: How many that are.
        these_items: 95 % interval of the mean over all seeds, on these items; ``None``: fewer than two seeds.
        new_items: The same for new items of the same kind; ``None`` also where the records keep no items.
        seed_deviation: Standard deviation from seed to seed; ``None``: fewer than two seeds.
        diverged: How many of its seeds diverged.
        best_rank: The rank that it has at best, 1 being best: one more than the methods that are proven better.
        worst_rank: At worst: the number of methods, less those that are proven worse. Both ``None``: not comparable.
        letters: Methods that share a letter cannot be told apart; those that share none can. Empty: not comparable.
        selection: How sure the search for its learning rate is; ``None``: it was not searched.
        beats_chance: Whether it is proven better than guessing, at the board's level for all methods together;
            ``None``: what guessing scores is not known, or there are fewer than two seeds.
    """

    method: str
    mean: float | None
    seeds: int
    these_items: Interval | None
    new_items: Interval | None
    seed_deviation: float | None
    diverged: Share | None
    best_rank: int | None = None
    worst_rank: int | None = None
    letters: str = ""
    selection: Selection | None = None
    beats_chance: bool | None = None

    @property
    def interval(self) -> Interval | None:
        """Return the interval that decides: for new items of the same kind where there are items, else for seeds."""
        return self.new_items or self.these_items


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One method against another, on the seeds that both ran.

    Attributes:
        first: Label.
        second: Label.
        difference: First minus second, in the metric's unit.
        these_items: 95 % interval of the difference, on these items; not corrected for the number of pairs. Where the
            board is looked at several times, it covers at all looks together (Jennison and Turnbull 1989, "Interim
            analyses: the repeated confidence interval approach").
        new_items: The same for new items of the same kind; ``None``: the records keep no items.
        p_value: Of "no difference", by the interval that decides (``Analysis.scope``).
        adjusted_p_value: The same, corrected for all pairs of the board; where a method between the two settles
            it, the larger of the two p-values that do.
        is_separated: Whether the board claims a difference: the adjusted p-value is below the board's level.
        seeds_to_separate: How many seeds a difference of this size needs to be separated with 80 % power; ``None``: no
            number of seeds alone would do, since the items, or what a search may have chosen, vary too much.
        seeds: How many both ran.
        items: How many items, or clusters of them, both have.
        is_paired: Whether the seeds are shared; if not, the two methods ran other seeds.
        look: The last planned look at which the pair was tested, 1 being the first.
    """

    first: str
    second: str
    difference: float
    these_items: Interval
    new_items: Interval | None
    p_value: float
    adjusted_p_value: float
    is_separated: bool
    seeds_to_separate: int | None
    seeds: int
    items: int
    is_paired: bool = True
    look: int = 1

    @property
    def interval(self) -> Interval:
        """Return the interval that decides."""
        return self.new_items or self.these_items

    def reversed(self) -> Difference:
        """Return the same comparison as second minus first."""
        return replace(
            self,
            first=self.second,
            second=self.first,
            difference=-self.difference,
            these_items=self.these_items.mirrored(),
            new_items=None if self.new_items is None else self.new_items.mirrored(),
        )


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What a board may claim.

    Attributes:
        estimates: In the order of the scores' methods.
        differences: Every pair of comparable methods, by places, first < second.
        scope: What separations hold for: ``"new items"`` or, without items, ``"these items"``.
        level: The chance that a board of equal methods separates any.
        detectable: The true difference that is separated with 80 % power, in the metric's unit, for the middle one of
            the pairs; ``None``: nothing can be compared.
        noisier: How likely each method varies more from seed to seed than the board's methods do; 0 where they are too
            few to tell.
        stages: How often the board is looked at, and how far it is; ``None``: once.
    """

    estimates: tuple[Estimate, ...]
    differences: dict[tuple[int, int], Difference]
    scope: str
    level: float
    detectable: float | None
    noisier: tuple[float, ...]
    stages: Stages | None = None

    def between(self, first: int, second: int) -> Difference | None:
        """Return the comparison of two methods, by place, as first minus second."""
        found = self.differences.get((min(first, second), max(first, second)))
        return found if found is None or first < second else found.reversed()


def analyse(scores: Scores, level: float = LEVEL) -> Analysis:
    """Return what a board may claim.

    Args:
        scores: Of its methods.
        level: The chance that a board of equal methods separates any.
    """
    contributions = units(scores)
    decision = decide(scores, contributions, level)
    found_each = [
        _estimate(scores, contributions, place, selected) for place, selected in enumerate(decision.selections)
    ]
    estimates = _against_chance([each for each, _ in found_each], [p for _, p in found_each], level, scores.stages)
    scope = "new items" if contributions is not None else "these items"
    noisier = tuple(decision.variances.noisier.tolist())
    found = decision.pairs
    if found is None:
        return Analysis(
            estimates=tuple(estimates), differences={}, scope=scope, level=level, detectable=None, noisier=noisier,
            stages=scores.stages,
        )  # fmt: skip
    outside = LEVEL * decision.shares
    half = decision.these_items.distance(outside)
    new_half = None if decision.new_items is None else np.maximum(decision.new_items.distance(outside), half)
    largest = scores.bounds[1] - scores.bounds[0]
    needed = decision.seeds_to_separate()
    differences = {
        (int(first), int(second)): Difference(
            first=scores.methods[first],
            second=scores.methods[second],
            difference=float(found.differences[place]),
            these_items=_around(found.differences[place], half, place).within(-largest, largest),
            new_items=None
            if new_half is None
            else _around(found.differences[place], new_half, place).within(-largest, largest),
            p_value=float(decision.p_values[place]),
            adjusted_p_value=float(decision.adjusted[place]),
            is_separated=bool(decision.separated[place]),
            seeds_to_separate=needed[place],
            seeds=int(found.seeds[place]),
            items=int(found.units[place]),
            is_paired=bool(found.is_paired[place]),
            look=int(decision.looks[place]),
        )
        for place, (first, second) in enumerate(zip(found.first, found.second, strict=True))
    }
    return Analysis(
        estimates=tuple(_ranked(estimates, found, decision.separated, scores.higher_is_better)),
        differences=differences,
        scope="these items" if new_half is None else "new items",
        level=level,
        detectable=float(np.median(decision.detectable)),
        noisier=noisier,
        stages=scores.stages,
    )


def _around(middle: float, halves: Array, place: int) -> Interval:
    return Interval(float(middle - halves[place]), float(middle + halves[place]))


def _deviation(totals: Array) -> float | None:
    present = totals[~np.isnan(totals)]
    return float(np.std(present, ddof=1)) if len(present) > 1 else None


@cache
def _exact(diverged: int, of: int) -> Interval:
    """Return where the share of seeds that diverge may lie (Clopper and Pearson); most boards ask for the same few."""
    if not of:
        return Interval(0.0, 1.0)
    found = stats.binomtest(diverged, of).proportion_ci(1 - LEVEL)
    return Interval(float(found.low), float(found.high))


def _against_chance(
    estimates: Sequence[Estimate], p_values: Sequence[float | None], level: float, stages: Stages | None
) -> list[Estimate]:
    """Return the estimates with which of them are proven better than guessing, at the latest look's part of the level.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    level *= 1.0 if stages is None else stages.shares[max(stages.latest, 1) - 1]
    known = {place: p for place, p in enumerate(p_values) if p is not None}
    order = sorted(known, key=lambda place: known[place])
    failed = (number for number, place in enumerate(order) if known[place] > level / (len(order) - number))
    proven = set(order[: next(failed, len(order))])
    return [
        replace(each, beats_chance=place in proven) if place in known else each for place, each in enumerate(estimates)
    ]


def _estimate(
    scores: Scores, contributions: Units | None, place: int, chosen: Selection | None
) -> tuple[Estimate, float | None]:
    """Return one method's mean and what it may be off by: its seeds by Student's t, its items beside them.

    And how likely a method that guesses is to do as well, where it is known what guessing scores.
    """
    present = ~np.isnan(scores.totals[place])
    totals = scores.totals[place][present]
    count = len(totals)
    diverged = None
    if scores.diverged:
        of = count + scores.diverged[place]
        diverged = Share(count=scores.diverged[place], of=of, interval=_exact(scores.diverged[place], of))
    these = new = by_chance = None
    if count > 1:
        added = 0.0 if chosen is None else chosen.variance
        mean, floor, between, unit_degrees, has_units = float(totals.mean()), 0.0, 0.0, 1.0, False
        if contributions is not None:
            values = contributions.values[place][present]
            values = values[:, ~np.isnan(values).any(0)]
            size = values.shape[1]
            if has_units := size > 1:
                left = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
                floor = float((left**2).sum() / ((count - 1) * (size - 1))) / size
                between = float(np.var(values.mean(0), ddof=1)) / size
                unit_degrees = min(contributions.degrees, size - 1.0)
        variance = float(np.var(totals, ddof=1))
        seeds, degrees, left_over, number, items = np.array([[variance], [count - 1.0], [floor], [count], [between]])
        parts = Parts(seeds, degrees, left_over, number, items, unit_degrees)
        errors = [parts.these_items().plus(added)]
        half = float(errors[0].distance(LEVEL)[0])
        these = Interval(mean - half, mean + half).within(*scores.bounds)
        if has_units:
            errors.append(parts.new_items().plus(added))
            half = max(half, float(errors[1].distance(LEVEL)[0]))
            new = Interval(mean - half, mean + half).within(*scores.bounds)
        if scores.chance is not None:
            above = (mean - scores.chance) * (1 if scores.higher_is_better else -1)
            either = max(float(each.p_value(np.array([above]))[0]) for each in errors)  # in either direction
            by_chance = either / 2 if above > 0 else 1.0
    estimate = Estimate(
        method=scores.methods[place],
        mean=float(totals.mean()) if count else None,
        seeds=count,
        these_items=these,
        new_items=new,
        seed_deviation=_deviation(totals),
        diverged=diverged,
        selection=chosen,
    )
    return estimate, by_chance


def _ranked(estimates: list[Estimate], found: Pairs, separated: Flags, higher_is_better: bool) -> list[Estimate]:
    """Return the estimates with ranks: of methods that are compared with every other, and what each pair says."""
    able = sorted({*found.first.tolist(), *found.second.tolist()})
    position = {place: number for number, place in enumerate(able)}
    better = np.zeros((len(able), len(able)), dtype=bool)
    mean = {place: estimates[place].mean or 0.0 for place in able}
    sign = 1 if higher_is_better else -1
    for first, second, difference, is_separated in zip(
        found.first.tolist(), found.second.tolist(), found.differences, separated, strict=True
    ):
        if is_separated:
            upper, lower = (first, second) if sign * difference > 0 else (second, first)
            better[position[upper], position[lower]] = True
    order = sorted(range(len(able)), key=lambda each: -sign * mean[able[each]])
    ranges, shown = rank_ranges(better), letters(better | better.T, order)
    result = list(estimates)
    for number, place in enumerate(able):
        low, high = ranges[number]
        result[place] = replace(estimates[place], best_rank=low, worst_rank=high, letters=shown[number])
    return result
