"""The table and the recommendation at the end of ``harness run``; the trial to export; pairs for notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import Record, Trial, hookimpl

if TYPE_CHECKING:
    from harness import Metric  # which brings torch along


@hookimpl
def harness_forecast(trials: Sequence[Trial], records: Sequence[Record], metrics: Mapping[str, Metric]) -> str:
    """Return how large a difference the planned trials will be able to tell."""
    from harness_leaderboard.forecast import forecast

    return forecast(trials, records, metrics)


@hookimpl
def harness_trial_started() -> None:
    """Load what the table is made with, which takes half a second, while a worker trains."""
    import harness_leaderboard.boards.build
    import harness_leaderboard.recommend.words
    import harness_leaderboard.view.site
    import harness_leaderboard.write.terminal  # noqa: F401


@hookimpl
def harness_summarize(records: Sequence[Record], results: str) -> str:
    """Return the leaderboard of these records as a terminal table, and what to use."""
    from harness_leaderboard.boards.build import build_boards
    from harness_leaderboard.recommend.choose import recommend
    from harness_leaderboard.recommend.words import as_text
    from harness_leaderboard.view.site import site_view
    from harness_leaderboard.write.terminal import document

    view = site_view(records, build_boards(records))
    return "\n\n".join([document(view.boards, view.families), *(as_text(each, results) for each in recommend(records))])


@hookimpl
def harness_undecided(records: Sequence[Record]) -> list[str]:
    """Return the cells of pairs that are not told apart and may still differ by what matters."""
    from harness_leaderboard.boards.build import build_boards
    from harness_leaderboard.boards.looks import undecided

    rows = [row for board in build_boards(records) for row in undecided(board)]
    return sorted({record.trial.cell for row in rows for record in row.records})


@hookimpl
def harness_uncompared(records: Sequence[Record]) -> list[str]:
    """Return which rows no board compares with another, and why."""
    from harness_leaderboard.boards.build import build_boards
    from harness_leaderboard.boards.looks import uncompared

    return [line for board in build_boards(records) for line in uncompared(board)]


@hookimpl
def harness_best_trial(records: Sequence[Record]) -> str:
    """Return the trial that ``harness recommend`` names."""
    from harness_leaderboard.recommend.command import best_trial

    return best_trial(records)


@hookimpl
def harness_compare(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return every pair of configurations of each comparison, with what may be said of their difference."""
    from harness_leaderboard.recommend.choose import recommend
    from harness_leaderboard.recommend.words import pairs_json

    return [row for found in recommend(records) for row in pairs_json(found)]
