"""How much the methods' scores vary from seed to seed: what is common to the board, and who is noisier.

The model of a board: score = method + seed + item + method x item + method x seed. Seeds and items are shared by all
methods, so their own effects leave every difference. What is left is the method x seed variance, of which three seeds
alone say almost nothing, and thirteen methods with three seeds together a lot, if the methods are alike. So a variance
is lent: most methods are taken to have the board's common one, and a few, nobody knows which, one that is up to forty
times as large. How likely each method is among the few follows from its own seeds. (One inverse chi-squared prior for
all methods, as limma has it, was tried: with one method six times as noisy as the rest it either finds less or is
wrong more often.)

Source: Smyth 2004, "Linear models and empirical Bayes methods for assessing differential expression in microarray
experiments" (variances lent by an ensemble); Box and Tiao 1968, "A Bayesian approach to some outlier problems" (a few
with a larger variance).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness_leaderboard.statistics.error import Array, Places

FACTORS = 40.0 ** np.linspace(
    0.0, 1.0, 9
)  # of the common variance, that a method may have; six times the deviation: 36
NOISIER = 0.07  # how likely a method is to be noisier than the common variance, before its seeds say so
LENT_DEGREES = 16.0  # what the board's variance counts for beside a pair's own differences
FEWEST = 3  # methods that can lend; two have one difference only
ROUNDS = 3  # of fitting the seeds' effects and the methods' variances in turn


@dataclass(frozen=True)
class SeedVariances:
    """The method x seed variances of a board.

    Attributes:
        common: The variance that most methods have.
        degrees: The degrees of freedom with which it is known.
        weights: How likely each method's variance is each of ``FACTORS`` times the common one, (methods, factors).
    """

    common: float
    degrees: float
    weights: Array

    def factors_of_pairs(self, first: Places, second: Places) -> Array:
        """Return how likely the mean variance of two methods is each of ``FACTORS`` times the common one."""
        means = (FACTORS[:, None] + FACTORS[None]) / 2
        nearest = np.abs(np.log(means)[..., None] - np.log(FACTORS)).argmin(-1)
        both = self.weights[first][:, :, None] * self.weights[second][:, None, :]
        found = np.zeros((len(first), len(FACTORS)))
        for factor in range(len(FACTORS)):
            found[:, factor] = both[:, nearest == factor].sum(1)
        return found

    @property
    def lends(self) -> bool:
        """Whether the methods are enough to lend one another a variance."""
        return len(self.weights) >= FEWEST and self.common > 0

    @property
    def of_methods(self) -> Array:
        """Return each method's expected variance."""
        return np.asarray(self.common * (self.weights @ FACTORS))

    @property
    def noisier(self) -> Array:
        """Return how likely each method is noisier than the common variance says."""
        return np.asarray(1.0 - self.weights[:, 0])


def seed_variances(totals: Array) -> SeedVariances:
    """Return the method x seed variances of scores, shape (methods, seeds), NaN where a method did not run a seed."""
    methods = len(totals)
    prior = np.concatenate([[1 - NOISIER], np.full(len(FACTORS) - 1, NOISIER / (len(FACTORS) - 1))])
    weights = np.zeros((methods, len(FACTORS)))
    weights[:, 0] = 1.0
    own, degrees = _own_variances(totals, np.ones(methods))
    known = degrees > 0
    if not (own[known] > 0).any():
        return SeedVariances(0.0, float(degrees.sum()), weights)
    if known.sum() < FEWEST:
        return SeedVariances(float((own * degrees).sum() / degrees.sum()), float(degrees.sum()), weights)
    common = 1.2 * float(np.median(own[known])) or float(own[known].mean())
    precision = np.ones(methods)
    for turn in range(ROUNDS):
        if turn:
            own, degrees = _own_variances(totals, precision)
        for _ in range(10):
            ratio = own[:, None] / (common * FACTORS)
            likelihood = degrees[:, None] / 2 * (-np.log(FACTORS) - ratio)
            weights = prior * np.exp(likelihood - likelihood.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            precision = (weights / FACTORS).sum(1)
            common = float((degrees * precision * own).sum() / degrees.sum())
    return SeedVariances(common, float((degrees * precision).sum()), weights)


def _own_variances(totals: Array, precision: Array) -> tuple[Array, Array]:
    """Return each method's variance about its mean and the seeds' effects, and the degrees that these leave it.

    Args:
        totals: Scores, (methods, seeds).
        precision: How much each method's scores count in the seeds' effects.
    """
    methods, seeds = totals.shape
    present = ~np.isnan(totals)
    rows, columns = np.nonzero(present)
    design = np.zeros((len(rows), methods + seeds))
    design[np.arange(len(rows)), rows] = 1.0
    design[np.arange(len(rows)), methods + columns] = 1.0
    scale = np.sqrt(precision[rows])
    basis, sizes, _ = np.linalg.svd(design * scale[:, None], full_matrices=False)
    basis = basis[:, sizes > 1e-9 * sizes.max(initial=1.0)]
    values = totals[present]
    residuals = values - basis @ (basis.T @ (values * scale)) / scale
    squares = np.bincount(rows, residuals**2, methods).astype(np.float64)
    degrees = np.bincount(rows, 1.0 - (basis**2).sum(1), methods).astype(np.float64)
    degrees[degrees < 1e-9] = 0.0
    squares[squares < 1e-20 * (values**2).sum()] = 0.0  # rounding
    return np.divide(squares, degrees, out=np.zeros(methods), where=degrees > 0), degrees
