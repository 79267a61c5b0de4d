"""Which methods of a board are separated, and what it would take to separate the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness_leaderboard.statistics.error import Array, Flags, Spread
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

    @property
    def deciding(self) -> Spread:
        """Return the errors that decide."""
        return self.these_items if self.new_items is None else self.new_items

    def detectable(self) -> Array:
        """Return the true differences that are separated with 80 % power, one per pair.

        Source: Lachin 1981, "Introduction to sample size determination", with the errors' own quantiles in place of z.
        """
        spread = self.deciding
        return spread.distance(self.level / len(self.p_values)) + spread.distance(2 * (1 - POWER))

    def seeds_to_separate(self) -> list[int | None]:
        """Return how many seeds would separate each pair with 80 % power, were its difference the one that was seen.

        ``None``: no number of seeds would, on these items.
        """
        assert self.pairs is not None
        distances = np.abs(self.pairs.differences)
        now = self.pairs.seed_parts + self.pairs.item_parts + self.added
        with np.errstate(divide="ignore", invalid="ignore"):
            wanted = now * (distances / self.detectable()) ** 2
            room = wanted - self.pairs.item_parts - self.added
            needed = np.ceil(self.pairs.seed_parts * self.pairs.seeds / room)
        reachable = (room > 0) & (needed < MOST_SEEDS)
        return [int(max(each, 2)) if can else None for each, can in zip(needed, reachable, strict=True)]


def decide(scores: Scores, contributions: Units | None, level: float) -> Decision:
    """Return the tests of a board's pairs.

    Args:
        scores: Of its methods.
        contributions: Of their items, or clusters of items.
        level: The chance that a board of equal methods separates any.
    """
    variances = seed_variances(scores.totals)
    chosen = _selections(scores, variances)
    found = pairs(scores, contributions, variances)
    if found is None:
        none = np.zeros(0)
        spread = Spread(np.zeros((0, 1)), np.zeros((0, 1)))
        return Decision(variances, chosen, None, none, spread, None, none, none, none > 0, level)
    searched = np.array([0.0 if each is None else each.variance for each in chosen])
    added = searched[found.first] + searched[found.second]
    these = found.these_items.plus(added)
    new = None if found.new_items is None else found.new_items.plus(added)
    p_values = (these if new is None else new).p_value(found.differences)
    compared = len({*found.first.tolist(), *found.second.tolist()})
    adjusted = _with_what_follows(found, corrected(p_values, compared), level, scores.higher_is_better)
    return Decision(variances, chosen, found, added, these, new, p_values, adjusted, adjusted < level, level)


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
