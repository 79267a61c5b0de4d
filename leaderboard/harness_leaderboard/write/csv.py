"""The view's numbers as CSV and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from harness.results.frame import to_csv
from harness_leaderboard.view.model import BoardView


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


def finite(value: Any) -> Any:
    """Return plain JSON types; a number that JSON has not, an endless interval's end, is ``null``."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, list | tuple) else value
