"""The view as plain text, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from harness_leaderboard.view.model import BoardView, Cell, FamilyView, Grid
from harness_leaderboard.view.text import many, printable

COLUMNS = ("rank", "group", "method", "score", "new_items", "these_items", "published", "seeds", "learning_rate",
           "parameters", "train", "relative", "memory", "states")  # fmt: skip
MOST_BOARDS = 20  # beyond that a terminal shows who leads, and the page the rest


def document(boards: Sequence[BoardView], families: Sequence[FamilyView]) -> str:
    """Return every board; of many, one line each."""
    if not boards:
        return "No records."
    if len(boards) > MOST_BOARDS:
        rows = [[printable(each) for each in (board.task, board.context, board.leaders)] for board in boards]
        return tabulate(rows, headers=["task", "board", "may be best"], disable_numparse=True, tablefmt="simple")
    return "\n\n".join([*map(board, boards), *map(_family, families)])


def board(view: BoardView) -> str:
    """Return one board."""
    lines = [view.title, *view.sentences]
    if view.scores.rows or view.scores.foot:
        lines += ["", *_grid(view.scores.select(COLUMNS)).splitlines()]
    if any(cell.text == "ref." for line in view.scores.foot for cell in line):
        lines.append("ref.: reference, outside the budget")
    lines += view.cost_notes[1:]
    lines += [note for note in view.scores.notes if "not ranked" in note]
    if view.failures:
        lines += ["", f"{many(len(view.failures), 'trial')} did not finish:", *(f"  {each}" for each in view.failures)]
    lines += [f"! {note}" for note in view.notes]
    return "\n".join(printable(line) for line in lines)


def table(grid: Grid) -> str:
    """Return any table with its caption."""
    return (
        "\n".join([printable(grid.caption), "", _grid(grid)]) if grid.rows else f"{printable(grid.caption)}: nothing."
    )


def _family(view: FamilyView) -> str:
    return "\n".join([printable(view.title), printable(view.sentence), "", _grid(view.grid)])


def _grid(grid: Grid) -> str:
    def text(row: Sequence[Cell]) -> list[str]:
        return [printable(cell.text) for cell in row]

    columns = [place for place, _ in enumerate(grid.columns) if any(not row[place].is_missing for row in grid.rows)]
    columns = columns or list(range(len(grid.columns)))
    return tabulate(
        [[text(row)[place] for place in columns] for row in (*grid.rows, *grid.foot)],
        headers=[printable(grid.columns[place].title) for place in columns],
        colalign=["right" if grid.columns[place].is_number else "left" for place in columns],
        disable_numparse=True,
        tablefmt="simple",
    )
