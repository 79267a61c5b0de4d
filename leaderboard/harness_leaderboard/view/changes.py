"""What changed between two sets of boards: scores, ranks, what came and what went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness_leaderboard.boards.model import Board, Row
from harness_leaderboard.view.details import table, text_cell
from harness_leaderboard.view.model import MISSING, Cell, Grid
from harness_leaderboard.view.scores import score_decimals
from harness_leaderboard.view.sentences import context_text, slug_of_board
from harness_leaderboard.view.text import rank_text, signed_text


def changes(old: Sequence[Board], new: Sequence[Board]) -> Grid:
    """Return one row per method of a board that is not the same in both."""
    before, after = ({slug_of_board(board): board for board in boards} for boards in (old, new))
    rows = [row for slug in sorted({*before, *after}) for row in _of_board(before.get(slug), after.get(slug))]
    heads = ("Board", "Method", "What", "Score before", "Score now", "Change", "Rank before", "Rank now", "Seeds")
    return table("What changed", heads, rows)


def _of_board(old: Board | None, new: Board | None) -> list[tuple[Cell, ...]]:
    board = new or old
    if board is None:
        return []
    before, after = ({row.label: row for row in each.all_rows} if each else {} for each in (old, new))
    title = f"{board.task} · {context_text(board)}"
    decimals = score_decimals(board)
    labels = list(dict.fromkeys([*after, *before]))
    return [found for label in labels if (found := _of_row(title, decimals, label, before, after))]


def _of_row(
    title: str, decimals: int, label: str, before: Mapping[str, Row], after: Mapping[str, Row]
) -> tuple[Cell, ...] | None:
    old, new = before.get(label), after.get(label)
    what = _what(old, new)
    if not what:
        return None
    scores = [row.score.value if row else None for row in (old, new)]
    change = None if scores[0] is None or scores[1] is None else scores[1] - scores[0]
    seeds = [f"{len(row.seed_scores)}" if row else MISSING for row in (old, new)]
    return (
        text_cell(title),
        text_cell(label),
        text_cell(what),
        *(Cell(text=MISSING if each is None else f"{each:.{decimals}f}", sort=each) for each in scores),
        Cell(text=MISSING if change is None else signed_text(change, f"{abs(change):.{decimals}f}"), sort=change),
        *(Cell(text=rank_text(row.rank) if row and row.rank else MISSING) for row in (old, new)),
        Cell(text=seeds[0] if seeds[0] == seeds[1] else f"{seeds[0]} → {seeds[1]}"),
    )


def _what(old: Row | None, new: Row | None) -> str:
    """Return in words what is not the same, or nothing."""
    if old is None:
        return "new"
    if new is None:
        return "gone"
    ids = [{record.trial_id for record in row.records} for row in (old, new)]
    found = []
    if ids[1] - ids[0]:
        found.append(f"{len(ids[1] - ids[0])} trials more")
    if ids[0] - ids[1]:
        found.append(f"{len(ids[0] - ids[1])} trials fewer")
    results = [{record.trial_id: (record.score, record.state) for record in row.records} for row in (old, new)]
    if any(results[0][each] != results[1][each] for each in ids[0] & ids[1]):
        found.append("another result of the same trial")
    if old.rank != new.rank and not found:
        found.append("another rank")
    return ", ".join(found)
