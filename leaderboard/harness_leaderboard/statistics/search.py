"""What the search for a learning rate adds to a method's error: another search seed might have chosen another rate.

A rate is chosen where a few noisy scores are best. The choice is drawn again and again: the curve that was seen, plus
new noise of the size that seeds have on this board, gives new choices, and the scores of the curve at these, their
spread. That spread is part of the error of the method's score, as seeds and items are.

Source: Efron and Tibshirani 1993, "An introduction to the bootstrap", section 6.5 (the parametric bootstrap).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
    drawn = curve + errors * np.random.default_rng(SEED).standard_normal((DRAWS, len(curve)))
    found = drawn.argmax(1)
    unsure = (len(curve) - 1) / max(len(curve) - 3, 1)  # the mean of what may be behind a variance of so few rates
    chosen = int(np.flatnonzero(scored).tolist().index(search.chosen)) if scored[search.chosen] else int(curve.argmax())
    return Selection(
        variance=float(np.var(curve[found])) * unsure,
        again=float((found == chosen).mean()),
        flatness=int((curve >= curve.max() - 2 * np.sqrt(2) * errors).sum()),
    )
