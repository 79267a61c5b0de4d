"""Rows to the arrays that the statistics start from."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from harness.contract.record import Record, State
from harness_leaderboard.boards.model import Row, halves, is_finished
from harness_leaderboard.statistics.error import Array, Places
from harness_leaderboard.statistics.scores import Scores, Search, Stages

ANYTHING = (-math.inf, math.inf)
BOUNDS = {  # by a metric's unit
    "fraction": (0.0, 1.0), "correlation": (-1.0, 1.0), "nats": (0.0, math.inf), "perplexity": (1.0, math.inf),
}  # fmt: skip


def scores_of(rows: Sequence[Row], everything: Sequence[Record]) -> Scores:
    """Return the scores of rows, and of the searches for their learning rates.

    Args:
        rows: At least one, all of one metric.
        everything: Every record of the board, those of the searches among them.
    """
    seeds = sorted({seed for row in rows for seed in row.seed_scores})
    totals = np.full((len(rows), len(seeds)), math.nan)
    for place, row in enumerate(rows):
        for seed, score in row.seed_scores.items():
            totals[place, seeds.index(seed)] = score
    searched: dict[str, list[Record]] = defaultdict(list)
    for record in everything:
        if record.trial.purpose == "tune":
            searched[record.trial.cell].append(record)
    items = _items(rows, seeds)
    return Scores(
        methods=tuple(row.label for row in rows),
        seeds=tuple(seeds),
        totals=totals,
        items=items,
        groups=None if items is None else _groups(rows, items.shape[2]),
        higher_is_better=rows[0].first.higher_is_better,
        diverged=tuple(row.states.get(State.DIVERGED, 0) for row in rows),
        searches=tuple(_search(searched.get(row.first.trial.cell, ()), row) for row in rows),
        stages=_stages(rows),
        bounds=bounds_of(rows),
        chance=chance_of(rows),
    )


def bounds_of(rows: Sequence[Row]) -> tuple[float, float]:
    """Return the values between which the main metric is by its unit, if all scores are."""
    if not rows:
        return ANYTHING
    first = rows[0].first
    low, high = BOUNDS.get(str(first.metric_details.get(first.main_metric, {}).get("unit")), ANYTHING)
    is_kept = all(low <= score <= high for row in rows for score in row.seed_scores.values())
    return (low, high) if is_kept else ANYTHING


def chance_of(rows: Sequence[Row], metric: str = "") -> float | None:
    """Return what guessing scores, by those records that say so; ``None``: none does.

    Args:
        rows: Scored on the same items.
        metric: The main one, if none is given.
    """
    found = [
        float(level)
        for row in rows
        for record in row.records
        if isinstance(level := record.metric_details.get(metric or record.main_metric, {}).get("chance"), int | float)
    ]
    return fmean(found) if found else None


def chance_from(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the other trials whose records say what guessing scores in the main metric, where the rows' own do not."""
    details = [record.metric_details.get(record.main_metric, {}) for row in rows for record in row.records]
    return tuple(sorted({trial_id for each in details for trial_id in each.get("chance_from", ())}))


def _stages(rows: Sequence[Row]) -> Stages | None:
    """Return how often the rows' board is looked at, where one plan says so; several plans cannot be followed."""
    plans = {row.looks for row in rows} - {None}
    if len(plans) != 1 or (looks := plans.pop()) is None:
        return None
    return Stages(
        seeds=tuple(looks.seeds_at(look) for look in range(1, len(looks.counts) + 1)),
        shares=looks.shares,
        reached=tuple(None if row.looks is None else looks.reached(row.ended) for row in rows),
    )


def item_means(row: Row) -> list[float | None] | None:
    """Return the main metric's items, each a mean over the seeds that have it; ``None``: the records keep none."""
    found = [items for record in row.records if is_finished(record) and (items := _of_record(record)) is not None]
    if not found or len({len(each) for each in found}) > 1:
        return None
    stacked = np.asarray(found)
    counts = (~np.isnan(stacked)).sum(0)
    sums = np.nansum(stacked, axis=0)
    return [float(total / count) if count else None for total, count in zip(sums, counts, strict=True)]


def _items(rows: Sequence[Row], seeds: Sequence[int]) -> Array | None:
    """Return the items of all rows, where every scored record has them and their mean is the score (an F1's is not)."""
    places: dict[tuple[int, int], Array] = {}
    for place, row in enumerate(rows):
        for record in row.records:
            if not is_finished(record) or record.score is None:
                continue
            items = _of_record(record)
            if items is None or not math.isclose(float(np.nanmean(items)), record.score, rel_tol=1e-6, abs_tol=1e-6):
                return None
            places[place, seeds.index(record.trial.seed)] = items
    lengths = {len(each) for each in places.values()}
    if len(lengths) != 1:
        return None
    result = np.full((len(rows), len(seeds), lengths.pop()), math.nan)
    for (place, seed), items in places.items():
        result[place, seed] = items
    return result


def _groups(rows: Sequence[Row], count: int) -> Places | None:
    """Return which items belong together, where every record that says so says the same."""
    found = {
        tuple(groups)
        for row in rows
        for record in row.records
        if is_finished(record) and (groups := record.item_groups.get(record.main_metric))
    }
    if len(found) != 1:
        return None
    numbers = np.asarray(found.pop(), dtype=np.int64)
    return numbers if len(numbers) == count else None


def _of_record(record: Record) -> Array | None:
    items = record.items.get(record.main_metric, ())
    values = np.asarray([math.nan if value is None else value for value in items], dtype=np.float64)
    return values if len(values) > 1 and not np.isnan(values).all() else None


def _search(records: Sequence[Record], row: Row) -> Search | None:
    """Return a row's search for its learning rate; ``None``: it was not searched, or reports another rate."""
    found: Mapping[tuple[float, int], float] = {
        (each.trial.learning_rate, each.trial.seed): math.nan if each.score is None else each.score
        for each in records
        if is_finished(each)
    }
    rates = sorted({each.trial.learning_rate for each in records})
    if len(rates) < 2 or row.first.trial.learning_rate not in rates:
        return None
    seeds = sorted({each.trial.seed for each in records})
    values = [[found.get((rate, seed), math.nan) for rate in rates] for seed in seeds]
    return Search(
        rates=tuple(rates),
        scores=np.asarray(values),
        chosen=rates.index(row.first.trial.learning_rate),
        halves=any(halves(each) for each in records),
    )
