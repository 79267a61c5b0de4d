"""The parts of the error of a mean over seeds and items, or of a difference of two such means.

A mean over S seeds and U units (items or clusters) has three parts of error: what varies from seed to seed, over S;
what varies from unit to unit, over U; and what is left, over S U. The variance between the seeds' means holds the first
and the third, that between the units' means the second and the third; the third is known by itself from how
seeds and units interact, so it is counted once, and it is a floor that the seeds' means cannot vary less than.

Source: Owen 2007, arXiv:0712.1111.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness_leaderboard.statistics.error import COARSE, Array, Spread, sampled, seen_from


@dataclass(frozen=True)
class Parts:
    """The variances of some errors, one entry per error.

    Attributes:
        seeds: The variance from seed to seed, of means over all units.
        degrees: Its degrees of freedom.
        floor: What is left over U: the seeds' variance is no smaller.
        count: How many seeds.
        units: The variance from unit to unit, of means over all seeds, over U.
        unit_degrees: Its degrees of freedom.
    """

    seeds: Array
    degrees: Array
    floor: Array
    count: Array
    units: Array
    unit_degrees: float

    def these_items(self) -> Spread:
        """Return what the mean may be off by for other seeds, on the same units."""
        estimate, spread = self._of_seeds()
        return seen_from(estimate, spread)

    def new_items(self) -> Spread:
        """Return what the mean may be off by for other seeds and other units."""
        estimate, spread = self._of_seeds()
        left = self.floor / self.count
        degrees = np.full(len(self.seeds), self.unit_degrees)
        units = sampled(self.units, degrees, COARSE).plus(-left).at_least(0.0)
        return seen_from(estimate + np.maximum(self.units - left, 0.0), spread.plus_spread(units))

    def _of_seeds(self) -> tuple[Array, Spread]:
        estimate = np.maximum(self.seeds, self.floor)
        return estimate / self.count, sampled(estimate, self.degrees).at_least(self.floor).times(1 / self.count)
