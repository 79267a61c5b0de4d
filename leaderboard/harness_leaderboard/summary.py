"""The table at the end of ``harness run``."""

from __future__ import annotations

from collections.abc import Sequence

from harness import Record, hookimpl


@hookimpl
def harness_summarize(records: Sequence[Record]) -> str:
    """Return the leaderboard of these records as a terminal table."""
    from harness_leaderboard.table import terminal_table

    return terminal_table(list(records))
