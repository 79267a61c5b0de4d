"""From separated pairs to ranks: ranges, and letters, that say what the pairs say and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness_leaderboard.statistics.error import Flags


def closed(better: Flags) -> Flags:
    """Return who is better than whom, (methods, methods), with all that follows: above someone who is above another.

    Two methods that would be above each other are not separated: such pairs contradict one another.
    """
    reach = better.copy()
    for middle in range(len(reach)):
        reach |= np.outer(reach[:, middle], reach[middle])
    return reach & ~reach.T


def rank_ranges(better: Flags) -> list[tuple[int, int]]:
    """Return each method's best and worst possible rank, given who is proven better than whom (:func:`closed`).

    If two ranges do not overlap, the two methods are separated: somebody stands between them.
    """
    count = len(better)
    return [(1 + int(better[:, each].sum()), count - int(better[each].sum())) for each in range(count)]


def letters(separated: Flags, order: Sequence[int]) -> list[str]:
    """Return letters for each method: two that share one cannot be told apart, two that share none can.

    Args:
        separated: Symmetric, (methods, methods).
        order: Places from best to worst; the best method's groups get the first letters.

    Source: Piepho 2004, "An algorithm for a letter-based representation of all-pairwise comparisons"
            (insert and absorb).
    """
    everyone = sum(1 << each for each in order)
    groups = [everyone]  # sets of methods, a bit each; none is part of another
    for place, first in enumerate(order):
        for second in order[place + 1 :]:
            both = 1 << first | 1 << second
            if not separated[first, second] or not any(group & both == both for group in groups):
                continue
            kept = [group for group in groups if group & both != both]
            halves = dict.fromkeys(
                group & ~(1 << each) for group in groups if group & both == both for each in (first, second)
            )
            groups = kept + [
                half
                for half in halves  # only what was split may have become a part of another
                if not any(half & other == half for other in kept)
                and not any(half & other == half != other for other in halves)
            ]
    position = {each: place for place, each in enumerate(order)}
    members = [[each for each in order if group >> each & 1] for group in groups]
    members.sort(key=lambda group: [position[each] for each in group])
    shown = {each: "" for each in sorted(order)}
    for number, group in enumerate(members):
        for each in group:
            shown[each] += _letter(number)
    return list(shown.values())


def _letter(number: int) -> str:
    """Return a, b, ..., z, a1, b1, ..."""
    return chr(ord("a") + number % 26) + (str(number // 26) if number >= 26 else "")
