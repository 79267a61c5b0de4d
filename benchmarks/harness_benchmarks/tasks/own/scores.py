"""Scores of answers and of labels, each with what every single item is worth, so that two runs can be paired."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from harness import DataError, UsageError


def exact_match(given: str, right: str) -> float:
    """Return whether two answers are the same but for white space around them."""
    return float(given.strip() == right.strip())


def character_f1(given: str, right: str) -> float:
    """Return the F1 of the characters of two answers, as bags: order and white space around do not count."""
    found, wanted = Counter(given.strip()), Counter(right.strip())
    shared = sum((found & wanted).values())
    return 2 * shared / (sum(found.values()) + sum(wanted.values())) if shared else float(found == wanted)


def rouge_l(given: str, right: str) -> float:
    """Return ROUGE-L: the F1 of the longest common subsequence of words.

    Words are runs of letters, digits and underscores of any script, in lower case; no stemming. Source: Lin, "ROUGE: A
    package for automatic evaluation of summaries", 2004, section 3.1, with beta 1, as the ``rouge_score`` package; that
    one keeps ASCII letters and digits only, so it scores other scripts as empty.
    """
    found, wanted = re.findall(r"\w+", given.lower()), re.findall(r"\w+", right.lower())
    if not found or not wanted:
        return 0.0
    row = [0] * (len(wanted) + 1)
    for word in found:
        diagonal = 0
        for place, other in enumerate(wanted, 1):
            above = row[place]
            row[place] = diagonal + 1 if word == other else max(above, row[place - 1])
            diagonal = above
    return 2 * row[-1] / (len(found) + len(wanted))


def confusion(right: Any, given: Any, classes: int) -> Any:
    """Return the counts (right class, given class)."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (np.asarray(right), np.asarray(given)), 1)
    return counts


def macro_f1(counts: Any) -> float:
    """Return the mean F1 of the classes that occur, as right or as given one."""
    hits, total = counts.diagonal(), counts.sum(0) + counts.sum(1)
    return float((2 * hits[total > 0] / total[total > 0]).mean())


def matthews(counts: Any) -> float:
    """Return Matthews' correlation for any number of classes; 0 where one side has a single class.

    Source: Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004.
    """
    right, given = counts.sum(1).astype(float), counts.sum(0).astype(float)
    total = right.sum()
    above = counts.trace() * total - right @ given
    below = ((total**2 - right @ right) * (total**2 - given @ given)) ** 0.5
    return float(above / below) if below else 0.0


@cache
def _module(name: str) -> Any:
    import evaluate

    try:
        return evaluate.load(name, keep_in_memory=True)
    except Exception as error:  # whatever a module's own code raises
        raise UsageError(
            f"metric {name!r}: `evaluate` cannot load it: {str(error).splitlines()[0]}; give one of its modules, a "
            "folder that holds one, or a metric of the task"
        ) from error


def by_module(source: str, given: Sequence[str], right: Sequence[str]) -> tuple[float, list[float]]:
    """Return what a module of ``evaluate`` says of all answers together, and of each alone.

    Args:
        source: ``name`` or ``name:key``, where it gives several numbers.
        given: Written answers.
        right: The right ones.

    Raises:
        UsageError: There is no such module, or several numbers and no key.
    """
    name, _, key = source.partition(":")
    module = _module(name)

    def score(some: Sequence[str], others: Sequence[str]) -> float:
        try:
            found = module.compute(predictions=list(some), references=list(others))
        except (ValueError, TypeError) as error:
            raise DataError(f"metric {name!r} does not take texts: {str(error).splitlines()[0]}") from error
        numbers = {each: value for each, value in found.items() if isinstance(value, (int, float))}
        chosen = key or (name if name in numbers else next(iter(numbers), "") if len(numbers) == 1 else "")
        if chosen not in numbers:
            raise UsageError(
                f"metric {name!r} gives {', '.join(found)}; say which number: "
                f"--metric {name}:{next(iter(numbers), 'KEY')}"
            )
        return float(numbers[chosen])

    return score(given, right), [score([one], [other]) for one, other in zip(given, right, strict=True)]
