"""What a board will be able to tell apart, said before anything is run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness_leaderboard.statistics.analysis import LEVEL
from harness_leaderboard.statistics.decision import POWER
from harness_leaderboard.statistics.parts import Parts
from harness_leaderboard.statistics.scores import Scores, units
from harness_leaderboard.statistics.variance import FEWEST, LENT_DEGREES, seed_variances


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The variances of a difference of two methods, in the metric's unit squared.

    Attributes:
        seeds: From seed to seed, of means over all items.
        floor: What of it comes from the items' chance alone.
        items: From item to item, over the number of items.
        item_degrees: Degrees of freedom of the items' part.
    """

    seeds: float
    floor: float
    items: float
    item_degrees: float


# Of a share of right answers among 256 items: seeds vary by 2 points; so much was measured on small models.
ASSUMED = Noise(seeds=2 * (0.02**2 + 0.21 / 256), floor=2 * 0.21 / 256, items=2 * 0.026 / 256, item_degrees=255.0)


def detectable_difference(methods: int, seeds: int, noise: Noise) -> float | None:
    """Return the true difference that a board separates with 80 % power; ``None``: it can compare nothing.

    Args:
        methods: How many run.
        seeds: How many each of them runs.
        noise: Assumed, or seen before.
    """
    if methods < 2 or seeds < 2:
        return None
    is_lent = methods >= FEWEST
    degrees = seeds - 1.0
    if is_lent:
        degrees = min(LENT_DEGREES + degrees, degrees * (methods - 1))
    one = np.ones(1)
    error = Parts(
        seeds=noise.seeds * one,
        degrees=degrees * one,
        floor=noise.floor * one,
        count=seeds * one,
        units=(noise.items + noise.floor / seeds) * one,
        unit_degrees=noise.item_degrees,
        is_lent=is_lent,
    ).new_items()
    pairs = methods * (methods - 1) / 2
    return float((error.distance(LEVEL / pairs) + error.distance(2 * (1 - POWER)))[0])


def noise_of(scores: Scores) -> Noise | None:
    """Return the noise that a board has shown; ``None``: no two of its methods share two seeds."""
    shared = ~np.isnan(scores.totals).any(0)
    if len(scores.methods) < 2 or shared.sum() < 2:
        return None
    seeds = 2 * seed_variances(scores.totals).common
    contributions = units(scores)
    if contributions is None:
        return Noise(seeds=seeds, floor=0.0, items=0.0, item_degrees=1.0)
    values = contributions.values[:, shared]
    values = values[:, :, ~np.isnan(values).any((0, 1))]
    methods, count, size = values.shape
    centred = values - values.mean(0)
    unit_means = centred.mean(1)
    left = centred - centred.mean(2, keepdims=True) - unit_means[:, None] + unit_means.mean(1)[:, None, None]
    floor = 2 * float((left**2).sum()) / ((methods - 1) * (count - 1) * (size - 1)) / size
    between = 2 * float(np.var(unit_means, axis=1, ddof=1).sum()) / (methods - 1) / size
    items = max(between - floor / count, 0.0)
    return Noise(seeds=max(seeds, floor), floor=floor, items=items, item_degrees=contributions.degrees)
