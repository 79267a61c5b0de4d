"""What a planned sweep will be able to tell apart, in sentences."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from harness import Record, Trial
from harness_leaderboard.boards.build import build_boards
from harness_leaderboard.boards.scores import scores_of
from harness_leaderboard.statistics.forecast import ASSUMED, Noise, detectable_difference, noise_of


def forecast(trials: Sequence[Trial], records: Sequence[Record]) -> str:
    """Return a sentence for each board that a sweep will make, with the noise seen so far or else assumed."""
    boards: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for trial in trials:
        if trial.purpose == "report" and trial.budget_parameters is not None and not trial.largest:
            boards[trial.task, trial.budget][trial.cell] += 1
    return "\n".join(
        _sentence(task, len(cells), min(cells.values()), _seen(task, budget, records))
        for (task, budget), cells in boards.items()
    )


def _seen(task: str, budget: str, records: Sequence[Record]) -> tuple[Noise, str] | None:
    """Return the noise of finished trials and the metric's unit; ``None``: too few are finished."""
    for board in build_boards([each for each in records if each.trial.task == task]):
        rows = [row for row in board.rows if row.seed_scores]
        if board.budget == budget and rows and not board.differing:
            noise = noise_of(scores_of(rows, ()))
            if noise is not None:
                return noise, str(board.metric_details.get(board.main_metric, {}).get("unit") or "")
    return None


def _sentence(task: str, methods: int, seeds: int, seen: tuple[Noise, str] | None) -> str:
    noise, unit = seen or (ASSUMED, "fraction")
    difference = detectable_difference(methods, seeds, noise)
    of = f"{task}: {seeds} seed{'s'[: seeds != 1]} of {methods} method{'s'[: methods != 1]}"
    if difference is None:
        return f"{of} can tell nothing apart; run two methods or more, with two seeds or more."
    size = f"{100 * difference:.2g} points" if unit == "fraction" else f"{difference:.2g} {unit}".rstrip()
    source = (
        "by the trials that are finished"
        if seen
        else "if the score is a share of right answers among 256 items and seeds vary by 2 points"
    )
    return f"{of} will tell differences of about {size} apart (found about 4 times in 5), {source}."
