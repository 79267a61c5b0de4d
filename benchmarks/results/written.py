"""How numbers of a board are written in the report."""

from __future__ import annotations

from harness_leaderboard.boards.model import Board, Row
from harness_leaderboard.statistics.analysis import Difference
from harness_leaderboard.statistics.error import Interval


def row_of(board: Board, method: str) -> Row:
    """Return a method's row; a board has one of each."""
    found = [row for row in board.all_rows if row.method == method]
    if len(found) != 1:
        raise SystemExit(f"{board.task}: {len(found)} rows of {method}")
    return found[0]


def title(board: Board) -> str:
    """Return what a board's score is."""
    return str(board.metric_details[board.main_metric]["title"])


def cell(board: Board, method: str) -> str:
    """Return a score with its interval; nothing where the method was not run."""
    if all(row.method != method for row in board.all_rows):
        return "not run"
    row = row_of(board, method)
    if not row.is_for_new_items:
        raise SystemExit(f"{board.task}: {method} has no interval for new items, of which the page speaks")
    return f"{row.score.value:.3f} ({interval(row.interval)})"


def interval(found: Interval | None, sign: int = 1) -> str:
    """Return an interval in words."""
    if found is None:
        return ""
    low, high = sorted((sign * found.low, sign * found.high))
    return f"{low:.3f} to {high:.3f}"


def better(board: Board, found: Difference) -> bool:
    """Return whether the first of two methods is the better one."""
    return (found.difference > 0) is board.higher_is_better


def text(found: Difference) -> str:
    """Return a difference's size with its interval."""
    return f"{abs(found.difference):.3f} ({interval(found.interval, 1 if found.difference > 0 else -1)})"


def value(row: Row, name: str) -> float:
    """Return a cost of a row."""
    found = row.costs[name].value
    return float("nan") if found is None else found
