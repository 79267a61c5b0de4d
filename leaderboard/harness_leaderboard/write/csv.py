"""The view's numbers as CSV and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import pandas as pd

from harness.results.frame import to_csv
from harness_leaderboard.view.model import BoardView, Grid, SiteView


def lines(boards: Sequence[BoardView]) -> str:
    """Return one line per row of every board: numbers unrounded, missing ones empty, units in the names.

    Text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    found = [values for board in boards for values in board.values]
    return to_csv(pd.DataFrame(found)) if found else ""


def objects(board: BoardView) -> str:
    """Return one board as JSON: its rows, every pair, and what a reader must know."""
    content = {
        "title": board.title,
        "sentences": board.sentences,
        "notes": board.notes,
        "failures": board.failures,
        "rows": board.values,
        "pairs": board.pairs["pairs"],
        "scope": board.pairs["scope"],
    }
    return json.dumps(finite(content), indent=1, allow_nan=False) + "\n"


def everything(view: SiteView) -> str:
    """Return all that the pages show as JSON, but for single trials, of which the records say more."""
    content = {each.name: getattr(view, each.name) for each in fields(view) if each.name != "trials"}
    return json.dumps(finite(content), indent=1, allow_nan=False) + "\n"


def rows(grid: Grid) -> str:
    """Return a table as JSON: an object per row, keyed by the titles; numbers unrounded, missing ones null."""
    names = [column.title.lower().replace(" ", "_") for column in grid.columns]
    values = [
        [None if cell.is_missing else cell.text if cell.sort is None else cell.sort for cell in row]
        for row in grid.rows
    ]
    found = [dict(zip(names, row, strict=True)) for row in values]
    return json.dumps(finite(found), indent=1, allow_nan=False)


def finite(value: Any) -> Any:
    """Return plain JSON types; a number that JSON has not, an endless interval's end, is ``null``; no pictures."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if is_dataclass(value):
        content = {each.name: getattr(value, each.name) for each in fields(value)}
        return {name: finite(each) for name, each in content.items() if not isinstance(each, bytes)}
    return [finite(each) for each in value] if isinstance(value, list | tuple) else value
