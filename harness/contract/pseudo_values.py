"""What each item adds to a score that is no mean of items: a correlation, an F1, a perplexity, an average of sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def pseudo_values(
    score: Callable[..., float], *columns: Any, without_each: Callable[..., Any] | None = None
) -> list[float]:
    """Return the jackknife pseudo-values of a score: one number per item, whose mean is the score.

    An item's is n times the score of all n items less (n - 1) times the score without it. Their spread over n says how
    much the score would vary with other items. Given as ``Evaluation.items`` of the metric, they let the leaderboard
    treat the score as it treats a mean. Items with equal columns are scored once.

        items["matthews"] = pseudo_values(matthews, predictions, labels)

    Args:
        score: Takes the columns as arrays, all items or all but one, and returns a number.
        *columns: One entry per item each.
        without_each: Takes the columns, too, and returns the score without the first item, without the second, and so
            on, where a formula gives that faster than ``score``, once for each.

    Raises:
        ValueError: The columns are not equally long, or empty.

    Source: Tukey 1958, "Bias and confidence in not-quite large samples".
    """
    arrays = [np.asarray(column) for column in columns]
    count = len(arrays[0])
    if not count or any(len(each) != count for each in arrays):
        lengths = ", ".join(str(len(each)) for each in arrays)
        raise ValueError(f"columns of {lengths} items; give equally many, and at least one")
    whole = float(score(*arrays))
    if count == 1:
        return [whole]
    left = _without_each(score, arrays) if without_each is None else np.asarray(without_each(*arrays), dtype=float)
    values = count * whole - (count - 1) * left
    values += whole - values.mean()
    return [float(value) for value in values]


def _without_each(score: Callable[..., float], arrays: Sequence[Any]) -> Any:
    found: dict[tuple[Any, ...], float] = {}
    scores = []
    for place, item in enumerate(zip(*(each.tolist() for each in arrays), strict=True)):
        if item not in found:
            found[item] = float(score(*(np.delete(each, place) for each in arrays)))
        scores.append(found[item])
    return np.array(scores)
