"""The view as Markdown."""

from __future__ import annotations

import html
from collections.abc import Sequence

from tabulate import tabulate

from harness_leaderboard.view.model import MISSING, BoardView, FamilyView, Grid
from harness_leaderboard.view.text import printable

SPECIAL = "\\`*_[]|#~"


def document(boards: Sequence[BoardView], families: Sequence[FamilyView], passed_over: Sequence[str] = ()) -> str:
    """Return every board as one document."""
    parts = ["# Fine-tuning methods at equal budgets"]
    if not boards:
        parts.append("There are no records to show.")
    if passed_over:
        parts.append(_list("Passed over, since they are no records:", passed_over))
    parts += [board(each) for each in boards]
    for family in families:
        parts += [f"## {escape(family.title)}", escape(family.sentence), grid(family.grid)]
    return "\n\n".join(parts) + "\n"


def board(view: BoardView) -> str:
    """Return one board."""
    parts = [f"## {escape(view.title)}", escape(" ".join(view.sentences))]
    if view.notes:
        parts.append(_list("Before you compare:", view.notes))
    if view.scores.rows or view.scores.foot:
        parts += [grid(view.scores), " ".join(view.cost_notes)]
    if any(cell.text == "ref." for line in view.scores.foot for cell in line):
        parts.append("ref.: reference, outside the budget.")
    if view.scores.notes:
        parts.append(_list(f"{MISSING} means missing:", view.scores.notes))
    if view.failures:
        parts.append(_list("Did not finish:", view.failures))
    return "\n\n".join(parts)


def grid(found: Grid) -> str:
    """Return a table in GitHub's Markdown."""
    return tabulate(
        [[escape(cell.text) for cell in row] for row in (*found.rows, *found.foot)],
        headers=[escape(column.title) for column in found.columns],
        colalign=["right" if column.is_number else "left" for column in found.columns],
        tablefmt="github",
        disable_numparse=True,
    )


def escape(text: str) -> str:
    """Escape what Markdown or the HTML inside it would read as markup, on one line."""
    plain = html.escape(" ".join(printable(text).split()), quote=False)
    return "".join(f"\\{each}" if each in SPECIAL else each for each in plain)


def _list(head: str, lines: Sequence[str]) -> str:
    return "\n".join([head, "", *(f"- {escape(line)}" for line in lines)])
