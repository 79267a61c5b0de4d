"""What a planned sweep will be able to tell apart, in sentences."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from harness import Record, Trial
from harness_leaderboard.boards.build import build_boards
from harness_leaderboard.boards.scores import scores_of
from harness_leaderboard.statistics import NOTHING
from harness_leaderboard.statistics.forecast import ASSUMED, Noise, detectable_difference, noise_of

if TYPE_CHECKING:
    from harness import Metric  # which brings torch along


def forecast(trials: Sequence[Trial], records: Sequence[Record], metrics: Mapping[str, Metric]) -> str:
    """Return a sentence for each board that a sweep will make, with the noise seen so far or else assumed.

    Args:
        trials: Those that will report.
        records: Of those that are complete.
        metrics: By task, the metric that ranks.
    """
    boards: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for trial in trials:
        if trial.purpose == "report" and trial.budget_parameters is not None and not trial.largest:
            boards[trial.task, trial.budget][trial.cell] += 1
    return "\n".join(
        _sentence(task, metrics[task], len(cells), min(cells.values()), _seen(task, budget, records))
        for (task, budget), cells in boards.items()
    )


def _seen(task: str, budget: str, records: Sequence[Record]) -> Noise | None:
    """Return the noise of finished trials; ``None``: too few are finished."""
    for board in build_boards([each for each in records if each.trial.task == task]):
        rows = [row for row in board.rows if row.seed_scores]
        if board.budget == budget and rows and not board.differing:
            noise = noise_of(scores_of(rows, ()))
            if noise is not None and noise.seeds + noise.items > NOTHING**2:  # scores that never vary show no noise
                return noise
    return None


def _sentence(task: str, metric: Metric, methods: int, seeds: int, seen: Noise | None) -> str:
    is_share = metric.unit == "fraction"
    difference = detectable_difference(methods, seeds, seen or ASSUMED)
    of = f"{task}: {seeds} seed{'s'[: seeds != 1]} of {methods} method{'s'[: methods != 1]}"
    if difference is None:
        return f"{of} can tell nothing apart; run two methods or more, with two seeds or more."
    if not is_share and seen is None:  # nothing is known beforehand of how a perplexity or a loss varies
        return f"{of}: what they tell apart in {metric.title} can be said once two methods have two seeds each."
    size = f"{100 * difference:.2g} points" if is_share else f"{difference:.2g} ({metric.unit or metric.title})"
    source = (
        "by the trials that are finished"
        if seen
        else "if the score is a share of right answers among 256 items and seeds vary by 2 points"
    )
    return f"{of} will tell differences of about {size} apart (found about 4 times in 5), {source}."
