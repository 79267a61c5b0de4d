"""Which methods of a board are separated, and what it would take to separate the others.

A board that is looked at several times by a plan has p-values for each look. Each hypothesis of the closed test is
tested at every look at that look's share of the level, so that over all looks it has the level, and so has the board.

Source: Maurer and Bretz 2013, "Multiple testing in group sequential trials using graphical approaches" (what was
rejected at one look stays so, and frees its level for the others).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
from scipy import optimize, stats

from harness_leaderboard.statistics.error import Array, Flags, Places, Spread
from harness_leaderboard.statistics.multiplicity import corrected
from harness_leaderboard.statistics.pairs import Pairs, pairs
from harness_leaderboard.statistics.ranks import closed
from harness_leaderboard.statistics.scores import Scores, Units
from harness_leaderboard.statistics.search import Selection, selection
from harness_leaderboard.statistics.variance import SeedVariances, seed_variances

POWER = 0.8  # with which a detectable difference is detected
MOST_SEEDS = 1000  # that anybody would think of running


@dataclass(frozen=True)
class Decision:
    """The tests of a board's pairs.

    Attributes:
        variances: The methods' from seed to seed.
        selections: How sure each method's search is; ``None``: its rate was given.
        pairs: ``None``: there are none, and nothing else can be asked.
        added: The part of each pair's variance that comes from the search for a rate.
        these_items: The errors of the pairs' differences for other seeds.
        new_items: For other items too; ``None``: the records keep none.
        p_values: Of "no difference".
        adjusted: Corrected for all pairs, with what follows from other pairs.
        separated: Whether the board claims a difference.
        level: At which.
        looks: Per pair, the last look at which it was tested; where there is but one look, 1.
        shares: Per pair, that look's share of the level.
    """

    variances: SeedVariances
    selections: tuple[Selection | None, ...]
    pairs: Pairs | None
    added: Array
    these_items: Spread
    new_items: Spread | None
    p_values: Array
    adjusted: Array
    separated: Flags
    level: float
    looks: Places
    shares: Array

    @property
    def deciding(self) -> Spread:
        """Return the errors that decide."""
        return self.these_items if self.new_items is None else self.new_items

    @cached_property
    def detectable(self) -> Array:
        """Return the true differences that are separated with 80 % power, one per pair.

        Source: Lachin 1981, "Introduction to sample size determination", with the errors' own quantiles in place of z.
        """
        spread = self.deciding
        found = spread.distance(self.level * self.shares / len(self.p_values)) + spread.distance(2 * (1 - POWER))
        if self.pairs is None or self.variances.lends:
            return found
        return np.asarray(found * [_more_with_few(int(seeds) - 1) for seeds in self.pairs.seeds])

    def seeds_to_separate(self) -> list[int | None]:
        """Return how many seeds would separate each pair with 80 % power, were its difference the one that was seen.

        ``None``: no number of seeds alone would, since the items, or what a search may have chosen, vary too much.
        """
        assert self.pairs is not None
        distances = np.abs(self.pairs.differences)
        now = self.pairs.seed_parts + self.pairs.item_parts + self.added
        with np.errstate(divide="ignore", invalid="ignore"):
            wanted = now * (distances / self.detectable) ** 2
            room = wanted - self.pairs.item_parts - self.added
            needed = np.ceil(self.pairs.seed_parts * self.pairs.seeds / room)
        reachable = (room > 0) & (needed < MOST_SEEDS)
        return [int(max(each, 2)) if can else None for each, can in zip(needed, reachable, strict=True)]


@cache
def _more_with_few(degrees: int) -> float:
    """Return by how much a difference must be larger where a pair goes by its own seeds, which lend it no variance.

    A few seeds' variance is mostly smaller than the true one, and the next board's is another: a typical board would
    name too small a difference. Source: the noncentral t, at the middle estimate of the deviation.
    """
    critical = float(stats.t.isf(0.025, degrees))
    named = critical + float(stats.t.ppf(POWER, degrees))
    needed = optimize.brentq(lambda shift: float(stats.nct.sf(critical, degrees, shift)) - POWER, 1.0, 3 * named)
    return float(needed / named / np.sqrt(stats.chi2.median(degrees) / degrees))


def decide(scores: Scores, contributions: Units | None, level: float) -> Decision:
    """Return the tests of a board's pairs.

    Args:
        scores: Of its methods.
        contributions: Of their items, or clusters of items.
        level: The chance that a board of equal methods separates any.
    """
    stages = scores.stages
    if stages is None:
        last = _tested(scores, contributions)
    else:
        latest = max(stages.latest, 1)
        tests = [_tested(*_seen_at(look, scores, contributions)) for look in range(1, latest + 1)]
        last = tests[-1]
    found = last.pairs
    if found is None:
        none = np.zeros(0)
        return Decision(
            last.variances, last.selections, None, none, last.these_items, None, none, none, none > 0, level,
            none.astype(np.int64), none,
        )  # fmt: skip
    looks, shares = np.ones(len(last.p_values), dtype=np.int64), np.ones(len(last.p_values))
    of_looks, spent = last.p_values[None], tuple(shares[:1])
    if stages is not None:
        looks = np.array([stages.look_of(*pair) for pair in found.places]).clip(1, latest)
        shares, spent = np.array(stages.shares)[looks - 1], stages.shares
        of_looks = np.array([_as_of(test, found) for test in tests])
    adjusted = corrected(of_looks, found.first, found.second, spent)
    adjusted = _with_what_follows(found, adjusted, level, scores.higher_is_better)
    return Decision(
        last.variances, last.selections, found, last.added, last.these_items, last.new_items, last.p_values, adjusted,
        adjusted < level, level, looks, shares,
    )  # fmt: skip


@dataclass(frozen=True)
class _Tests:
    """The tests of a board's pairs at one look, each by itself."""

    variances: SeedVariances
    selections: tuple[Selection | None, ...]
    pairs: Pairs | None
    added: Array
    these_items: Spread
    new_items: Spread | None
    p_values: Array


def _tested(scores: Scores, contributions: Units | None) -> _Tests:
    variances = seed_variances(scores.totals)
    chosen = _selections(scores, variances)
    found = pairs(scores, contributions, variances)
    if found is None:
        none = np.zeros(0)
        return _Tests(variances, chosen, None, none, Spread(np.zeros((0, 1)), np.zeros((0, 1))), None, none)
    searched = np.array([0.0 if each is None else each.variance for each in chosen])
    added = searched[found.first] + searched[found.second]
    these = found.these_items.plus(added)
    new = None if found.new_items is None else found.new_items.plus(added)
    p_values = (these if new is None else new).p_value(found.differences)
    return _Tests(variances, chosen, found, added, these, new, p_values)


def _seen_at(look: int, scores: Scores, contributions: Units | None) -> tuple[Scores, Units | None]:
    hidden = scores.hidden_at(look)
    seen = replace(scores, totals=np.where(hidden, np.nan, scores.totals))
    if contributions is None:
        return seen, None
    return seen, Units(np.where(hidden[:, :, None], np.nan, contributions.values), contributions.degrees)


def _as_of(test: _Tests, now: Pairs) -> Array:
    """Return the p-values at one look of the pairs there are now; 1 where it saw the other method ahead."""
    p_values = np.ones(len(now.first))
    if test.pairs is None:
        return p_values
    then = {pair: number for number, pair in enumerate(test.pairs.places)}
    for number, pair in enumerate(now.places):
        place = then.get(pair)
        if place is not None and test.pairs.differences[place] * now.differences[number] >= 0:
            p_values[number] = test.p_values[place]
    return p_values


def _selections(scores: Scores, variances: SeedVariances) -> tuple[Selection | None, ...]:
    """Return how sure each search is. All rates share the search's seeds, whose own effects do not matter."""
    if not scores.searches:
        return (None,) * len(scores.methods)
    return tuple(
        None if search is None else selection(search, float(np.sqrt(variance)), scores.higher_is_better)
        for search, variance in zip(scores.searches, variances.of_methods, strict=True)
    )


def _with_what_follows(found: Pairs, adjusted: Array, level: float, higher_is_better: bool) -> Array:
    """Return the p-values in which a pair is also separated by a method that is separated from both, between them.

    All separations hold together with the board's level, and so does what follows from them.
    """
    count = int(max(found.first.max(), found.second.max())) + 1
    table = np.ones((count, count))
    sign = 1 if higher_is_better else -1
    for first, second, difference, p_value in zip(found.first, found.second, found.differences, adjusted, strict=True):
        upper, lower = (first, second) if sign * difference > 0 else (second, first)
        table[upper, lower] = p_value
    for middle in range(count):
        table = np.minimum(table, np.maximum(table[:, [middle]], table[[middle]]))
    is_better = closed(table < level)
    through = np.minimum(table, table.T)[found.first, found.second]
    holds = (is_better | is_better.T)[found.first, found.second]
    return np.where(holds, through, np.maximum(adjusted, np.where(through < level, level, 0.0)))
