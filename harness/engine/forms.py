"""To what sizes batches are padded: to few, since a GPU captures (and compiles) a step for each, and with little waste.

A batch's rows depend on the seed alone. So what the next updates of all lanes need is known beforehand, and the sizes
that waste least are found exactly, by dynamic programming over what is needed.

What is not here: making batches of these sizes (``batch``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

MULTIPLE = 16  # sizes on a GPU are multiples of this
MOST_FORMS = 8
UNKNOWN, BEYOND = 3, 1  # bits that are kept of a size that was not foreseen, of any and of one larger than all foreseen
LITTLE = 0.05  # of all tokens: padding for the sake of fewer forms that is taken without looking for more forms


class Size(NamedTuple):
    """The size of one lane's part of a batch.

    Attributes:
        tokens: Of every row; where texts lie flat, of all texts together.
        labels: Loss positions.
    """

    tokens: int
    labels: int


@dataclass(frozen=True)
class Forms:
    """To what sizes batches are padded.

    Attributes:
        longest: Texts lie flat, one after another, and none has more tokens; 0: each has a row of its own.
        multiple: Sizes that were not foreseen are rounded up to a multiple of this; 1: no padding but to equal lengths.
        limit: Of the tokens of a row that is one text: the model's positions; 0: none is known.
        sizes: Foreseen, ascending.
        examples: For each of these, the update of which a batch of this size was foreseen.
    """

    longest: int = 0
    multiple: int = 1
    limit: int = 0
    sizes: Sequence[Size] = ()
    examples: Mapping[Size, int] = field(default_factory=dict)

    def fit(self, needed: Size, examples: int) -> Size:
        """Return the smallest size that holds what is needed, of so many examples a lane."""
        fitting = [each for each in self.sizes if each.tokens >= needed.tokens and each.labels >= needed.labels]
        if fitting:
            return fitting[0]
        if self.multiple == 1:
            return needed
        if self.sizes:  # larger than thousands before it: the next such one shall find a form that fits
            tokens, labels = (
                most if each <= most else _coarse(each, self.multiple, BEYOND)
                for each, most in zip(needed, self.sizes[-1], strict=True)
            )
        elif self.longest:  # coarsely, so that few forms arise however the texts' lengths add up
            tokens, labels = (_coarse(each, self.multiple, UNKNOWN) for each in needed)
        else:
            tokens, labels = _up(needed.tokens, self.multiple), _up(needed.labels, self.multiple * examples)
        return Size(self._within(tokens), labels)

    def _within(self, tokens: int) -> int:
        """Return the tokens of a row that the model has positions for: padding may not need more than the texts."""
        return min(tokens, self.limit) if self.limit and not self.longest else tokens


def plan(needs: Sequence[Size], longest: int = 0, most: int = MOST_FORMS, limit: int = 0) -> Forms:
    """Return the forms for batches that need these sizes: as few as waste little, and at most ``most``.

    Args:
        needs: What each batch needs, update by update.
        longest: See ``Forms``.
        most: Forms.
        limit: See ``Forms``.
    """
    empty = Forms(longest, MULTIPLE, limit)
    if not needs:
        return empty
    rounded = np.asarray([_up(each.tokens, MULTIPLE) for each in needs])
    tokens, places, counts = np.unique(rounded, return_inverse=True, return_counts=True)
    labels = np.zeros(len(tokens), dtype=np.int64)
    np.maximum.at(labels, places, [each.labels for each in needs])
    for number in range(1, min(most, len(tokens)) + 1):
        ends, waste = _partition(tokens, counts, number)
        if waste <= LITTLE * float((tokens * counts).sum()):
            break
    sizes: list[Size] = []
    for start, end in zip([0, *ends], ends, strict=False):
        # Ascending in both, so that the first size that fits is the smallest.
        most_labels = max([int(labels[start:end].max()), *(size.labels for size in sizes)])
        sizes.append(Size(empty._within(int(tokens[end - 1])), _up(most_labels, MULTIPLE)))
    forms = replace(empty, sizes=tuple(sizes))
    examples: dict[Size, int] = {}
    for update, needed in enumerate(needs):
        examples.setdefault(forms.fit(needed, 1), update)
    return replace(empty, sizes=tuple(size for size in sizes if size in examples), examples=examples)


def _partition(sizes: np.ndarray, counts: np.ndarray, number: int) -> tuple[list[int], float]:
    """Return the ends of ``number`` runs of ascending sizes, and what padding each to its run's last size wastes."""
    total = len(sizes)
    before = np.concatenate([[0], np.cumsum(counts)])
    mass = np.concatenate([[0], np.cumsum(counts * sizes)])
    best = np.full((number + 1, total + 1), np.inf)
    cut = np.zeros((number + 1, total + 1), dtype=np.int64)
    best[0, 0] = 0.0
    for run in range(1, number + 1):
        for end in range(run, total + 1):
            starts = np.arange(run - 1, end)
            waste = sizes[end - 1] * (before[end] - before[starts]) - (mass[end] - mass[starts])
            costs = best[run - 1, starts] + waste
            choice = int(costs.argmin())
            best[run, end], cut[run, end] = costs[choice], starts[choice]
    ends, end = [], total
    for run in range(number, 0, -1):
        ends.append(end)
        end = int(cut[run, end])
    return ends[::-1], float(best[number, total])


def together(lanes: Iterable[Size]) -> Size:
    """Return what the largest of several lanes needs, which all get."""
    tokens, labels = zip(*lanes, strict=True)
    return Size(max(tokens), max(labels))


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _coarse(number: int, multiple: int, bits: int) -> int:
    """Return a number rounded up by a part of ``2 ** bits`` at most, or to the multiple."""
    return _up(number, max(multiple, 1 << max(0, number.bit_length() - 1 - bits)))
