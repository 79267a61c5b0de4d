"""P-values of all pairs, corrected for their number, by closed tests.

A pair is separated if every way in which it could still be equal is refuted: "these two are equal and nothing else is",
"these three are", "these two, and those three among themselves", ... Each hypothesis is tested at the whole level, and
the board is wrong on no more boards than the level says, since one of the hypotheses is the truth. Pairs add evidence:
six of ten small p-values refute "all five are equal" though none of them would alone.

* Up to :data:`FEW` methods, every partition into groups of equals is tested by the sum of its pairs' squared normal
  scores: with one variance for all that is the F test's sum of squares, so a chi-squared of as many degrees as the
  groups leave. Where all are equal but one is noisy, that one's pairs are small together, and no evidence adds up. So
  "all are equal" is also kept while one method's own comparisons are all that speaks against it and
  these, :data:`ONE_METHOD` times their middle p-value, do not.
* Up to :data:`MANY`, every set of methods is tested by Simes' test, each at a level that goes with its size: sets that
  do not overlap have the board's level together.
* Above, where there are too many sets, by Shaffer's correction of Holm's.

Source: Marcus, Peritz and Gabriel 1976, "On closed testing procedures with special reference to ordered analysis of
variance"; Begun and Gabriel 1981, "Closure of the Newman-Keuls multiple comparisons procedure" (partitions); Simes
1986, "An improved Bonferroni procedure for multiple tests of significance"; Einot and Gabriel 1975, "A study of the
powers of several methods of multiple comparisons" (levels by size); Shaffer 1986, "Modified sequentially rejective
multiple test procedures", procedure S1.
The guard against one noisy method is our own, its constant from ``benchmarks/simulation``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import special

from harness_leaderboard.statistics.error import Array, Flags, Places

FEW = 6  # methods: 203 partitions; with more, sums over partitions find less than sets do
MANY = 16  # methods: 65,536 sets
ONE_METHOD = 10.0  # with 7, five methods of which one is noisier are told apart on 6.7 % of boards, with 10 on 5.7 %
SMALLEST = 1e-300  # p-value: one of 0 has no normal score


def corrected(p_values: Array, first: Places, second: Places, shares: Sequence[float] = (1.0,)) -> Array:
    """Return the p-values of all pairs of some methods, corrected for their number, in the order given.

    Args:
        p_values: Shape (looks, pairs), or (pairs,) where there is one look.
        first: Places of the pairs' first methods.
        second: Of the second.
        shares: Of the level, one per look; a hypothesis that was refuted at one look stays so.
    """
    methods = len({*first.tolist(), *second.tolist()})
    places = np.unique(np.concatenate([first, second]), return_inverse=True)[1].reshape(2, -1)
    low, high = places.min(0), places.max(0)
    order = np.lexsort((high, low))  # as ``np.triu_indices`` has them
    looks = np.atleast_2d(p_values)[:, order]
    spent = np.asarray(shares)[: len(looks), None]
    if methods > MANY:
        found = _shaffer((looks / spent).min(0), methods)
    elif methods > FEW:
        refuted = np.array([_sets(each, methods) for each in looks]) / spent
        worst = _largest_above(refuted.min(0), methods)
        found = worst[(1 << low[order]) | (1 << high[order])]
    else:
        refuted = np.array([_partitions(each, methods) for each in looks]) / spent
        found = np.where(_all_partitions(methods).equal, refuted.min(0)[:, None], 0.0).max(0)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(found, 1.0)
    return adjusted


@dataclass(frozen=True)
class _Partitions:
    """All ways in which some methods can be equal in groups, the first being all of them.

    Attributes:
        equal: Whether a pair is within a group, (partitions, pairs).
        shares: What a pair's squared score adds to the sum of squares: two, over the size of its group.
        degrees: Of the sum.
        without: Places of the partitions in which all methods but one are equal, one per method.
    """

    equal: Flags
    shares: Array
    degrees: Array
    without: Places


@cache
def _all_partitions(methods: int) -> _Partitions:
    first, second = np.triu_indices(methods, 1)
    groups = np.array([each for each in _groups(methods) if len(set(each)) < methods])
    equal = groups[:, first] == groups[:, second]
    sizes = (groups[:, :, None] == groups[:, None, :]).sum(2)
    alone = [
        int(np.flatnonzero((sizes[:, each] == 1) & (np.delete(sizes, each, 1) == methods - 1).all(1))[0])
        for each in range(methods if methods > 2 else 0)
    ]
    return _Partitions(
        equal=equal,
        shares=np.where(equal, 2.0 / sizes[:, first], 0.0),
        degrees=np.array([methods - len(set(each)) for each in groups.tolist()], dtype=np.float64),
        without=np.array(alone, dtype=np.int64),
    )


def _groups(methods: int) -> Iterator[tuple[int, ...]]:
    """Yield the partitions as the number of each method's group, all in one group first."""
    if methods == 0:
        yield ()
        return
    for rest in _groups(methods - 1):
        yield from ((*rest, group) for group in range(max(rest, default=-1) + 2))


def _partitions(p_values: Array, methods: int) -> Array:
    """Return the p-values of partitions."""
    every = _all_partitions(methods)
    squares = special.chdtri(1.0, np.maximum(p_values, SMALLEST))
    found: Array = special.chdtrc(every.degrees, every.shares @ squares)
    if methods == 2:
        return p_values.copy()
    first, second = np.triu_indices(methods, 1)
    own = np.array([np.median(p_values[(first == each) | (second == each)]) for each in range(methods)])
    found[0] = max(found[0], min(1.0, ONE_METHOD * float((own * found[every.without]).max())))
    return found


def _sets(p_values: Array, methods: int) -> Array:
    """Return the p-values of "all of a set are equal", by the sets' numbers, whose bits are their members.

    Corrected for the sets' sizes: together, sets of which no two overlap are refuted as often as the level says.
    """
    members, sizes = _members(methods), _members(methods).sum(0)
    first, second = np.triu_indices(methods, 1)
    seen, least = np.zeros(2**methods), np.full(2**methods, np.inf)
    for pair in np.argsort(p_values):
        within = members[first[pair]] & members[second[pair]]
        seen += within
        np.minimum(least, p_values[pair] / np.maximum(seen, 1.0), out=least, where=within)
    pairs = sizes * (sizes - 1) / 2
    simes = np.where(pairs > 0, np.minimum(np.where(pairs > 0, least, 0.0) * pairs, 1.0 - 1e-16), 0.0)
    share = np.where(sizes >= methods - 1, 1.0, methods / np.maximum(sizes, 1))
    return np.asarray(-np.expm1(share * np.log1p(-simes)))


@cache
def _members(methods: int) -> Flags:
    """Return whether a method is in a set, (methods, sets)."""
    numbers, bits = np.arange(2**methods), np.arange(methods)
    return np.asarray(numbers[None] >> bits[:, None] & 1 == 1)


def _largest_above(values: Array, methods: int) -> Array:
    """Return, per set, the largest value of the sets that hold it."""
    table = values.reshape((2,) * methods).copy()
    for method in range(methods):
        absent, present = np.moveaxis(table, method, 0)
        np.maximum(absent, present, out=absent)
    return table.reshape(-1)


def _shaffer(p_values: Array, methods: int) -> Array:
    """Return p-values times the number of pairs that can still be equal."""
    order = np.argsort(p_values)
    counts = np.minimum(_most_equal(methods)[: len(order)], np.arange(len(order), 0, -1))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.maximum.accumulate(p_values[order] * counts)
    return adjusted


@cache
def _most_equal(methods: int) -> Array:
    """Return how many pairs can be without a difference where 0, 1, 2, ... pairs have one."""
    pairs = methods * (methods - 1) // 2
    possible = np.array(_possible(methods))
    left = pairs - np.arange(pairs)
    return possible[np.searchsorted(possible, left, side="right") - 1].astype(np.float64)


def _possible(methods: int) -> list[int]:
    """Return the numbers of equal pairs that methods can have, in groups of equals, from the lowest."""
    found = [1]  # by how many methods there are: a bit for each number of pairs
    for count in range(1, methods + 1):
        found.append(0)
        for size in range(1, count + 1):
            found[count] |= found[count - size] << (size * (size - 1) // 2)
    return [pairs for pairs in range(found[methods].bit_length()) if found[methods] >> pairs & 1]
