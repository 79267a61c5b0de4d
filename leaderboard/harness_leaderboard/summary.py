"""The table at the end of ``harness run``."""

from __future__ import annotations

from collections.abc import Sequence

from harness import Record, hookimpl


@hookimpl
def harness_summarize(records: Sequence[Record]) -> str:
    """Return the leaderboard of these records as a terminal table."""
    from harness_leaderboard.boards.build import build_boards
    from harness_leaderboard.view.site import site_view
    from harness_leaderboard.write.terminal import document

    view = site_view(records, build_boards(records))
    return document(view.boards, view.families)
