"""The view as LaTeX tables; they need the package booktabs."""

from __future__ import annotations

from collections.abc import Sequence

from harness_leaderboard.view.model import BoardView, Cell, Grid
from harness_leaderboard.view.text import printable

COLUMNS = ("rank", "group", "method", "score", "new_items", "these_items", "seeds", "learning_rate", "parameters",
           "deviation", "train", "step", "relative", "memory", "published")  # fmt: skip
SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "—": "---",
    "–": "--",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",  # after a line end, a bare bracket would be read as that command's option
    "]": "{]}",
}


def document(boards: Sequence[BoardView]) -> str:
    """Return every board that has a table."""
    tables = [board(each) for each in boards if each.scores.rows or each.scores.foot]
    return "\n\n".join(["% Needs \\usepackage{booktabs}.", *tables]) + "\n"


def board(view: BoardView) -> str:
    """Return one board as a ``table`` environment."""
    caption = escape(f"{view.title}. {' '.join(view.sentences)}")
    notes = (*view.notes, *view.cost_notes, *view.scores.notes, *view.failures)
    return "\n".join(
        [
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{caption}}}",
            _booktabs(view.scores.select(COLUMNS)),
            *(f"\\par\\footnotesize {escape(note)}" for note in notes),
            "\\end{table}",
        ]
    )


def escape(text: str) -> str:
    """Return text that LaTeX sets as it is, on one line."""
    return "".join(SPECIAL.get(each, each) for each in " ".join(printable(text).split()))


def _booktabs(grid: Grid) -> str:
    def body(rows: Sequence[Sequence[Cell]]) -> list[str]:
        return [" & ".join(escape(cell.text) for cell in row) + " \\\\" for row in rows]

    alignment = "".join("r" if column.is_number else "l" for column in grid.columns)
    heads = " & ".join(escape(column.title) for column in grid.columns) + " \\\\"
    foot = ["\\midrule", *body(grid.foot)] if grid.foot else []
    start = [f"\\begin{{tabular}}{{{alignment}}}", "\\toprule", heads, "\\midrule"]
    return "\n".join([*start, *body(grid.rows), *foot, "\\bottomrule", "\\end{tabular}"])
