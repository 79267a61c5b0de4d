"""The statistics of the leaderboard: how sure is a mean, and which methods can be told apart.

Plain numpy on plain arrays; nothing here knows records. Everything that draws takes a ``Generator``. Few
seeds are the normal case, so every interval uses Student's t with (seeds - 1) degrees of freedom: a
percentile bootstrap of three seeds would be much too narrow.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MANY = 200  # degrees of freedom beyond which Student's t is as good as normal here
SEEDS_FOR_ITEMS = 5  # with fewer, a seeds' variance that comes out small by chance would let the items decide
LEVEL = 0.05  # of every test; intervals cover 1 - LEVEL
POWER = 0.8  # of the minimum detectable difference
RESAMPLES = 1000  # a standard error is then known to about 2 % of itself
EXACT_FLIPS = 14  # up to this many seeds all 2^n sign patterns are tried


@dataclass(frozen=True)
class Interval:
    """A closed interval."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A paired comparison of two methods.

    Attributes:
        difference: Mean of first minus second, in the metric's unit.
        interval: 95 % interval of the difference, not corrected for many comparisons.
        standard_error: Of the difference, for new seeds and (where there are items) new items.
        degrees: Of freedom of the seeds' part of the variance.
        item_degrees: Of the items' part.
        seed_share: The seeds' part, in [0, 1]; 1 where the seeds' degrees alone count.
        p_value: Two-sided, of "no difference".
        sign_flip_p_value: Two-sided, over the seeds alone; needs no normality but cannot be below 2 /
            2^seeds.
        seeds: Number of paired seeds, at least 2.
        items: Number of paired items; 0 where only the seeds' scores are paired.
    """

    difference: float
    interval: Interval
    standard_error: float
    degrees: int
    item_degrees: int
    seed_share: float
    p_value: float
    sign_flip_p_value: float
    seeds: int
    items: int


def student_p_value(t: float, degrees: int) -> float:
    """Return the two-sided p-value of Student's t for an integer number of degrees of freedom, at least 1.

    Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4 (finite sums for whole degrees).
    """
    if degrees < 1:
        raise ValueError(f"degrees={degrees}; Student's t needs at least 1")
    angle = math.atan(abs(t) / math.sqrt(degrees))
    cosine_squared = math.cos(angle) ** 2
    is_odd = degrees % 2 == 1
    term = math.cos(angle) if is_odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 if is_odd else 1, degrees - 1, 2):
        term *= k / (k + 1) * cosine_squared
        total += term
    inside = (angle + math.sin(angle) * total) * 2 / math.pi if is_odd else math.sin(angle) * total
    return min(1.0, max(0.0, 1.0 - inside))


@cache
def student_quantile(p_value: float, degrees: int) -> float:
    """Return the positive t whose two-sided p-value is ``p_value``, in (0, 1), by bisection."""
    low, high = 0.0, 1.0
    while student_p_value(high, degrees) > p_value:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if student_p_value(middle, degrees) > p_value:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def cochran_cox_quantile(p_value: float, degrees: int, item_degrees: int, seed_share: float) -> float:
    """Return the t that a two-sided level asks for where two estimated variances make up the error.

    It is the mean of Student's quantiles, weighted with each part's share of the estimated variance. Satterthwaite's
    degrees follow that estimate too, but trust it most just where the seeds' part came out too small: at the small
    levels that many pairs need, five seeds then reject true ties up to six times too often.

    Source: Cochran and Cox 1950, "Experimental Designs", section 4.14. Measured sizes: docs/fairness.md.

    Args:
        p_value: The level, in (0, 1).
        degrees: Of the seeds' part.
        item_degrees: Of the items' part.
        seed_share: The seeds' part of the variance, in [0, 1]; 1: Student's quantile.
    """
    seeds, items = student_quantile(p_value, degrees), student_quantile(p_value, min(item_degrees, MANY))
    return seed_share * seeds + (1 - seed_share) * items


def cochran_cox_p_value(t: float, degrees: int, item_degrees: int, seed_share: float) -> float:
    """Return the level at which ``|t|`` is the :func:`cochran_cox_quantile`, with the same arguments."""
    if seed_share >= 1:
        return student_p_value(t, degrees)
    # Find the seeds' quantile: its level must be that of the items' quantile which the weighted mean then leaves.
    low, high = 0.0, abs(t) / max(seed_share, 1e-9)
    for _ in range(60):
        middle = (low + high) / 2
        left = max(0.0, (abs(t) - seed_share * middle) / (1 - seed_share))
        if student_p_value(middle, degrees) > student_p_value(left, min(item_degrees, MANY)):
            low = middle
        else:
            high = middle
    return student_p_value(high, degrees)


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the 95 % interval of the mean of at least two seeds' scores.

    With few seeds it may run past the metric's own range; it is not cut, because the width is the message.

    Source: Student 1908, "The probable error of a mean".
    """
    count = len(values)
    if count < 2:
        raise ValueError(f"{count} value; an interval needs at least 2")
    half = student_quantile(LEVEL, count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
    mean = float(np.mean(values))
    return Interval(mean - half, mean + half)


def interquartile_mean(values: Sequence[float]) -> float:
    """Return the mean without the lowest and the highest quarter; with fewer than four values, the mean.

    Source: Agarwal et al. 2021, arXiv:2108.13264, section 4.3.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def sign_flip_p_value(differences: Array, generator: np.random.Generator) -> float:
    """Return the two-sided p-value of the mean of paired differences, shape (S,), under random signs.

    Exact for up to 14 seeds; beyond that 16,384 random patterns, counting the observed one.

    Source: Fisher 1935, "The Design of Experiments", section 21; Phipson and Smyth 2010, arXiv:1603.05766.
    """
    count = len(differences)
    observed = abs(float(differences.sum()))
    slack = 1e-12 * max(1.0, float(np.abs(differences).sum()))  # equal sums may differ in the last bit
    if count <= EXACT_FLIPS:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=count)))
        return float(np.mean(np.abs(signs @ differences) >= observed - slack))
    signs = generator.choice(np.array([-1.0, 1.0]), size=(2**EXACT_FLIPS, count))
    at_least = int(np.sum(np.abs(signs @ differences) >= observed - slack))
    return float((at_least + 1) / (len(signs) + 1))


class PairedBootstrap:
    """Compares two methods on common seeds and items.

    Both methods are resampled together, once over seeds and once over test items, and the two variances are
    added: a difference counts if it would survive other seeds *and* other items. Each variance is
    scaled by n / (n - 1), since a plain bootstrap of few seeds is too sure of itself. The test is
    Cochran's and Cox's from five seeds on; with fewer it is Student's with the seeds' degrees, which is never
    too sure of a sum of two variances. Without items this is the paired t-test.

    The draws depend on ``seed`` and on the numbers of seeds and items alone, so the order of pairs does not
    matter.

    Source: Owen 2007, arXiv:0712.1111 (seeds crossed with items); Hesterberg 2015, arXiv:1411.5279
    (narrowness with few values); Cochran and Cox 1950 and, for few seeds, Mickey and Brown 1966, "Bounds on the
    distribution functions of the Behrens-Fisher statistic".
    """

    def __init__(self, seed: int, resamples: int = RESAMPLES) -> None:
        self._seed = seed
        self._resamples = resamples
        self._weights: dict[tuple[int, int], Array] = {}

    def compare(self, differences: Array) -> Comparison:
        """Compare two methods.

        Args:
            differences: First minus second: shape (S,), one per seed; or (S, items), where NaN marks an item
                without a score. S is at least 2.
        """
        seeds = differences.shape[0]
        if seeds < 2:
            raise ValueError(f"{seeds} paired seed; a comparison needs at least 2")
        table = differences.reshape(seeds, -1)
        items = table.shape[1] if differences.ndim == 2 else 0
        present = ~np.isnan(table)
        sums, counts = np.where(present, table, 0.0), present.astype(np.float64)
        difference = float(sums.sum() / counts.sum())
        seed_variance = self._variance(sums.sum(1), counts.sum(1), axis=0) * seeds / (seeds - 1)
        item_variance = self._variance(sums.sum(0), counts.sum(0), axis=1) * items / (items - 1) if items > 1 else 0.0
        error = math.sqrt(seed_variance + item_variance)
        flip_p_value = sign_flip_p_value(sums.sum(1) / counts.sum(1), self._generator(seeds, 2))
        degrees, item_degrees, seed_share = seeds - 1, max(1, items - 1), 1.0
        if error <= 1e-9 * abs(difference) or error == 0.0:
            # Equal differences on every seed: coarse scores can do that by chance, so it is no proof. Count
            # signs instead.
            error, half, p_value = 0.0, 0.0, flip_p_value
        else:
            seed_share = seed_variance / error**2 if seeds >= SEEDS_FOR_ITEMS else 1.0
            half = cochran_cox_quantile(LEVEL, degrees, item_degrees, seed_share) * error
            p_value = cochran_cox_p_value(difference / error, degrees, item_degrees, seed_share)
        return Comparison(
            difference=difference,
            interval=Interval(difference - half, difference + half),
            standard_error=error,
            degrees=degrees,
            item_degrees=item_degrees,
            seed_share=seed_share,
            p_value=p_value,
            sign_flip_p_value=flip_p_value,
            seeds=seeds,
            items=items,
        )

    def _variance(self, sums: Array, counts: Array, axis: int) -> float:
        """Return the variance of ``sums.sum() / counts.sum()`` over new draws of seeds (0) or items (1)."""
        weights = self._draw(len(sums), axis)
        return float(np.var((weights @ sums) / np.maximum(weights @ counts, 1.0)))

    def _draw(self, count: int, axis: int) -> Array:
        """Return how often each of ``count`` seeds (0) or items (1) is drawn, shape (resamples, count)."""
        key = (count, axis)
        if key not in self._weights:
            shares = np.full(count, 1 / count)
            self._weights[key] = self._generator(*key).multinomial(count, shares, self._resamples).astype(np.float64)
        return self._weights[key]

    def _generator(self, count: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, count, purpose])


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in the order given.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda each: p_values[each])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def tie_groups(count: int, is_separated: Callable[[int, int], bool]) -> list[int]:
    """Return the group, from 1, of each of ``count`` methods given in order of score, best first.

    The best of those left leads a group; whoever cannot be told apart from the leader joins it. A method with
    a wide interval can so be in an earlier group than one with a better mean.
    """
    groups = [0] * count
    left = list(range(count))
    for group in itertools.count(1):
        if not left:
            return groups
        leader = left[0]
        members = [each for each in left if each == leader or not is_separated(leader, each)]
        for each in members:
            groups[each] = group
        left = [each for each in left if each not in members]
    raise AssertionError("unreachable")


def minimum_detectable_difference(
    standard_error: float, degrees: int, comparisons: int, item_degrees: int = 1, seed_share: float = 1.0
) -> float:
    """Return the true difference found with 80 % power at the 5 % level, corrected for ``comparisons`` tests.

    Source: the usual sample-size formula (Lachin 1981, "Introduction to sample size determination"), with the test's
        own quantiles in place of z.
    """
    levels = (LEVEL / comparisons, 2 * (1 - POWER))
    return sum(cochran_cox_quantile(each, degrees, item_degrees, seed_share) for each in levels) * standard_error
