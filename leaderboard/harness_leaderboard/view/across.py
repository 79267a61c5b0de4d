"""The table of a comparison across budgets: who is better with how many times fewer parameters."""

from __future__ import annotations

from harness_leaderboard.boards.across import Across
from harness_leaderboard.boards.model import Row
from harness_leaderboard.statistics.analysis import Difference
from harness_leaderboard.view.details import table, text_cell
from harness_leaderboard.view.model import Cell, Grid
from harness_leaderboard.view.scores import interval_text, metric_title, score_decimals
from harness_leaderboard.view.text import p_value_text, rounded_text, scope_text, signed_text

HEADS = ("Smaller", "Larger", "Times fewer parameters", "Difference", "95 %", "p, corrected", "Verdict")


def across_grid(across: Across) -> Grid:
    """Return every pair of methods at different budgets: the smaller first, smaller minus larger."""
    where = f"{across.scale} · {across.model} · {metric_title(across.board, across.board.main_metric)}"
    if across.analysis is None:
        return table(f"{where}: not tested, since {across.reason}", HEADS, [])
    rows = []
    for each in across.analysis.differences.values():
        first, second = across.rows[each.first], across.rows[each.second]
        if first.first.trial.budget != second.first.trial.budget:
            is_smaller = _size(first) <= _size(second)
            rows.append(_line(across, each if is_smaller else each.reversed()))
    caption = (
        f"{where}: smaller minus larger. The p-values are corrected for all {len(across.analysis.differences):,} pairs "
        "of methods and budgets, the intervals are each pair's own. Not told apart is no proof of being equal: the "
        "interval says how far apart they may be"
    )
    return table(caption, HEADS, sorted(rows, key=lambda row: (-float(row[2].sort or 0), row[0].text, row[1].text)))


def _line(across: Across, each: Difference) -> tuple[Cell, ...]:
    decimals = score_decimals(across.board) + 1
    factor = _size(across.rows[each.second]) / max(1, _size(across.rows[each.first]))
    is_better = (each.difference > 0) is across.board.higher_is_better
    verdict = ("smaller is better" if is_better else "larger is better") if each.is_separated else "not told apart"
    return (
        text_cell(each.first),
        text_cell(each.second),
        Cell(text=f"{rounded_text(factor)}×", sort=factor),
        Cell(text=signed_text(each.difference, f"{abs(each.difference):.{decimals}f}"), sort=each.difference),
        Cell(
            text=interval_text(each.interval, decimals),
            sort=each.interval.low,
            below=scope_text(each.new_items is not None),
        ),
        Cell(text=p_value_text(each.adjusted_p_value), sort=each.adjusted_p_value),
        text_cell(verdict),
    )


def _size(row: Row) -> int:
    return row.first.trial.adapter_parameters
