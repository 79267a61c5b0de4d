"""How far an estimate may be off: a normal error whose variance is itself known only so well.

A variance that was estimated with ``f`` degrees of freedom is, seen from the data, one of many: its reciprocal is
spread as a chi-squared. Student's t is nothing else than a normal error averaged over that spread. Where an error has
several parts (seeds, items, the search for a rate), each known in its own way, no table has the answer; averaging over
the spreads still gives it. A :class:`Spread` is such a list of possible variances with weights.

Source: Andrews and Mallows 1974, "Scale mixtures of normal distributions".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Array = NDArray[np.float64]
Places = NDArray[np.int64]
Flags = NDArray[np.bool_]

KNOWN = 400  # degrees of freedom from which a variance counts as known
NODES = 64  # possible variances of a sum
BLOCK = 2_000  # errors that are summed at once: their nodes before they are put together take 30 MB
MOST_STEPS = 80  # of finding a distance; ten are usual
FINE, COARSE = 40, 12  # values of an estimated variance: of the seeds, and of the items, which are many more


@dataclass(frozen=True)
class Interval:
    """A closed interval."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        """Return whether a value lies inside."""
        return self.low <= value <= self.high

    def mirrored(self) -> Interval:
        """Return the interval of the same quantity with the other sign."""
        return Interval(-self.high, -self.low)

    def within(self, low: float, high: float) -> Interval:
        """Return the part of the interval that is possible where values are."""
        return Interval(min(max(self.low, low), high), max(min(self.high, high), low))


@dataclass(frozen=True)
class Spread:
    """The possible variances of several errors: ``variances`` and ``weights`` that sum to 1, both (errors, nodes)."""

    variances: Array
    weights: Array

    @property
    def middle(self) -> Array:
        """Return each error's middle variance: the weighted median of the possible ones."""
        order = np.argsort(self.variances, axis=1)
        below = np.cumsum(np.take_along_axis(self.weights, order, 1), axis=1)
        place = (below >= 0.5).argmax(1)
        found: Array = np.take_along_axis(self.variances, order, 1)[np.arange(len(place)), place].astype(np.float64)
        return found

    def p_value(self, distances: Array) -> Array:
        """Return, per error, how often it is at least as large as a distance, in either direction."""
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.abs(distances)[:, None] / np.sqrt(self.variances)
        z = np.where(np.isnan(z), 0.0, z)  # no distance and no variance
        return np.asarray(np.minimum((self.weights * 2 * special.ndtr(-z)).sum(1), 1.0))

    def distance(self, level: float | Array) -> Array:
        """Return, per error, the distance that it exceeds with probability ``level``: an interval's half-width."""
        levels = np.broadcast_to(np.asarray(level, dtype=np.float64), len(self.variances))
        if len(levels) > BLOCK:
            blocks = [slice(start, start + BLOCK) for start in range(0, len(levels), BLOCK)]
            parts = [Spread(self.variances[each], self.weights[each]).distance(levels[each]) for each in blocks]
            return np.concatenate(parts)
        scale = np.sqrt((self.weights * self.variances).sum(1) + 1e-300)
        found, low, high = scale * special.ndtri(1 - levels / 2), np.zeros(len(scale)), np.full(len(scale), np.inf)
        deviations, weights, left = np.sqrt(self.variances), self.weights, np.arange(len(scale))
        for _ in range(MOST_STEPS):  # Newton's, of the logarithm; where a step leaves what is possible, halving
            now, wanted = found[left], levels[left]
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                z = now[:, None] / deviations
                outside = (weights * special.ndtr(-z)).sum(1) * 2
                slope = (weights * np.exp(-(z**2) / 2) / deviations).sum(1) * np.sqrt(2 / np.pi)
                step = np.log(outside / wanted) * outside / slope
            low[left], high[left] = (
                np.where(outside > wanted, now, low[left]),
                np.where(outside > wanted, high[left], now),
            )
            middle = np.where(np.isinf(high[left]), 2 * now, (low[left] + high[left]) / 2)
            is_there = np.abs(step) <= 1e-8 * now
            is_inside = is_there | ((now + step > low[left]) & (now + step < high[left]))
            found[left] = np.where(is_inside, now + step, middle)
            if is_there.all():
                break
            deviations, weights, left = deviations[~is_there], weights[~is_there], left[~is_there]
        return np.asarray(found)

    def plus(self, variances: Array | float) -> Spread:
        """Return the spread with known variances added, one per error."""
        added = np.broadcast_to(np.asarray(variances, dtype=np.float64), len(self.variances))
        return Spread(self.variances + added[:, None], self.weights)

    def plus_spread(self, other: Spread) -> Spread:
        """Return the spread of sums of two independent errors each, on at most :data:`NODES` nodes."""
        blocks = [slice(start, start + BLOCK) for start in range(0, max(1, len(self.variances)), BLOCK)]
        parts = [self._plus(other, block) for block in blocks]
        return Spread(
            np.concatenate([each.variances for each in parts]), np.concatenate([each.weights for each in parts])
        )

    def _plus(self, other: Spread, block: slice) -> Spread:
        variances = self.variances[block, :, None] + other.variances[block, None, :]
        weights = self.weights[block, :, None] * other.weights[block, None, :]
        nodes = variances.shape[1] * variances.shape[2]
        return Spread(variances.reshape(-1, nodes), weights.reshape(-1, nodes)).condensed()

    def condensed(self) -> Spread:
        """Return the spread with neighbouring variances put together until :data:`NODES` are left."""
        count, nodes = self.variances.shape
        if nodes <= NODES:
            return self
        logs = np.log(np.maximum(self.variances, 1e-300))
        low, high = logs.min(1, keepdims=True), logs.max(1, keepdims=True)
        bins = ((logs - low) / np.maximum(high - low, 1e-12) * (NODES - 1e-6)).astype(np.int64)
        place = bins + NODES * np.arange(count)[:, None]
        weights = np.bincount(place.ravel(), self.weights.ravel(), count * NODES).astype(np.float64)
        sums = np.bincount(place.ravel(), (self.weights * self.variances).ravel(), count * NODES).astype(np.float64)
        variances = np.divide(sums, weights, out=np.zeros_like(sums), where=weights > 0)
        return Spread(variances.reshape(count, NODES), weights.reshape(count, NODES))

    def times(self, factors: Array | float) -> Spread:
        """Return the spread of variances multiplied by a factor per error."""
        by = np.broadcast_to(np.asarray(factors, dtype=np.float64), len(self.variances))
        return Spread(self.variances * by[:, None], self.weights)

    def at_least(self, floors: Array | float) -> Spread:
        """Return the spread in which smaller variances count as the floor, one per error."""
        bound = np.broadcast_to(np.asarray(floors, dtype=np.float64), len(self.variances))
        return Spread(np.maximum(self.variances, bound[:, None]), self.weights)


def known(variances: Array) -> Spread:
    """Return the spread of variances that are known."""
    return Spread(variances[:, None], np.ones((len(variances), 1)))


def sampled(variances: Array, degrees: Array, bands: int = FINE) -> Spread:
    """Return how estimates of variances with some degrees of freedom, at least 1 each, spread about these."""
    if (degrees >= KNOWN).all():
        return known(variances)
    different, place = np.unique(np.round(np.minimum(degrees, KNOWN), 1), return_inverse=True)
    quantiles = np.array([_chi_squared(each, bands)[0] for each in different.tolist()])[place]
    weights = _chi_squared(float(different[0]), bands)[1]
    return Spread(variances[:, None] * quantiles, np.broadcast_to(weights, quantiles.shape))


def inverted(estimates: Array, drawn: Spread) -> Spread:
    """Return the variances that may be behind estimates, given how estimates spread about variances of that size.

    An error over the root of an estimate W, drawn about a variance V, has the distribution of an error of variance
    V V / W over the root of V. For one variance with a chi-squared estimate, that gives Student's t exactly.
    """
    return Spread(estimates[:, None] ** 2 / np.maximum(drawn.variances, 1e-300), drawn.weights)


@cache
def _chi_squared(degrees: float, bands: int) -> tuple[Array, Array]:
    """Return middles and weights of bands of a chi-squared's probability, divided by its degrees.

    Bands are narrower towards small values, which make an error look large.
    """
    tail = np.concatenate([[0.0], 10.0 ** np.linspace(-6, -1, bands // 2 + 1)])
    edges = np.concatenate([tail, np.linspace(0.1, 1.0, bands - bands // 2)[1:]])
    middles = np.concatenate([[edges[1] / 2], np.sqrt(edges[1:-2] * edges[2:-1]), [(edges[-2] + 1) / 2]])
    return np.asarray(stats.chi2.ppf(middles, degrees) / degrees), np.diff(edges)


def mixed(spreads: Sequence[Spread], weights: Array) -> Spread:
    """Return the spread of errors of which only the weights, (errors, spreads), say which spread they have."""
    return Spread(
        np.concatenate([each.variances for each in spreads], axis=1),
        np.concatenate(
            [each.weights * weight[:, None] for each, weight in zip(spreads, weights.T, strict=True)], axis=1
        ),
    )


def joined(spreads: Sequence[Spread]) -> Spread:
    """Return the errors of several spreads as one list."""
    width = max(each.variances.shape[1] for each in spreads)
    wide = [width - each.variances.shape[1] for each in spreads]
    variances = [np.pad(each.variances, ((0, 0), (0, w)), mode="edge") for each, w in zip(spreads, wide, strict=True)]
    weights = [np.pad(each.weights, ((0, 0), (0, w))) for each, w in zip(spreads, wide, strict=True)]
    return Spread(np.concatenate(variances), np.concatenate(weights))
