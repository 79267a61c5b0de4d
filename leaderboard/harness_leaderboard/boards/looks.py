"""Boards that are looked at while seeds are added: which rows need more of them, and what a reader must know."""

from __future__ import annotations

from collections.abc import Sequence

from harness.contract.looks import KEY
from harness_leaderboard.boards.model import Board, Row
from harness_leaderboard.statistics.analysis import Difference


def undecided(board: Board) -> list[Row]:
    """Return the rows of a pair that is not told apart, and may still differ by what the plan of looks calls much."""
    found = {label for each in undecided_pairs(board) for label in (each.first, each.second)}
    return [row for row in board.rows if row.label in found]


def undecided_pairs(board: Board) -> list[Difference]:
    """Return the pairs that are not told apart, of which the interval still holds a difference that matters."""
    looks = next((row.looks for row in board.rows if row.looks is not None), None)
    if board.analysis is None or looks is None:
        return []
    is_fraction = board.metric_details.get(board.main_metric, {}).get("unit") == "fraction"
    size = looks.points / 100 if is_fraction else looks.points
    return [
        each
        for each in board.analysis.differences.values()
        if not each.is_separated and (each.interval.high >= size or each.interval.low <= -size)
    ]


def uncompared(board: Board) -> list[str]:
    """Return the rows that are compared with no other, and why: a line per reason."""
    reasons: dict[str, list[str]] = {}
    for row in board.rows:
        if row.rank_reason:
            reasons.setdefault(row.rank_reason, []).append(row.label)
    return [f"{board.task} {', '.join(labels)}: not compared, {reason}" for reason, labels in reasons.items()]


def notes_on_looks(rows: Sequence[Row]) -> list[str]:
    """Return what of a board's looks is not as a plan that was made before any seed was run would have it."""
    planned = [row for row in rows if row.looks is not None]
    if not planned or len({row.looks for row in planned}) > 1:
        return []
    notes = []
    outside = [row.label for row in rows if row.looks is None]
    if outside:
        notes.append(f"{', '.join(outside)}: run without the plan of looks, so all of its seeds count at every look.")
    began = min(e.started_at for row in planned for e in row.records if KEY in e.environment)
    before, beside = (
        {row.label: found for row in planned if (found := _unplanned(row, began, is_before=each))}
        for each in (True, False)
    )
    if before:
        listed = ", ".join(f"{label} {len(found)}" for label, found in before.items())
        notes.append(
            f"Seeds that were there before the looks were planned: {listed}. The level holds if nobody planned the "
            "looks because of what these showed."
        )
    if beside:
        listed = ", ".join(f"{label} {' '.join(map(str, found))}" for label, found in beside.items())
        notes.append(
            f"Seeds that were added beside the plan of looks: {listed}. The level holds if nobody added them because "
            "of what the others showed."
        )
    later = []
    for row in planned:
        assert row.looks is not None
        look = row.looks.reached(row.ended)
        counted = set(row.looks.seeds_at(look)) if look else set()
        if seeds := sorted(set(row.seed_scores) - counted):
            later.append(f"{row.label} {' '.join(map(str, seeds))}")
    if later:
        notes.append(
            "Seeds that are in the scores, but not in the tests until all those of their look have ended: "
            f"{', '.join(later)}."
        )
    return notes


def _unplanned(row: Row, began: str, is_before: bool) -> list[int]:
    """Return the seeds of a row that ran without its plan, before the first one that ran by it, or after."""
    return sorted(
        each.trial.seed
        for each in row.records
        if KEY not in each.environment and (each.started_at < began) == is_before
    )
