"""The differences of all pairs of methods, and how far each may be off.

Pairs are compared on the seeds and items that both have, all pairs with the same ones at once. A method's further seeds
still tell how noisy it is.

Source: Owen 2007, arXiv:0712.1111.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from harness_leaderboard.statistics.error import Array, Flags, Places, Spread, joined, mixed
from harness_leaderboard.statistics.parts import Parts
from harness_leaderboard.statistics.scores import Scores, Units
from harness_leaderboard.statistics.variance import FACTORS, LENT_DEGREES, SeedVariances

FIDUCIAL_ALONE = 0.75  # with 0.5, two methods of which one is noisier are told apart on 7 % of boards
NEGLIGIBLE = 1e-7  # chance of a variance that need not be followed


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs of methods, as arrays of equal length.

    Attributes:
        first: Places of the first methods.
        second: Of the second.
        differences: First minus second.
        these_items: What the difference may be off by for other seeds, on these items.
        new_items: For other items too; ``None``: there are none.
        seed_parts: The part of the difference's variance that falls with more seeds.
        item_parts: The part that falls with more items only.
        seeds: How many both ran; of pairs that share fewer than two, how many the one with fewer ran.
        units: How many items or clusters both have.
        is_paired: Whether two seeds or more are shared.
    """

    first: Places
    second: Places
    differences: Array
    these_items: Spread
    new_items: Spread | None
    seed_parts: Array
    item_parts: Array
    seeds: Places
    units: Places
    is_paired: Flags

    @property
    def places(self) -> list[tuple[int, int]]:
        """Return the pairs as places of their methods."""
        return list(zip(self.first.tolist(), self.second.tolist(), strict=True))


def pairs(scores: Scores, contributions: Units | None, variances: SeedVariances) -> Pairs | None:
    """Return all pairs of methods with two scores or more each; ``None``: there is no pair."""
    present = ~np.isnan(scores.totals)
    able = [place for place in range(len(scores.methods)) if present[place].sum() >= 2]
    groups: dict[tuple[bytes, bytes], list[tuple[int, int]]] = defaultdict(list)
    alone: list[tuple[int, int]] = []
    gaps = [_with_score(contributions, place, present[place]) for place in range(len(scores.methods))]
    for first, second in combinations(able, 2):
        seeds = present[first] & present[second]
        if seeds.sum() < 2:
            alone.append((first, second))
        else:
            groups[seeds.tobytes(), (gaps[first] & gaps[second]).tobytes()].append((first, second))
    blocks = []
    for (seeds_key, units_key), members in groups.items():
        seeds = np.frombuffer(seeds_key, dtype=bool)
        blocks.append(_paired(scores, contributions, variances, members, seeds, np.frombuffer(units_key, dtype=bool)))
    if alone:
        blocks.append(_unpaired(scores, contributions, alone, present, gaps))
    return _joined(blocks) if blocks else None


def _with_score(contributions: Units | None, place: int, seeds: Flags) -> Flags:
    """Return which units have a score on all of a method's seeds."""
    if contributions is None:
        return np.zeros(0, dtype=bool)
    found: Flags = ~np.isnan(contributions.values[place][seeds]).any(0)
    return found


def _paired(
    scores: Scores, contributions: Units | None, variances: SeedVariances, members: list[tuple[int, int]],
    seeds: Flags, with_score: Flags,
) -> Pairs:  # fmt: skip
    """Compare pairs that share the same seeds, two or more, and the same units."""
    first, second = (np.array(each, dtype=np.int64) for each in zip(*members, strict=True))
    methods, place = np.unique(np.concatenate([first, second]), return_inverse=True)
    a, b = place[: len(first)], place[len(first) :]
    totals = scores.totals[methods][:, seeds]
    count = totals.shape[1]
    unit_count = int(with_score.sum())
    values = None
    if contributions is not None and unit_count >= 2:
        values = contributions.values[methods][:, seeds][:, :, with_score]
        if unit_count < len(with_score):
            totals = values.mean(2)
    differences = totals[a].mean(1) - totals[b].mean(1)
    own, degrees = _of_pairs(np.cov(totals), a, b), count - 1.0
    if variances.common == 0.0:  # every difference the same on every seed: as if one more seed had shown none
        own, degrees = differences**2 / (count + 1), float(count)
    sizes = np.full(len(a), unit_count if values is not None else 0)
    floor = between_units = np.zeros(len(a))
    item_degrees = 1.0
    if values is not None and contributions is not None:
        unit_means = values.mean(1)
        residuals = values - values.mean(2, keepdims=True) - unit_means[:, None] + unit_means.mean(1)[:, None, None]
        flat = residuals.reshape(len(methods), -1)
        floor = _of_pairs(flat @ flat.T / ((count - 1) * (unit_count - 1)), a, b) / unit_count
        between_units = _of_pairs(np.cov(unit_means), a, b) / unit_count
        item_degrees = min(contributions.degrees, unit_count - 1.0)
    likely = variances.factors_of_pairs(first, second)
    wanted = likely.max(0) > NEGLIGIBLE
    these, new = [], []
    lent = LENT_DEGREES if variances.lends else 0.0
    total = min(lent + degrees, max(variances.degrees, degrees))
    for factor in FACTORS[wanted]:
        moderated = (lent * 2 * factor * variances.common + degrees * own) / (lent + degrees)
        parts = Parts(
            seeds=moderated,
            degrees=np.full(len(a), total),
            floor=floor,
            count=np.full(len(a), count),
            units=between_units,
            unit_degrees=item_degrees,
            is_lent=variances.lends,
            fiducial=0.5 if variances.lends else FIDUCIAL_ALONE,
        )
        these.append(parts.these_items())
        new.append(parts.new_items())
    weights = likely[:, wanted] / likely[:, wanted].sum(1, keepdims=True)
    moderated = (weights @ FACTORS[wanted]) * 2 * variances.common if variances.lends else own
    return Pairs(
        first=first,
        second=second,
        differences=differences,
        these_items=mixed(these, weights),
        new_items=None if values is None else mixed(new, weights),
        seed_parts=np.maximum(moderated, floor) / count,
        item_parts=np.maximum(between_units - floor / count, 0.0),
        seeds=np.full(len(a), count),
        units=sizes,
        is_paired=np.ones(len(a), dtype=bool),
    )


def _unpaired(
    scores: Scores, contributions: Units | None, members: list[tuple[int, int]], present: Flags, gaps: list[Flags]
) -> Pairs:
    """Compare pairs that share no two seeds: their seeds' own effects do not cancel, each method has its own spread."""
    first, second = (np.array(each, dtype=np.int64) for each in zip(*members, strict=True))
    own = [scores.totals[place][present[place]] for place in range(len(scores.methods))]
    counts = np.array([len(each) for each in own])
    shares = np.array([np.var(each, ddof=1) / len(each) if len(each) > 1 else 0.0 for each in own])
    means = np.array([each.mean() if len(each) else np.nan for each in own])
    variance = shares[first] + shares[second]
    divisor = shares[first] ** 2 / (counts[first] - 1) + shares[second] ** 2 / (counts[second] - 1)
    fewest = np.minimum(counts[first], counts[second])
    differences = means[first] - means[second]
    # Welch 1947; where nothing varies, as if one more seed had shown no difference.
    degrees = np.divide(variance**2, divisor, out=fewest.astype(float), where=divisor > 0)
    variance = np.where(variance > 0, variance, differences**2 / (fewest * (fewest + 1)))
    sizes, between, item_degrees = np.zeros(len(first), dtype=np.int64), np.zeros(len(first)), 1.0
    if contributions is not None:
        for number, (a, b) in enumerate(members):
            shared = gaps[a] & gaps[b]
            sizes[number] = shared.sum()
            if sizes[number] >= 2:
                unit_means = [contributions.values[each][present[each]][:, shared].mean(0) for each in (a, b)]
                between[number] = np.var(unit_means[0] - unit_means[1], ddof=1) / sizes[number]
        item_degrees = float(max(1.0, min(contributions.degrees, sizes.min() - 1)))
    parts = Parts(variance, degrees, np.zeros(len(first)), np.ones(len(first)), between, item_degrees)
    has_items = contributions is not None and bool((sizes >= 2).all())
    return Pairs(
        first=first,
        second=second,
        differences=differences,
        these_items=parts.these_items(),
        new_items=parts.new_items() if has_items else None,
        seed_parts=variance,
        item_parts=between,
        seeds=fewest,
        units=sizes,
        is_paired=np.zeros(len(first), dtype=bool),
    )


def _of_pairs(covariance: Array, first: Places, second: Places) -> Array:
    """Return the variance of the differences of pairs from the covariance of the methods."""
    table = np.atleast_2d(covariance)
    spread = np.diag(table)
    return np.asarray(np.maximum(spread[first] + spread[second] - 2 * table[first, second], 0.0))


def _joined(blocks: list[Pairs]) -> Pairs:
    """Return the blocks as one. Other items are spoken of only where every pair has items."""
    if len(blocks) == 1:
        return blocks[0]
    new = [each.new_items for each in blocks]
    names = ("first", "second", "differences", "seed_parts", "item_parts", "seeds", "units", "is_paired")
    return Pairs(
        **{name: np.concatenate([getattr(each, name) for each in blocks]) for name in names},
        these_items=joined([each.these_items for each in blocks]),
        new_items=joined([each for each in new if each is not None]) if all(each is not None for each in new) else None,
    )
