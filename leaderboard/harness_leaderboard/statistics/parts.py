"""The parts of the error of a mean over seeds and items, or of a difference of two such means.

A mean over S seeds and U units (items or clusters) has three parts of error: what varies from seed to seed, over S;
what varies from unit to unit, over U; and what is left, over S U. The variance between the seeds' means holds the first
and the third, that between the units' means the second and the third; the third is known by itself from how
seeds and units interact, so it is counted once, and it is a floor that the seeds' means cannot vary less than.

Source: Owen 2007, arXiv:0712.1111; for sums of variances, Krishnamoorthy, Lu and Mathew 2007, "A parametric bootstrap
approach for ANOVA with unequal variances" (drawn again) and Tsui and Weerahandi 1989, "Generalized p-values in
significance testing of hypotheses in the presence of nuisance parameters" (fiducial).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness_leaderboard.statistics.error import COARSE, Array, Spread, inverted, known, mixed, sampled

FEW_UNITS = 60.0  # degrees of freedom of a variance between items that is not known well


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
        is_lent: Whether the seeds' variance is lent by a board. If it is a few seeds' own, or the units are few, two
            ways of looking at a sum of variances, one too sure and the other not sure enough, count both.
        fiducial: How much the second of them counts, from 0 to 1.
    """

    seeds: Array
    degrees: Array
    floor: Array
    count: Array
    units: Array
    unit_degrees: float
    is_lent: bool = False
    fiducial: float = 0.5

    def these_items(self) -> Spread:
        """Return what the mean may be off by for other seeds, on the same units."""
        return self._seen(np.zeros(len(self.seeds)), known(np.zeros(len(self.seeds))), known(np.zeros(len(self.seeds))))

    def new_items(self) -> Spread:
        """Return what the mean may be off by for other seeds and other units."""
        left = self.floor / self.count
        drawn = sampled(self.units, np.full(len(self.seeds), self.unit_degrees), COARSE)
        behind = inverted(self.units, drawn)
        return self._seen(
            np.maximum(self.units - left, 0.0), *(each.plus(-left).at_least(0.0) for each in (drawn, behind))
        )

    def _seen(self, units: Array, units_drawn: Spread, units_behind: Spread) -> Spread:
        """Return the error's spread, given the units' part: estimated, as drawn again, and as may be behind it."""
        estimate = np.maximum(self.seeds, self.floor)
        drawn = sampled(estimate, self.degrees)
        parts = [each.at_least(self.floor).times(1 / self.count) for each in (drawn, inverted(estimate, drawn))]
        redrawn = inverted(estimate / self.count + units, parts[0].plus_spread(units_drawn))
        if self.is_lent and not 1 < self.unit_degrees < FEW_UNITS:
            return redrawn
        fiducial = parts[1].plus_spread(units_behind)
        return mixed([redrawn, fiducial], np.tile([1 - self.fiducial, self.fiducial], (len(estimate), 1)))
