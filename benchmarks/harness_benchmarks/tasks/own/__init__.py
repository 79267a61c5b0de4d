"""Tasks on data that users bring, one per kind of data: instructions, texts with labels, plain text.

What the rows are, ``harness`` has found out and checked; here they become tokens and scores.
"""

from __future__ import annotations

from harness import DataTask, hookimpl
from harness_benchmarks.tasks.own.classification import OwnClassification
from harness_benchmarks.tasks.own.instructions import OwnInstructions
from harness_benchmarks.tasks.own.text import OwnText


@hookimpl
def harness_register_data_tasks() -> list[type[DataTask]]:
    """Register a task for each kind of data."""
    return [OwnClassification, OwnInstructions, OwnText]
