"""The numbers that a board's figures draw and its comparison of two methods shows: JSON-able, rounded to be small."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness_leaderboard.boards.cost import first_pair
from harness_leaderboard.boards.model import Board, Row
from harness_leaderboard.boards.scores import item_means
from harness_leaderboard.statistics.error import Interval
from harness_leaderboard.view.curves import GRADIENT_NORM, TRAIN_LOSS, Curve
from harness_leaderboard.view.scores import metric_title, score_decimals
from harness_leaderboard.view.text import scope_text

TRAINED = {TRAIN_LOSS: "Training loss", GRADIENT_NORM: "Gradient norm in training"}
MOST_ITEMS = 200_000  # scores of items in one file, 2 MB; beyond, items are left out and the page says so


def figures(board: Board, curves: Sequence[Curve]) -> dict[str, Any]:
    """Return what the figures of a board draw."""
    has_items = any(row.estimate and row.estimate.new_items for row in board.all_rows)
    return {
        "metric": metric_title(board, board.main_metric),
        "higherIsBetter": board.higher_is_better,
        "bounds": bounds(board),
        "chance": short(board.chance),
        "interval": f"for {scope_text(has_items)}",
        "rows": [point(board, row) for row in board.all_rows],
        "metrics": {name: metric_title(board, name) for row in board.all_rows for name in row.metrics},
        "curves": [
            {
                "metric": curve.metric,
                "title": TRAINED.get(curve.metric) or f"{metric_title(board, curve.metric)}, validation",
                "label": curve.label,
                "points": [[step, *map(short, values)] for step, *values in curve.points],
                "stopped": [[step, short(value)] for step, value in curve.stopped],
            }
            for curve in curves
        ],
        "search": [
            {"label": each.method, "rate": each.learning_rate, "score": short(each.score), "chosen": each.is_chosen}
            for each in board.tuning
            if each.score is not None
        ],
    }


def bounds(board: Board) -> list[float | None]:
    """Return between which values the main metric is; ``None``: it has no end there."""
    return [None if math.isinf(each) else each for each in board.bounds]


def point(board: Board, row: Row) -> dict[str, Any]:
    """Return a row as a point of a figure: score, intervals, and what it costs."""
    costs = {name: summary.value for name, summary in row.costs.items()}
    config = row.first.trial.config
    return {
        "label": row.label,
        "method": row.method,
        "reference": row.is_reference,
        "budget": board.budget,
        "score": short(row.score.value),
        "interval": ends(row.interval),
        "rank": list(row.rank) if row.rank else None,
        "parameters": row.first.trial.adapter_parameters,
        "milliseconds": None if (step := costs["step_seconds_solo"]) is None else short(1000 * step),
        "bytes": costs["peak_memory_bytes"],
        "rate": row.first.learning_rate,
        "seeds": {str(seed): short(score) for seed, score in row.seed_scores.items()},
        "metrics": {name: short(summary.value) for name, summary in row.metrics.items()},
        "settings": {
            name: value
            for name, value in sorted(config.items())
            if isinstance(value, int) and not isinstance(value, bool)
        },
    }


def pairs(board: Board) -> dict[str, Any]:
    """Return what the board says about each pair of rows."""
    first = first_pair(board)
    opens = {} if first is None else {"this": first[0].label, "against": first[1].label, "why": first[2]}
    if board.analysis is None:
        return {"scope": "", "decimals": score_decimals(board) + 1, "opens": opens, "remedy": "", "pairs": []}
    is_searched = any(row.tune_trials for row in board.rows)
    return {
        "scope": board.analysis.scope,
        "decimals": score_decimals(board) + 1,
        "opens": opens,
        "remedy": "more test items" + " or a search of the learning rates on more seeds" * is_searched,
        "pairs": [
            {
                "first": each.first,
                "second": each.second,
                "difference": short(each.difference),
                "newItems": ends(each.new_items),
                "theseItems": ends(each.these_items),
                "p": short(each.adjusted_p_value),
                "separated": each.is_separated,
                "seeds": each.seeds,
                "paired": each.is_paired,
                "needed": each.seeds_to_separate,
            }
            for each in board.analysis.differences.values()
        ],
    }


def items(board: Board) -> Mapping[str, Any] | None:
    """Return each row's scores per item, means over seeds; ``None`` where there are none, or too many for a page."""
    found = {row.label: means for row in board.all_rows if (means := item_means(row)) is not None}
    lengths = {len(each) for each in found.values()}
    if len(found) < 2 or len(lengths) != 1 or len(found) * lengths.pop() > MOST_ITEMS:
        return None
    return {label: [None if value is None else round(value, 3) for value in means] for label, means in found.items()}


def ends(interval: Interval | None) -> list[float | None] | None:
    """Return an interval as a pair of numbers."""
    return None if interval is None else [short(interval.low), short(interval.high)]


def short(value: float | None) -> float | None:
    """Return a number with six significant digits."""
    return None if value is None else float(f"{value:.6g}")
