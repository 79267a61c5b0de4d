"""Write the leaderboard: one HTML page, and the same tables as Markdown, CSV and LaTeX.

A pure function of the records: nothing of the time, the place or the order of files gets in. The page itself
is made in ``page``; wording and number formats are in ``table``.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from harness.contract.record import Record, State
from harness.results.frame import to_csv
from harness_leaderboard import table
from harness_leaderboard.board import Board, Row, build_boards, item_limit
from harness_leaderboard.family import build_families
from harness_leaderboard.page import render

LATEX_COLUMNS = (
    "rank",
    "method",
    "score",
    "interval",
    "seeds",
    "learning_rate",
    "parameters",
    "deviation",
    "train",
    "step",
    "memory",
    "published",
)
LATEX_SPECIAL = {
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
    "−": "$-$",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",  # after a line end, a bare bracket would be read as that command's option
    "]": "{]}",
}
MARKDOWN_SPECIAL = "\\`*_[]|#~"


def build(records: Sequence[Record], output: Path) -> Path:
    """Write ``index.html`` and ``leaderboard.md``, ``.csv`` and ``.tex``, and return the page's path.

    Args:
        records: Any records, in any order; those that failed included.
        output: A folder; made if it is not there.
    """
    output.mkdir(parents=True, exist_ok=True)
    boards = build_boards(records)
    page = output / "index.html"
    _write(page, render(records))
    _write(output / "leaderboard.md", markdown(boards))
    _write(output / "leaderboard.csv", csv(boards))
    _write(output / "leaderboard.tex", latex(boards))
    return page


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def markdown(boards: Sequence[Board]) -> str:
    """Return every board as a Markdown document."""
    parts = ["# Fine-tuning methods at equal budgets"]
    if not boards:
        parts.append("There are no records to show.")
    for board in boards:
        parts += [
            f"## {_markdown(table.board_title(board))}",
            _markdown(" ".join(table.summary_sentences(board))),
        ]
        if board.notes:
            parts.append("\n".join(["Before you compare:", "", *(f"- {_markdown(note)}" for note in board.notes)]))
        if board.all_rows:
            parts += [_pipes(board), table.COST_NOTE]
        if board.references:
            parts.append("ref.: reference, outside the budget.")
        missing = table.footnotes(board)
        if missing:
            parts.append(
                "\n".join([f"{table.MISSING} means missing:", "", *(f"- {_markdown(note)}" for note in missing)])
            )
        if board.failures:
            listed = [f"- {_markdown(table.failure_text(each))}" for each in board.failures]
            parts.append("\n".join(["Did not finish:", "", *listed]))
    for family in build_families(boards):
        parts += [
            f"## {_markdown(table.family_title(family))}",
            _markdown(table.family_sentence(family)),
            tabulate(
                [[_markdown(cell.text) for cell in line] for line in table.family_cells(family)],
                headers=[_markdown(each) for each in table.family_heads(family)],
                tablefmt="github",
                disable_numparse=True,
            ),
        ]
    return "\n\n".join(parts) + "\n"


def latex(boards: Sequence[Board]) -> str:
    """Return every board as a ``table`` environment; needs the package booktabs."""
    parts = ["% Needs \\usepackage{booktabs}."]
    for board in boards:
        if not board.all_rows:
            continue
        caption = _latex(f"{table.board_title(board)}. {' '.join(table.summary_sentences(board))}")
        body = _booktabs(board)
        notes = [
            f"\\par\\footnotesize {_latex(note)}" for note in (*board.notes, table.COST_NOTE, *table.footnotes(board))
        ]
        failures = [f"\\par\\footnotesize {_latex(table.failure_text(each))}" for each in board.failures]
        lines = [
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{caption}}}",
            body,
            *notes,
            *failures,
            "\\end{table}",
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def csv(boards: Sequence[Board]) -> str:
    """Return one line per row of every board: numbers unrounded, missing ones empty, units in the names.

    Text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    lines = [_csv_line(board, row) for board in boards for row in board.all_rows]
    if not lines:
        return ""
    return to_csv(pd.DataFrame(lines))


def _csv_line(board: Board, row: Row) -> dict[str, Any]:
    trial, interval, published = row.first.trial, row.score.interval, row.published_score
    versus = next((each for each in row.versus if each.other == board.rows[0].label), None)
    return {
        "task": board.task,
        "scale": board.scale,
        "model": board.model,
        "budget": board.budget,
        "main_metric": board.main_metric,
        "higher_is_better": board.higher_is_better,
        "method": row.method,
        "variant": row.variant,
        "is_reference": row.is_reference,
        "rank": row.rank,
        "tie_group": "" if row.group is None else str(row.group),
        "not_ranked_because": row.rank_reason,
        "score": row.score.value,
        "score_low": interval.low if interval else None,
        "score_high": interval.high if interval else None,
        "score_interquartile_mean": row.robust_score,
        "published": published.value if published else None,
        "published_step": str(published.step) if published and published.step is not None else None,
        "published_model": published.model if published else None,
        "published_source": published.source if published else None,
        "published_caveat": "; ".join(filter(None, (*published.differences, published.caveat))) if published else None,
        "items_per_set": str(limit) if (limit := item_limit(trial.recipe)) else None,
        "seeds_finished": len(row.seed_scores),
        "seeds_started": len(row.records),
        "learning_rate": trial.learning_rate,
        "tune_trials": row.tune_trials,
        "adapter_parameters": trial.adapter_parameters,
        "budget_parameters": None if trial.budget_parameters is None else str(trial.budget_parameters),
        "budget_deviation_fraction": row.budget_deviation_fraction,
        "difference_from_best": -versus.comparison.difference if versus else None,
        "p_value_corrected": versus.adjusted_p_value if versus else None,
        "detectable_difference": board.detectable_difference,
        **{name: summary.value for name, summary in row.costs.items()},
        **{f"trials_{state.value}": row.states.get(state, 0) for state in State},
    }


def _pipes(board: Board) -> str:
    """Return a board's table in GitHub's Markdown."""
    shown = table.columns(board)
    lines = [table.cells(board, row) for row in board.all_rows]
    return tabulate(
        [[_markdown(cells[column.key].text) for column in shown] for cells in lines],
        headers=[_markdown(column.title) for column in shown],
        colalign=["right" if column.is_number else "left" for column in shown],
        tablefmt="github",
        disable_numparse=True,
    )


def _booktabs(board: Board) -> str:
    """Return a board's table as a LaTeX ``tabular``."""
    shown = [column for column in table.columns(board) if column.key in LATEX_COLUMNS]
    alignment = "".join("r" if column.is_number else "l" for column in shown)

    def body(rows: Sequence[Row]) -> list[str]:
        lines = [table.cells(board, row) for row in rows]
        return [" & ".join(_latex(cells[column.key].text) for column in shown) + " \\\\" for cells in lines]

    heads = " & ".join(_latex(column.title) for column in shown) + " \\\\"
    references = ["\\midrule", *body(board.references)] if board.references else []
    start = [f"\\begin{{tabular}}{{{alignment}}}", "\\toprule", heads, "\\midrule"]
    return "\n".join([*start, *body(board.rows), *references, "\\bottomrule", "\\end{tabular}"])


def _markdown(text: str) -> str:
    """Escape what Markdown or the HTML inside it would read as markup, on one line."""
    plain = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{each}" if each in MARKDOWN_SPECIAL else each for each in plain)


def _latex(text: str) -> str:
    return "".join(LATEX_SPECIAL.get(each, each) for each in " ".join(text.split()))
