"""One board to its view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.contract.record import State
from harness_leaderboard.boards.model import Board, Row
from harness_leaderboard.statistics.error import Interval
from harness_leaderboard.view.curves import board_curves
from harness_leaderboard.view.details import details
from harness_leaderboard.view.figures import figures, items, pairs
from harness_leaderboard.view.model import BoardView
from harness_leaderboard.view.scores import cost_notes, metric_title, scores_grid
from harness_leaderboard.view.sentences import (
    chance_notes,
    chance_text,
    context_text,
    effort_text,
    failure_text,
    leaders_text,
    limit_text,
    slug_of_board,
    summary_sentences,
)
from harness_leaderboard.view.text import rounded_text

WIDER = 2.5  # as the rows alone: the longest axis that shows references, too


def board_view(board: Board) -> BoardView:
    """Return everything that there is to show of a board."""
    curves = board_curves(board)
    context = context_text(board)
    axis = _axis(board)
    return BoardView(
        slug=slug_of_board(board),
        task=board.task,
        title=f"{board.task} · {context}",
        context=context,
        facts=_facts(board),
        leaders=leaders_text(board),
        sentences=tuple(summary_sentences(board)),
        notes=(*chance_notes(board), *board.notes),
        badge=limit_text(board),
        scores=scores_grid(board),
        cost_notes=cost_notes(board),
        failures=tuple(failure_text(each) for each in board.failures),
        details=details(board, curves),
        bars=tuple(_bar(row, axis) for row in board.all_rows),
        axis=None if axis is None else _axis_view(board, axis),
        values=tuple(_values(board, row) for row in board.all_rows),
        figures=figures(board, curves),
        pairs=pairs(board),
        items=items(board),
    )


def _facts(board: Board) -> dict[str, Any]:
    methods = sorted({row.method for row in board.rows})
    return {
        "family": board.task.partition("/")[0],
        "scale": board.scale,
        "model": board.model,
        "budget": board.budget or "references only",
        "metric": metric_title(board, board.main_metric),
        "methods": methods,
        "references": sorted({row.method for row in board.references} - {*methods}),
        "seeds": len(board.seeds),
        "tuning": effort_text(board),
    }


def _axis(board: Board) -> tuple[float, float] | None:
    """Return the ends of an axis that holds every seed, and every interval that does not hide the seeds.

    A reference may lie so far off that the methods would be drawn on top of each other: then it is left beyond the end.
    """
    near = _ends(board.rows) or _ends(board.references)
    if near is None:
        return None
    low, high = near
    besides = [_ends([row]) for row in board.references] if board.rows else []
    for found in (*besides, None if board.chance is None else (board.chance, board.chance)):
        if found is not None and max(high, found[1]) - min(low, found[0]) <= WIDER * (near[1] - near[0]):
            low, high = min(low, found[0]), max(high, found[1])
    return max(low, board.bounds[0]), min(high, board.bounds[1])


def _axis_view(board: Board, axis: tuple[float, float]) -> dict[str, Any]:
    """Return the axis in numbers and words, and where on it guessing lies, if it does."""
    low, high = axis
    chance = board.chance if board.chance is not None and low <= board.chance <= high else None
    return {
        "low": low,
        "high": high,
        "text": " … ".join(map(_end, axis)),
        "chance": None if chance is None else round((chance - low) / (high - low), 4),
        "chance_text": "" if board.chance is None else chance_text(board),
    }


def _ends(rows: Sequence[Row]) -> tuple[float, float] | None:
    seeds = [value for row in rows for value in row.seed_scores.values()]
    if not seeds:
        return None
    low, high = min(seeds), max(seeds)
    room = (high - low) or abs(high) * 0.05 or 1.0
    intervals = [row.interval for row in rows if row.interval is not None]
    low = max(low - room, min([low, *(each.low for each in intervals)]))
    high = min(high + room, max([high, *(each.high for each in intervals)]))
    return (low, high) if low < high else (low - room, high + room)


def _end(value: float) -> str:
    return rounded_text(value).replace("-", "−")


def _bar(row: Row, axis: tuple[float, float] | None) -> Mapping[str, Any] | None:
    """Return where a row's score, intervals and seeds lie on the axis, from 0 to 1."""
    if axis is None or row.score.value is None:
        return None

    def place(value: float) -> float:
        return round(min(1.0, max(0.0, (value - axis[0]) / (axis[1] - axis[0]))), 4)

    def ends(interval: Interval | None) -> list[float] | None:
        return None if interval is None else [place(interval.low), place(interval.high)]

    beyond = -1 if row.score.value < axis[0] else 1 if row.score.value > axis[1] else 0
    return {
        "score": place(row.score.value),
        "beyond": beyond,
        "outer": ends(row.estimate.new_items if row.estimate else None),
        "inner": ends(row.estimate.these_items if row.estimate else None),
        "seeds": [place(value) for value in row.seed_scores.values()],
        "reference": row.is_reference,
    }


def _values(board: Board, row: Row) -> dict[str, Any]:
    """Return a row's numbers, unrounded, units in their names; missing ones are ``None``."""
    trial, published, estimate = row.first.trial, row.published_score, row.estimate
    new, these = (estimate.new_items, estimate.these_items) if estimate else (None, None)
    leader = board.rows[0] if board.rows else None
    against = board.difference(row, leader) if leader is not None and leader is not row else None
    return {
        "task": board.task,
        "scale": board.scale,
        "model": board.model,
        "budget": board.budget,
        "main_metric": board.main_metric,
        "higher_is_better": board.higher_is_better,
        "method": row.method,
        "variant": row.variant,
        "is_reference": row.is_reference,
        "rank_best": None if row.rank is None else str(row.rank[0]),
        "rank_worst": None if row.rank is None else str(row.rank[1]),
        "letters": estimate.letters if estimate and row.rank else "",
        "not_ranked_because": row.rank_reason,
        "score": row.score.value,
        "new_items_low": new.low if new else None,
        "new_items_high": new.high if new else None,
        "these_items_low": these.low if these else None,
        "these_items_high": these.high if these else None,
        "seed_deviation": estimate.seed_deviation if estimate else None,
        "published": published.value if published else None,
        "published_step": str(published.step) if published and published.step is not None else None,
        "published_model": published.model if published else None,
        "published_source": published.source if published else None,
        "published_caveat": "; ".join(filter(None, (*published.differences, published.caveat))) if published else None,
        "items_per_set": str(limit) if (limit := row.item_limit) else None,
        "seeds_finished": len(row.seed_scores),
        "seeds_started": len(row.records),
        "learning_rate": row.first.learning_rate,
        "tune_trials": row.tune_trials,
        "adapter_parameters": trial.adapter_parameters,
        "final_parameters": trial.matched_parameters,
        "budget_parameters": None if trial.budget_parameters is None else str(trial.budget_parameters),
        "budget_deviation_fraction": row.budget_deviation_fraction,
        "difference_from_highest_score": against.difference if against else None,
        "p_value_corrected": against.adjusted_p_value if against else None,
        "chance": board.chance,
        "beats_chance": estimate.beats_chance if estimate and board.chance is not None else None,
        "detectable_difference": board.analysis.detectable if board.analysis else None,
        **{name: summary.value for name, summary in row.costs.items()},
        **{f"trials_{state.value}": row.states.get(state, 0) for state in State},
    }


def standings_of(boards: Sequence[Board]) -> dict[str, dict[str, int]]:
    """Return for each method how often, over all boards and pairs, it wins, ties and loses."""
    found: dict[str, dict[str, int]] = {}
    for board in boards:
        best = {row.method for row in board.rows if row.rank is not None and row.rank[0] == 1}
        for method in {row.method for row in board.all_rows}:  # which may have several rows
            total = found.setdefault(method, {"wins": 0, "ties": 0, "losses": 0, "boards": 0, "ranked": 0, "best": 0})
            total["boards"] += 1
            total["ranked"] += any(row.method == method and row.rank is not None for row in board.rows)
            total["best"] += method in best
        for row in board.all_rows:
            total = found[row.method]
            for name, count in board.outcomes(row).items():
                total[name] += count
    return found
