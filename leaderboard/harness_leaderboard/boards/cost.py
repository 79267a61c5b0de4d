"""What rows cost, and the pair that a reader of a board would ask for first."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.contract.trial import Trial
from harness_leaderboard.boards.model import Board, Row

MUCH_THE_SAME = 1.25  # ratio of two step times that nobody would choose by


def by_cost(rows: Sequence[Row], sign: int) -> list[Row]:
    """Return rows by size, then by the time of a step in quarters more than the fastest of that size, then by score.

    Args:
        rows: Each with a score.
        sign: 1 where higher is better, else -1.
    """
    sizes = [_size(row.first.trial) for row in rows]
    times = [row.costs["step_seconds_solo"].value or row.costs["train_seconds"].value or 0.0 for row in rows]

    def cost(place: int) -> tuple[int, int, float]:
        size, seconds = sizes[place], times[place]
        fastest = min((each for one, each in zip(sizes, times, strict=True) if one == size and each > 0), default=0.0)
        grade = int(math.log(seconds / fastest, MUCH_THE_SAME)) if seconds > 0 else 0
        return size, grade, -sign * (rows[place].score.value or 0.0)

    return [rows[place] for place in sorted(range(len(rows)), key=cost)]


def first_pair(board: Board) -> tuple[Row, Row, str] | None:
    """Return the two rows that a comparison opens with, and why; ``None`` where there are no two.

    Whoever reads a board wants the best score and asks what may be saved: so the best against the cheapest that is not
    told apart from it. Where that is the best itself, the question left is what it brings over the method that the
    budget is written in, and without such a one, over the next.
    """
    scored = [row for row in board.rows if row.score.value is not None]
    if len(scored) < 2:
        return None
    sign = 1 if board.higher_is_better else -1
    best = max(scored, key=lambda row: sign * (row.score.value or 0.0))
    pairs = [(row, board.difference(row, best)) for row in scored if row is not best]
    tied = [row for row, difference in pairs if difference is not None and not difference.is_separated]
    cheapest = by_cost([best, *tied], sign)[0]
    if cheapest is not best:
        return best, cheapest, "the best score against the cheapest method that is not told apart from it"
    for row in scored:
        if row is board.yardstick and row is not best:
            return best, row, "the best score against the method that the budget is written in"
    return best, max((row for row, _ in pairs), key=lambda row: sign * (row.score.value or 0.0)), "the two best scores"


def _size(trial: Trial) -> int:
    """Return the parameters of a trial's budget, or its own where it has none or cannot be as large."""
    return (not trial.largest and trial.budget_parameters) or trial.adapter_parameters
