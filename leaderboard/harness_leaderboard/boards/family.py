"""Families of tasks: the average over ``glue/rte``, ``glue/mrpc``, ... for one model, scale and budget.

An average is only honest over tasks that every method has finished with every seed; the others are left out and named.
A reference is no method that is compared: what it lacks leaves out no task, and it has an average only of all.
It gets no interval and no rank: its tasks have metrics of their own, and comparisons belong to the boards.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from harness_leaderboard.boards.model import Board, Row


@dataclass(frozen=True, kw_only=True)
class FamilyLine:
    """One method: its average, its score on each task that counts, and the tasks that it lacks."""

    method: str
    is_reference: bool
    average: float | None
    scores: tuple[float | None, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Family:
    """The average over one family of tasks.

    Attributes:
        name: What the tasks' names share, e.g. ``glue``.
        scale: Of the recipes.
        model: The base model.
        budget: As the user wrote it.
        tasks: Those that count.
        left_out: Those that not every method has, or where the methods are not one comparison.
        units: Of the main metrics of those that count.
        is_partial: Whether any was scored on a part of its items.
        higher_is_better: Direction of every task's main metric.
        lines: The methods, best average first.
    """

    name: str
    scale: str
    model: str
    budget: str
    tasks: tuple[str, ...]
    left_out: tuple[str, ...]
    units: tuple[str, ...]
    is_partial: bool
    higher_is_better: bool
    lines: tuple[FamilyLine, ...]

    @property
    def task_count(self) -> int:
        """Return how many tasks of the family there are records of."""
        return len(self.tasks) + len(self.left_out)


def build_families(boards: Sequence[Board]) -> list[Family]:
    """Return the families of which at least two tasks have a board with the same scale, model, budget and direction."""
    groups: dict[tuple[str, str, str, str, bool], list[Board]] = defaultdict(list)
    for board in boards:
        family, slash, _ = board.task.partition("/")
        if slash:
            groups[family, board.scale, board.model, board.budget, board.higher_is_better].append(board)
    return [
        _family(group, *key)
        for key, group in sorted(groups.items())
        if len({board.task for board in group}) == len(group) > 1
    ]


def _family(boards: Sequence[Board], name: str, scale: str, model: str, budget: str, higher_is_better: bool) -> Family:
    scores: dict[tuple[bool, str], dict[str, float]] = defaultdict(dict)
    for board in boards:
        for row in board.all_rows:
            own = scores[row.is_reference, row.method]  # there from now on, even if nothing counts
            if row.score.value is not None and _counts(row, board):
                own[board.task] = row.score.value
    tasks = sorted(board.task for board in boards)
    fair = {board.task for board in boards if not board.differing and _have_same_seeds(board)}
    compared = [own for (is_reference, _), own in scores.items() if not is_reference] or list(scores.values())
    common = [task for task in tasks if task in fair and all(task in own for own in compared)]
    lines = [
        FamilyLine(
            method=method,
            is_reference=is_reference,
            average=statistics.fmean(own[task] for task in common) if common and own.keys() >= set(common) else None,
            scores=tuple(own.get(task) for task in common),
            missing=tuple(task for task in tasks if task not in own),
        )
        for (is_reference, method), own in scores.items()
    ]
    sign = -1 if higher_is_better else 1
    return Family(
        name=name,
        scale=scale,
        model=model,
        budget=budget,
        tasks=tuple(common),
        left_out=tuple(task for task in tasks if task not in common),
        units=tuple(sorted({_unit(board) for board in boards if board.task in common})),
        is_partial=any(any(board.item_limits) for board in boards if board.task in common),
        higher_is_better=higher_is_better,
        lines=tuple(
            sorted(
                lines,
                key=lambda each: (each.is_reference, each.average is None, sign * (each.average or 0.0), each.method),
            )
        ),
    )


def _unit(board: Board) -> str:
    return str(board.metric_details.get(board.main_metric, {}).get("unit") or "no unit")


def _have_same_seeds(board: Board) -> bool:
    return len({tuple(row.seed_scores) for row in board.rows if row.seed_scores}) < 2


def _counts(row: Row, board: Board) -> bool:
    """Return whether a row is its method's result on a task: its only row, with a score for every seed."""
    is_only = sum(each.method == row.method for each in board.all_rows) == 1
    return is_only and len(row.seed_scores) == len(row.records)
