"""What papers report for a row's method and budget, and why it is not ours to compare."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from harness.contract.record import Record
from harness_leaderboard.boards.model import PAPER_SCALE, Published, RecipeField, canonical, is_finished, item_limit


def published_numbers(records: Sequence[Record]) -> tuple[Published, ...]:
    """Return what papers report for this method at this budget, each number once, by metric and step."""
    first = records[0]
    known = {**first.metric_details, **{name: {} for each in records for name in each.metrics}}
    entries = {canonical(dict(entry)): entry for each in records for entry in each.published}
    found = [
        _beside_ours(entry, records)
        for _, entry in sorted(entries.items())
        if str(entry.get("method")).partition(":")[0] == first.trial.method
        and entry.get("budget", "") == first.trial.budget
        and entry.get("metric") in known
        and isinstance(entry.get("value"), int | float)
    ]
    return tuple(sorted(found, key=lambda each: (each.metric, math.inf if each.step is None else each.step)))


def recipe_fields(record: Record) -> list[RecipeField]:
    """Return a record's recipe beside the paper's, by name; empty: the record does not hold the paper's."""
    ours, paper = record.trial.recipe, record.paper_recipe
    names = sorted({*ours, *paper}) if paper else []
    return [RecipeField(name=name, ours=ours.get(name), paper=paper.get(name)) for name in names]


def _beside_ours(entry: Mapping[str, Any], records: Sequence[Record]) -> Published:
    metric, step = str(entry["metric"]), entry.get("step")
    found = [_value(each, metric, step) for each in records if is_finished(each)]
    ours = [value for value in found if value is not None]
    model = str(entry.get("model") or "")
    return Published(
        metric=metric,
        step=step,
        value=float(entry["value"]),
        ours=statistics.fmean(ours) if ours else None,
        model=model,
        budget=str(entry.get("budget") or ""),
        source=str(entry.get("source") or "source not given"),
        confidence=str(entry.get("confidence") or ""),
        differences=tuple(_differences(records[0], model)),
        caveat=str(entry.get("caveat") or ""),
    )


def _value(record: Record, metric: str, step: int | None) -> float | None:
    """Return a metric of a finished trial after ``step`` updates; ``None`` as step: its final one, of the test data."""
    points = {int(point["step"]): point.get("metrics") or {} for point in record.history}
    value = (record.metrics if step is None or step == max(points, default=None) else points.get(step, {})).get(metric)
    return None if value is None else float(value)


def _differences(record: Record, model: str) -> list[str]:
    """Return why a record's numbers cannot be compared with those of a paper's model, in words."""
    trial, paper = record.trial, record.paper_recipe
    found = [f"ours is the {trial.scale} scale, not the paper's"] if trial.scale != PAPER_SCALE else []
    if not model:
        found.append(f"ours is of {trial.model}; which model the paper's is of, the record does not say")
    elif model != trial.model:
        found.append(f"ours is of {trial.model}, the paper's of {model}")
    if not paper:
        found.append("in what our recipe differs from the paper's, the record does not say")
    elif count := sum(each.differs for each in recipe_fields(record)):
        found.append(f"{count} of the recipe's fields are not the paper's")
    if limit := item_limit(record):
        found.append(f"ours was scored on {limit} items per set")
    return found
