"""Across budgets: whether a method with fewer parameters is as good as another with more, tested and not only drawn.

The boards of one task, scale, model and metric are one comparison more, of every method at every budget. Its pairs are
corrected together, so what it says holds besides what each board says about its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from harness.contract.record import Record
from harness_leaderboard.boards.build import COMPARABLE_FIELDS
from harness_leaderboard.boards.model import Board, Row, canonical
from harness_leaderboard.boards.scores import scores_of
from harness_leaderboard.statistics.analysis import Analysis, analyse

MOST_ROWS = 40  # methods times budgets: 780 pairs, seconds of work


@dataclass(frozen=True, kw_only=True)
class Across:
    """Methods at several budgets.

    Attributes:
        task: Name of the task.
        scale: Of the recipe.
        model: The base model.
        board: One of the boards, for its metric.
        rows: By label: each method at each budget.
        analysis: What may be claimed about them; ``None``: nothing.
        reason: Why there is no analysis; empty: there is one.
    """

    task: str
    scale: str
    model: str
    board: Board
    rows: dict[str, Row]
    analysis: Analysis | None
    reason: str = ""


def build_across(boards: Sequence[Board], records: Iterable[Record]) -> list[Across]:
    """Return the comparisons across budgets, of boards that differ in nothing but the budget."""
    groups: dict[tuple[str, str, str, str, bool], list[Board]] = defaultdict(list)
    for board in boards:
        groups[board.task, board.scale, board.model, board.main_metric, board.higher_is_better].append(board)
    searches: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record.trial.purpose == "tune":
            searches[record.trial.task, record.trial.scale, record.trial.model].append(record)
    several = [group for group in groups.values() if sum(bool(board.rows) for board in group) > 1]
    return [_across(group, searches[group[0].task, group[0].scale, group[0].model]) for group in several]


def _across(boards: Sequence[Board], searches: Sequence[Record]) -> Across:
    rows = [
        replace(row, variant=", ".join(filter(None, (f"budget {board.budget}", row.variant))))
        for board in boards
        for row in board.rows
        if len(row.seed_scores) > 1
    ]
    reason = _why_not(boards, rows)
    first = boards[0]
    return Across(
        task=first.task,
        scale=first.scale,
        model=first.model,
        board=first,
        rows={row.label: row for row in rows},
        analysis=None if reason else analyse(scores_of(rows, searches)),
        reason=reason,
    )


def _why_not(boards: Sequence[Board], rows: Sequence[Row]) -> str:
    if len(rows) < 2:
        return "fewer than two methods have two seeds"
    if len(rows) > MOST_ROWS:
        pairs = len(rows) * (len(rows) - 1) // 2
        return (
            f"{len(rows)} methods and budgets are more than the {MOST_ROWS} that are tested together: {pairs:,} pairs, "
            "each corrected for all, would leave little to be found"
        )
    names = [name for name in COMPARABLE_FIELDS if name != "budget_parameters"]
    differing = [name for name in names if len({canonical(getattr(row.first.trial, name)) for row in rows}) > 1]
    differing += [name for board in boards for name in board.differing if name not in differing]
    differing += ["the plan of looks"] if len({row.looks for row in rows} - {None}) > 1 else []
    return f"the trials differ in {', '.join(dict.fromkeys(differing))}" if differing else ""
