"""Boards whose truth is known: scores drawn from methods with given means, seeds, items, documents and searches.

Items are answered right with probability Phi(method + seed + item + method x item + method x seed). Deviations of items are on
the probit scale; those of seeds are in points of the score, since that is how they are measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from harness import pseudo_values
from harness_leaderboard.statistics import Scores, Search
from harness_leaderboard.statistics.search import halve

Array = NDArray[np.float64]

METHOD_ITEM = 0.5  # deviation of method x item, probit
SEED = 0.02  # deviation of method x seed, and of the seed that all share
NOISIER = 6  # times the deviation of one method, where the noise is unequal
RATES = 5
LOSS = 0.02  # of the score, one step of half a decade away from the best rate; four times that two steps away


@dataclass(frozen=True, kw_only=True)
class World:
    """What a board is drawn from.

    Attributes:
        methods: How many.
        seeds: That all of them ran.
        items: Of the test set.
        item_deviation: Of the items' difficulty, probit.
        gap: By how much some of the methods are better.
        better: How many these are; ``None``: half of them.
        is_unequal: Whether one method's seeds vary six times as much.
        document: Items per document; effects of documents make up the method x item effects. 1: no documents.
        metric: ``mean``, ``matthews``, ``f1`` or ``perplexity``.
        is_searched: Whether each method's rate was searched.
        search_seeds: On how many seeds.
        halves: Whether the worse half of the rates gets no more of them after 1, 2, 4, ...
        middle: The mean score.
    """

    methods: int
    seeds: int
    items: int
    item_deviation: float = 0.5
    gap: float = 0.0
    better: int | None = None
    is_unequal: bool = False
    document: int = 1
    metric: str = "mean"
    is_searched: bool = False
    search_seeds: int = 1
    halves: bool = False
    middle: float = 0.6


@dataclass(frozen=True)
class Drawn:
    """A board's scores and the truth: each method's score over all seeds, of these items and of all such items.

    ``lost`` is what each method's rate costs it against the best rate of its grid.
    """

    scores: Scores
    better: Array
    these_items: Array = field(default_factory=lambda: np.zeros(0))
    new_items: float | Array = 0.0
    lost: Array = field(default_factory=lambda: np.zeros(0))


def draw(world: World, generator: np.random.Generator) -> Drawn:
    """Return one board."""
    if world.metric == "perplexity":
        return _draw_losses(world, generator)
    count = world.methods
    better = np.arange(count) < (count // 2 if world.better is None else world.better)
    means = world.middle + world.gap * (better - 0.5)
    spread = np.sqrt(1 + world.item_deviation**2 + METHOD_ITEM**2)
    slope = np.exp(-(ndtri(means) ** 2) / 2) / np.sqrt(2 * np.pi) / spread  # points of the score per probit
    deviations = np.full(count, SEED)
    if world.is_unequal:
        deviations[generator.integers(count)] *= NOISIER
    units = world.items // world.document
    items = world.item_deviation * generator.standard_normal(units)
    own_items = METHOD_ITEM * generator.standard_normal((count, units))
    documents = np.repeat(np.arange(units), world.document)
    seeds = SEED / slope.mean() * generator.standard_normal(world.seeds)
    own_seeds = (deviations / slope)[:, None] * generator.standard_normal((count, world.seeds))
    searches, penalties, lost = _search(world, deviations, generator)
    level = ndtri(means - penalties) * spread
    parts = (items + own_items)[:, documents]
    chances = ndtr((level[:, None] + seeds + own_seeds)[:, :, None] + parts[:, None])
    right = (generator.random(chances.shape) < chances).astype(np.float64)
    total = np.sqrt(1 + (SEED / slope.mean()) ** 2 + (deviations / slope) ** 2)
    these = ndtr((level[:, None] + parts) / total[:, None]).mean(1)
    new = ndtr(level / np.sqrt(total**2 + world.item_deviation**2 + METHOD_ITEM**2))
    scores = Scores(
        methods=tuple(f"m{number}" for number in range(count)),
        seeds=tuple(range(world.seeds)),
        totals=right.mean(2),
        items=right,
        groups=documents if world.document > 1 else None,
        searches=searches,
    )
    if world.metric in ("matthews", "f1"):
        scores = _as_corpus(scores, world.metric, generator)
    return Drawn(scores, better, these, new, lost)


def _search(world: World, deviations: Array, generator: np.random.Generator) -> tuple[tuple[Search, ...], Array, Array]:
    """Return each method's search, what the rate that it chose costs, and what against the best of its grid."""
    if not world.is_searched:
        return (), np.zeros(world.methods), np.zeros(world.methods)
    best = generator.uniform(1.5, 2.5, world.methods)  # between the grid's places
    curves = -LOSS * (np.arange(RATES) - best[:, None]) ** 2
    noise = np.sqrt(deviations[:, None] ** 2 + world.middle * (1 - world.middle) / world.items)
    shape = (world.methods, world.search_seeds, RATES)
    seen = world.middle + curves[:, None] + noise[:, None] * generator.standard_normal(shape)
    chosen = seen.mean(1).argmax(1)
    if world.halves:
        chosen, spent = halve(seen)
        seen[np.arange(world.search_seeds)[:, None] >= spent[:, None]] = np.nan
    rates = tuple(10.0 ** (np.arange(RATES) / 2 - 4))
    searches = tuple(
        Search(rates=rates, scores=scores, chosen=int(place), halves=world.halves)
        for scores, place in zip(seen, chosen, strict=True)
    )
    found = curves[np.arange(world.methods), chosen]
    return searches, -found, curves.max(1) - found


def _as_corpus(scores: Scores, metric: str, generator: np.random.Generator) -> Scores:
    """Return answers scored as a whole, against labels of which a third is true."""
    assert scores.items is not None
    labels = generator.random(scores.items.shape[2]) < 1 / 3
    answers = np.where(scores.items > 0.5, labels, ~labels)
    score = _matthews if metric == "matthews" else _f1
    values = np.array([[pseudo_values(score, answer, labels) for answer in method] for method in answers])
    return replace(scores, items=values, totals=values.mean(2))


def _matthews(answers: Array, labels: Array) -> float:
    right = np.corrcoef(answers, labels)[0, 1] if answers.std() and labels.std() else 0.0
    return float(right)


def _f1(answers: Array, labels: Array) -> float:
    hits = (answers & labels).sum()
    return float(2 * hits / max(answers.sum() + labels.sum(), 1))


def _draw_losses(world: World, generator: np.random.Generator) -> Drawn:
    """Return perplexities of windows whose losses are normal; seeds vary by 2 % of the perplexity."""
    count = world.methods
    better = np.arange(count) < (count // 2 if world.better is None else world.better)
    shape = (count, world.seeds, world.items)
    windows = 0.4 * generator.standard_normal(world.items) + 0.1 * generator.standard_normal((count, 1, world.items))
    seeds = SEED * (generator.standard_normal((count, world.seeds, 1)) + generator.standard_normal((world.seeds, 1)))
    losses = 3.0 - world.gap * better[:, None, None] + windows + seeds + 0.05 * generator.standard_normal(shape)
    totals = np.exp(losses.mean(2))
    # The jackknife of an exponential of a mean, for all items at once.
    without = np.exp((losses.sum(2, keepdims=True) - losses) / (world.items - 1))
    values = world.items * totals[:, :, None] - (world.items - 1) * without
    values += (totals - values.mean(2))[:, :, None]
    scores = Scores(
        methods=tuple(f"m{number}" for number in range(count)),
        seeds=tuple(range(world.seeds)),
        totals=totals,
        items=values,
        higher_is_better=False,
    )
    return Drawn(scores, better)
