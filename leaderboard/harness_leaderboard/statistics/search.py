"""What the search for a learning rate adds to a method's error: another search seed might have chosen another rate.

A rate is chosen where a few noisy scores are best. The choice is drawn again and again: the curve that was seen, plus
new noise of the size that seeds have on this board, gives new choices by the search's own rule, and the scores of the
curve at these, their spread. That spread is part of the error of the method's score, as seeds and items are.

Source: Efron and Tibshirani 1993, "An introduction to the bootstrap", section 6.5 (the parametric bootstrap).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from harness.contract.looks import rungs
from harness_leaderboard.statistics.error import Array
from harness_leaderboard.statistics.scores import Search

DRAWS = 2000
SEED = 20240601  # any fixed number: the same records always give the same page


@dataclass(frozen=True)
class Selection:
    """How sure a search is.

    Attributes:
        variance: Of the method's score, from choosing another rate, in the metric's unit squared.
        again: How often another search would choose the same rate.
        flatness: How many of the rates are within the noise of the best: two standard deviations of a difference.
    """

    variance: float
    again: float
    flatness: int


def selection(search: Search, noise: float, higher_is_better: bool) -> Selection:
    """Return how sure a search is, where one score of one seed has the standard deviation ``noise``."""
    sign = 1.0 if higher_is_better else -1.0
    seeds = (~np.isnan(search.scores)).sum(0)
    scored = seeds > 0
    if scored.sum() < 2:
        return Selection(0.0, 1.0, int(scored.sum()))
    curve = sign * np.nanmean(search.scores[:, scored], axis=0)
    errors = noise / np.sqrt(seeds[scored])
    generator = np.random.default_rng(SEED)
    if search.halves:
        found = halve(curve + noise * generator.standard_normal((DRAWS, len(search.scores), len(curve))))[0]
    else:
        found = (curve + errors * generator.standard_normal((DRAWS, len(curve)))).argmax(1)
    unsure = (len(curve) - 1) / max(len(curve) - 3, 1)  # the mean of what may be behind a variance of so few rates
    chosen = int(np.flatnonzero(scored).tolist().index(search.chosen)) if scored[search.chosen] else int(curve.argmax())
    return Selection(
        variance=float(np.var(curve[found])) * unsure,
        again=float((found == chosen).mean()),
        flatness=int((curve >= curve.max() - 2 * np.sqrt(2) * errors).sum()),
    )


def halve(scores: Array) -> tuple[Array, Array]:
    """Search by halving, as ``harness.planning.search`` does: return what is chosen, and how many seeds each got.

    Args:
        scores: Shape (searches, seeds, rates), higher is better; those of stopped rates are not looked at.
    """
    searches, seeds, rates = scores.shape
    alive, spent = np.ones((searches, rates), dtype=bool), np.zeros((searches, rates), dtype=int)
    left = rates
    for count in rungs(seeds):
        spent[alive] = count
        means = np.where(alive, scores[:, :count].mean(1), -np.inf)
        left = math.ceil(left / 2)
        alive = np.zeros_like(alive)
        np.put_along_axis(alive, np.argsort(-means, axis=1)[:, :left], values=True, axis=1)
        if left == 1:
            break
    return means.argmax(1), spent
