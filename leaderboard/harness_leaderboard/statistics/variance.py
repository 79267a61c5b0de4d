"""How much the methods' scores vary from seed to seed, every pair's own variance held against the board's common one.

The model of a board: score = method + seed + item + method x item + method x seed. Seeds and items are shared by all
methods, so their own effects leave every difference. What is left is the method x seed variance, of which three seeds
alone say almost nothing, and thirteen methods with three seeds together a lot, if the methods are alike. How alike they
are is estimated too: the methods' variances are taken to come from one scaled inverse chi-squared distribution, and its
scale and its degrees of freedom are averaged over what the board leaves possible. Where one method is far noisier than
the rest, few degrees are likely, and everybody's own seeds count for more. A pair borrows from the other methods only,
so that nothing counts twice.

Source: Smyth 2004, "Linear models and empirical Bayes methods for assessing differential expression" (the prior);
Box and Tiao 1973, "Bayesian inference in statistical analysis" (averaging over its parameters).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from harness_leaderboard.statistics.error import Array, Places, Spread, estimated

PRIOR_DEGREES = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0])
SCALES = np.linspace(-2.0, 1.5, 36)  # of the common variance, in decades about the methods' mean
NODES = 96  # possible variances of a pair
NEGLIGIBLE = 1e-3  # of the likeliest parameters' weight: left out


@dataclass(frozen=True)
class SeedVariances:
    """The method x seed variances of a board.

    Attributes:
        own: Each method's own estimate.
        degrees: Its degrees of freedom; 0: none.
        prior_degrees: Those of each possible prior.
        prior_variances: Its scale.
        log_densities: Of each method's estimate under each prior, shape (priors, methods).
    """

    own: Array
    degrees: Array
    prior_degrees: Array
    prior_variances: Array
    log_densities: Array

    @property
    def lent_degrees(self) -> float | None:
        """Return how many degrees of freedom the board is thought to lend; ``None``: none can be lent."""
        if (self.degrees > 0).sum() < 3:
            return None
        weights = _normalised(self.log_densities.sum(1))
        return float(np.exp((weights * np.log(self.prior_degrees)).sum()))

    @property
    def common(self) -> float:
        """Return the methods' mean variance."""
        total = self.degrees.sum()
        return float((self.own * self.degrees).sum() / total) if total > 0 else 0.0

    def of_pairs(self, first: Places, second: Places, own: Array, degrees: Array) -> Spread:
        """Return the spread of the variance of differences between seeds, one per pair of methods.

        Args:
            first: Places of the pairs' first methods.
            second: Of their second ones.
            own: The variance of each pair's differences, over the seeds that both ran.
            degrees: Its degrees of freedom.
        """
        others = self.log_densities.sum(1)[:, None] - self.log_densities[:, first] - self.log_densities[:, second]
        if (self.degrees > 0).sum() < 3 or not (own > 0).any():
            return estimated(own, degrees)
        prior, scale = self.prior_degrees[:, None], 2 * self.prior_variances[:, None]
        weights = _normalised(others + _log_density(own, degrees, prior, scale))
        kept = weights.max(1) > NEGLIGIBLE * weights.max()
        total = prior[kept] + degrees
        return _mixture(weights[kept], total, (prior[kept] * scale[kept] + degrees * own) / total)


def seed_variances(totals: Array) -> SeedVariances:
    """Return the method x seed variances of scores, shape (methods, seeds), NaN where a method did not run a seed."""
    own, degrees = _own_variances(totals)
    total = degrees.sum()
    mean = float((own * degrees).sum() / total) if total > 0 else 0.0
    prior, scale = (each.ravel() for each in np.meshgrid(PRIOR_DEGREES, mean * 10.0**SCALES, indexing="ij"))
    densities = np.zeros((len(prior), len(own)))
    known = (degrees > 0) & (own > 0)
    densities[:, known] = _log_density(own[known], degrees[known], prior[:, None], scale[:, None])
    return SeedVariances(own, degrees, prior, scale, densities)


def _log_density(own: Array, degrees: Array, prior: Array, scale: Array) -> Array:
    """Return the log density of estimates under priors, but for what does not depend on the prior: F distributions."""
    ratio = degrees * own / (prior * scale)
    return np.asarray(
        special.gammaln((degrees + prior) / 2) - special.gammaln(prior / 2)
        + degrees / 2 * np.log(np.maximum(ratio, 1e-300)) - (degrees + prior) / 2 * np.log1p(ratio)
    )  # fmt: skip


def _normalised(log_weights: Array) -> Array:
    weights = np.exp(log_weights - log_weights.max(0))
    return np.asarray(weights / weights.sum(0))


def _mixture(weights: Array, degrees: Array, variances: Array) -> Spread:
    """Return mixtures of scaled inverse chi-squared distributions, (priors, errors) each, as one spread per error."""
    start = np.log(variances.min(0)) - 2.0
    end = np.log(variances.max(0)) + 8.0
    logs = start[:, None] + np.linspace(0.0, 1.0, NODES) * (end - start)[:, None]  # (errors, nodes)
    half = degrees[:, :, None] / 2
    ratio = np.log(variances)[:, :, None] - logs[None]
    constant = half * np.log(half) - special.gammaln(half) + np.log(np.maximum(weights, 1e-300))[:, :, None]
    density = np.exp(constant + half * (ratio - np.exp(ratio))).sum(0)
    return Spread(np.exp(logs), density / density.sum(1, keepdims=True))


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
