"""P-values of all pairs, corrected for their number.

Holm's correction counts every pair that is not yet rejected. But pairs hang together: once two of five methods differ,
at most six of the other nine pairs can be without a difference, since "equal" makes groups. Shaffer's correction counts
these, so it finds more at the same level.

Source: Holm 1979, "A simple sequentially rejective multiple test procedure"; Shaffer 1986, "Modified sequentially
rejective multiple test procedures", procedure S1.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from harness_leaderboard.statistics.error import Array


def corrected(p_values: Array, methods: int) -> Array:
    """Return the p-values of pairs of some methods, corrected for their number, in the order given."""
    order = np.argsort(p_values)
    counts = np.minimum(_most_equal(methods)[: len(order)], np.arange(len(order), 0, -1))
    raised = np.maximum.accumulate(p_values[order] * counts)
    adjusted = np.empty_like(raised)
    adjusted[order] = np.minimum(raised, 1.0)
    return adjusted


@cache
def _most_equal(methods: int) -> Array:
    """Return how many pairs can be without a difference where 0, 1, 2, ... pairs have one."""
    pairs = methods * (methods - 1) // 2
    possible = np.array(sorted(_possible(methods)))
    return np.array([possible[possible <= pairs - different].max() for different in range(pairs)], dtype=np.float64)


@cache
def _possible(methods: int) -> frozenset[int]:
    """Return the numbers of equal pairs that methods can have, in groups of equals."""
    if methods < 2:
        return frozenset({0})
    groups = range(1, methods + 1)
    return frozenset(size * (size - 1) // 2 + rest for size in groups for rest in _possible(methods - size))
