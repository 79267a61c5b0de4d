"""What the statistics start from: the scores of some methods on the same seeds and items, as arrays.

Nothing here knows a record. A metric that is not a mean of items (a correlation, an F1, a perplexity, an average of
sets) comes as its jackknife pseudo-values, whose mean is the score; then everything that holds for a mean holds for it.

Source: Tukey 1958, "Bias and confidence in not-quite large samples" (pseudo-values); Miller 2024, arXiv:2411.00640
(clusters of items).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from harness_leaderboard.statistics.error import Array


@dataclass(frozen=True, kw_only=True)
class Search:
    """One method's search for a learning rate.

    Attributes:
        rates: Those tried, ascending.
        scores: Shape (search seeds, rates), in the metric's unit; NaN where a rate diverged or was not tried.
        chosen: Place of the rate that the reported seeds use.
        halves: Whether the worse half got no further seeds after 1, 2, 4, ... of them.
    """

    rates: tuple[float, ...]
    scores: Array
    chosen: int
    halves: bool = False


@dataclass(frozen=True, kw_only=True)
class Stages:
    """A board that is looked at several times while seeds are added, by a plan that was made before.

    Attributes:
        seeds: Those of each look, of which the earlier ones' are a part.
        shares: Of the level, one per look; they sum to at most 1.
        reached: Per method, the last look whose seeds have all ended, 0 being none; ``None``: the method is outside the
            plan, so all of its seeds count at every look.
    """

    seeds: tuple[tuple[int, ...], ...]
    shares: tuple[float, ...]
    reached: tuple[int | None, ...]

    @property
    def latest(self) -> int:
        """Return the last look that any method has reached."""
        return max((each for each in self.reached if each is not None), default=0)

    def look_of(self, first: int, second: int) -> int:
        """Return the last look at which two methods are compared, by place."""
        return min(len(self.seeds) if each is None else each for each in (self.reached[first], self.reached[second]))


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of the methods of one board.

    Attributes:
        methods: Labels, each once.
        seeds: The seeds that any method ran.
        totals: The metric's official value, shape (methods, seeds); NaN: not run, or without a score.
        items: What each item adds, shape (methods, seeds, items): its mean over items is the total. NaN where an item
            has no score. ``None``: the records keep no items, so nothing can be said about other items.
        groups: Which cluster (document, passage) each item belongs to, shape (items,); ``None``: each is its own.
        higher_is_better: Direction of the metric.
        diverged: How many of each method's seeds diverged; empty: none.
        searches: Per method; ``None``: its rate was given, not searched. Empty: none was.
        stages: How often this board is looked at; ``None``: once.
        bounds: The lowest and highest value that the metric can have; intervals end there.
        chance: What guessing scores; ``None``: unknown, or it means nothing.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    totals: Array
    items: Array | None = None
    groups: NDArray[np.int64] | None = None
    higher_is_better: bool = True
    diverged: Sequence[int] = ()
    searches: Sequence[Search | None] = field(default=())
    stages: Stages | None = None
    bounds: tuple[float, float] = (-math.inf, math.inf)
    chance: float | None = None

    def __post_init__(self) -> None:
        """Check that the shapes fit."""
        shape = (len(self.methods), len(self.seeds))
        if self.totals.shape != shape:
            raise ValueError(f"totals have shape {self.totals.shape}; {shape} (methods, seeds) is wanted")
        if self.items is not None and (self.items.shape[:2] != shape or self.items.ndim != 3):
            raise ValueError(f"items have shape {self.items.shape}; {shape} (methods, seeds) and the items are wanted")
        if self.groups is not None and (self.items is None or self.groups.shape != self.items.shape[2:]):
            raise ValueError(f"groups have shape {self.groups.shape}; one for each item is wanted")
        for name, given in (("diverged", self.diverged), ("searches", self.searches)):
            if len(given) not in (0, len(self.methods)):
                raise ValueError(
                    f"{name} has {len(given)} entries; one for each of {len(self.methods)} methods is wanted"
                )

    def hidden_at(self, look: int) -> NDArray[np.bool_]:
        """Return which scores, (methods, seeds), a look does not see.

        Of each method it sees the seeds up to it, or up to the last look that the method reached.
        """
        hidden = np.zeros(self.totals.shape, dtype=bool)
        for place, reached in enumerate(self.stages.reached if self.stages else ()):
            if self.stages and reached is not None:
                seeds = self.stages.seeds[min(look, reached) - 1] if min(look, reached) else ()
                hidden[place] = ~np.isin(self.seeds, seeds)
        return hidden


@dataclass(frozen=True)
class Units:
    """What is drawn when new items are drawn: single items, or whole clusters of them.

    Attributes:
        values: Shape (methods, seeds, units); its mean over units is the total.
        degrees: Degrees of freedom of a variance between units.
    """

    values: Array
    degrees: float


def units(scores: Scores) -> Units | None:
    """Return the contributions of the items, or of their clusters; ``None`` where there are fewer than two.

    A cluster adds the sum of its items' distances from the total, so that clusters of unequal size are weighed as the
    score weighs them. Their degrees of freedom are those of as many equal clusters as the unequal ones are worth.

    Source: Carter, Schnepel and Steigerwald 2017, "Asymptotic behavior of a t-test robust to cluster heterogeneity".
    """
    if scores.items is None or scores.items.shape[2] < 2:
        return None
    if scores.groups is None:
        return Units(scores.items, scores.items.shape[2] - 1.0)
    labels, place, sizes = np.unique(scores.groups, return_inverse=True, return_counts=True)
    if len(labels) < 2:
        return None
    items, count = scores.items, scores.items.shape[2]
    means = np.nanmean(items, axis=2, keepdims=True) if items.size else items
    member = np.zeros((count, len(labels)))
    member[np.arange(count), place] = 1.0
    values = means + len(labels) / count * ((items - means) @ member)
    worth = float((sizes**2).sum()) ** 2 / float((sizes**4.0).sum())
    return Units(values, max(1.0, worth - 1.0))
