"""How much the methods' scores vary from seed to seed, every pair's own variance held against the board's common one.

The model of a board: score = method + seed + item + method x item + method x seed. Seeds and items are shared by all
methods, so their own effects leave every difference. What is left is the method x seed variance, of which three seeds
alone say almost nothing, and thirteen methods with three seeds together a lot, if the methods are alike. How alike they
are is estimated too: the methods' variances are taken to come from one scaled inverse chi-squared distribution, and its
scale and its degrees of freedom are averaged over what the board leaves possible. Where one method is far noisier than
the rest, few degrees are likely, and everybody's own seeds count for more.

Source: Smyth 2004, "Linear models and empirical Bayes methods for assessing differential expression" (the prior);
Box and Tiao 1973, "Bayesian inference in statistical analysis" (averaging over its parameters).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from harness_leaderboard.statistics.error import Array, Spread, estimated, mixed

PRIOR_DEGREES = np.array([2.0, 8.0, 32.0, 1000.0])  # how alike the methods may be: from hardly to wholly
PRIOR_WEIGHTS = np.array([0.1, 0.2, 0.3, 0.4])
SCALES = 10.0 ** np.linspace(-1.5, 0.5, 21)  # of the common variance, against the methods' mean


@dataclass(frozen=True)
class SeedVariances:
    """The method x seed variances of a board.

    Attributes:
        own: Each method's own estimate.
        degrees: Its degrees of freedom; 0: none.
        prior_degrees: Of the possible priors; empty: fewer than three methods, nothing is lent.
        prior_variances: The scale of each.
        prior_weights: How likely each is, given the board; they sum to 1.
    """

    own: Array
    degrees: Array
    prior_degrees: Array
    prior_variances: Array
    prior_weights: Array

    @property
    def lent_degrees(self) -> float | None:
        """Return how many degrees of freedom the board lends to each pair; ``None``: none can be lent."""
        if not len(self.prior_degrees):
            return None
        return float((self.prior_weights * np.minimum(self.prior_degrees, self.degrees.sum())).sum())

    def of_pairs(self, own: Array, degrees: Array) -> Spread:
        """Return the spread of the variance of differences between seeds, one per pair of methods.

        Args:
            own: The variance of each pair's differences, over the seeds that both ran.
            degrees: Its degrees of freedom.
        """
        parts = []
        for lent, scale in zip(self.prior_degrees, self.prior_variances, strict=True):
            total = lent + degrees
            # No more than all methods together have (Smyth 2004, limma's df.total).
            parts.append(estimated((lent * 2 * scale + degrees * own) / total, np.minimum(total, self.degrees.sum())))
        return mixed(parts, self.prior_weights) if parts else estimated(own, degrees)


def seed_variances(totals: Array) -> SeedVariances:
    """Return the method x seed variances of scores, shape (methods, seeds), NaN where a method did not run a seed."""
    own, degrees = _own_variances(totals)
    known = (degrees > 0) & (own > 0)
    if known.sum() < 3:
        return SeedVariances(own, degrees, np.zeros(0), np.zeros(0), np.zeros(0))
    mean = float((own * degrees).sum() / degrees.sum())
    densities = _log_density(own[known], degrees[known], PRIOR_DEGREES[:, None, None], mean * SCALES[None, :, None])
    likelihood = densities.sum(2)
    best = likelihood.argmax(1)
    weights = PRIOR_WEIGHTS * np.exp(likelihood.max(1) - likelihood.max())
    return SeedVariances(own, degrees, PRIOR_DEGREES, mean * SCALES[best], weights / weights.sum())


def _log_density(own: Array, degrees: Array, prior: Array, scale: Array) -> Array:
    """Return the log density of estimates under priors, but for what does not depend on the prior: F distributions."""
    ratio = degrees * own / (prior * scale)
    return np.asarray(
        special.gammaln((degrees + prior) / 2) - special.gammaln(prior / 2)
        + degrees / 2 * np.log(ratio) - (degrees + prior) / 2 * np.log1p(ratio)
    )  # fmt: skip


def _own_variances(totals: Array) -> tuple[Array, Array]:
    """Return each method's variance about its mean and the seeds' effects, and the degrees that these leave it."""
    methods, seeds = totals.shape
    present = ~np.isnan(totals)
    rows, columns = np.nonzero(present)
    design = np.zeros((len(rows), methods + seeds))
    design[np.arange(len(rows)), rows] = 1.0
    design[np.arange(len(rows)), methods + columns] = 1.0
    basis, sizes, _ = np.linalg.svd(design, full_matrices=False)
    basis = basis[:, sizes > 1e-9 * sizes.max(initial=1.0)]
    values = totals[present]
    residuals = values - basis @ (basis.T @ values)
    squares = np.bincount(rows, residuals**2, methods).astype(np.float64)
    degrees = np.bincount(rows, 1.0 - (basis**2).sum(1), methods).astype(np.float64)
    degrees[degrees < 1e-9] = 0.0
    squares[squares < 1e-20 * (values**2).sum()] = 0.0  # rounding
    return np.divide(squares, degrees, out=np.zeros(methods), where=degrees > 0), degrees
