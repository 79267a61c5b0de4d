"""Learning curves: means over seeds with their range, few enough points to draw."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from harness.contract.record import Record
from harness_leaderboard.boards.model import Board, is_finished

TRAIN_LOSS = "train/loss"
GRADIENT_NORM = "train/gradient_norm"
EARLY = 100  # updates, of each of which a history has the loss
LEARNING_RATE = "train/learning_rate"  # a setting, and no result
Point = TypeVar("Point")
MOST_POINTS = 100  # that a figure of a few hundred pixels can show


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One method's curve of one metric.

    Attributes:
        metric: Its name.
        label: Of the row.
        points: ``(step, mean, lowest, highest)`` over finished seeds, in order of steps.
        stopped: ``(step, value)`` where seeds that did not finish ended.
        early: Its mean height over the first ``EARLY`` updates: the area below it, per update.
        overall: The same over all updates.
    """

    metric: str
    label: str
    points: tuple[tuple[int, float, float, float], ...]
    stopped: tuple[tuple[int, float], ...]
    early: float | None = None
    overall: float | None = None


def board_curves(board: Board) -> list[Curve]:
    """Return the curves of the main metric, the training loss and whatever else was scored on the way, in that order.

    A history is read once and not kept.
    """
    found: dict[str, list[Curve]] = defaultdict(list)
    for row in board.all_rows:
        values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        stopped: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for record in row.records:
            for metric, points in history(record).items():
                if is_finished(record):
                    for step, value in points:
                        values[metric][step].append(value)
                else:
                    stopped[metric].append(points[-1])
        for metric in sorted({*values, *stopped}):
            band = [
                (step, sum(each) / len(each), min(each), max(each)) for step, each in sorted(values[metric].items())
            ]
            found[metric].append(
                Curve(
                    metric=metric, label=row.label, points=thinned(band), stopped=tuple(stopped[metric]),
                    early=mean_height([each for each in band if each[0] <= EARLY]), overall=mean_height(band),
                )
            )  # fmt: skip
    first = (board.main_metric, TRAIN_LOSS)
    return [curve for metric in sorted(found, key=lambda name: (name not in first, name)) for curve in found[metric]]


def history(record: Record) -> dict[str, list[tuple[int, float]]]:
    """Return ``(step, value)`` of each metric that is a result of training, without missing values; of one split each.

    Older records end with the final score, which is of the test data and no point of a curve on validation data.
    """
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    entries = record.history[:]  # read once: the length of what lies in an index costs a reading, too
    last = len(entries) - 1
    for place, entry in enumerate(entries):
        for metric, value in (entry.get("metrics") or {}).items():
            is_final = place == last and record.trial.purpose == "report" and value == record.metrics.get(metric)
            if value is not None and math.isfinite(value) and not is_final and metric != LEARNING_RATE:
                found[metric].append((int(entry["step"]), float(value)))
    return found


def mean_height(points: Sequence[tuple[int, float, float, float]]) -> float | None:
    """Return the area below a curve's means, straight between its points, per update; ``None`` without a point."""
    if len(points) < 2:
        return points[0][1] if points else None
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))
    return area / (points[-1][0] - points[0][0])


def thinned(points: Sequence[Point]) -> tuple[Point, ...]:
    """Return some of the points of a curve, evenly, its ends among them: as many as can be told apart when drawn."""
    if len(points) <= MOST_POINTS:
        return tuple(points)
    wanted = {round(place * (len(points) - 1) / (MOST_POINTS - 1)) for place in range(MOST_POINTS)}
    return tuple(point for place, point in enumerate(points) if place in wanted)
