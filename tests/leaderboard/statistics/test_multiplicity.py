"""Corrections for all pairs."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from harness_leaderboard.statistics.multiplicity import FEW, MANY, ONE_METHOD, corrected


def all_pairs(methods):
    first, second = zip(*combinations(range(methods), 2), strict=True)
    return np.array(first), np.array(second)


def squares(p_values):
    """Return the squared normal scores of p-values."""
    return stats.norm.isf(np.asarray(p_values) / 2) ** 2


@st.composite
def boards(draw, most=9):
    methods = draw(st.integers(2, most))
    count = methods * (methods - 1) // 2
    return methods, np.array(draw(st.lists(st.floats(1e-6, 1.0), min_size=count, max_size=count)))


def test_two_methods_need_no_correction():
    assert corrected(np.array([0.03]), *all_pairs(2)) == pytest.approx([0.03])


def test_three_methods_are_equal_together_or_in_pairs():
    # All equal: half of the sum of squares per pair times two thirds, two degrees. A pair alone: its own p-value.
    p_values = np.array([0.001, 0.002, 0.9])
    together = stats.chi2.sf(2 / 3 * squares(p_values).sum(), 2)
    one = ONE_METHOD * 0.0015 * 0.9  # what the first method's own comparisons leave, should it be noisy
    whole = max(together, one)
    assert corrected(p_values, *all_pairs(3)) == pytest.approx([whole, whole, 0.9])


def test_evidence_of_several_pairs_adds_up():
    # Two methods against three: no pair of six would be found alone among ten.
    first, second = all_pairs(5)
    across = (first < 2) & (second >= 2)
    p_values = np.where(across, 0.012, 0.8)
    assert (corrected(p_values, first, second)[across] < 0.05).all()
    assert (p_values[across] * 6 > 0.05).all()


def test_one_outlying_method_needs_more_than_two_groups_do():
    first, second = all_pairs(5)
    star, halves = first == 0, (first < 2) & (second >= 2)
    p_star, p_halves = (corrected(np.where(each, 0.01, 0.8), first, second) for each in (star, halves))
    assert p_star[star].max() > 0.05 > p_halves[halves].max()


def test_sets_of_many_methods_are_tested_by_simes_at_levels_by_size():
    # Ten methods, one pair that differs, all others quite equal: the worst set is the pair itself, or all ten.
    methods = 10
    first, second = all_pairs(methods)
    p_values = np.ones(len(first))
    p_values[0] = 1e-4
    found = corrected(p_values, first, second)
    sizes = np.arange(2, methods + 1)
    shares = np.where(sizes >= methods - 1, 1.0, methods / sizes)
    expected = max(1 - (1 - 1e-4 * size * (size - 1) / 2) ** share for size, share in zip(sizes, shares, strict=True))
    assert found[0] == pytest.approx(expected)
    assert found[1:] == pytest.approx(1)


def test_very_many_methods_count_the_pairs_that_can_still_be_equal():
    # Shaffer 1986: once one pair of 17 methods differs, at most 120 of the other 135 can be equal.
    first, second = all_pairs(MANY + 1)
    p_values = np.ones(len(first))
    p_values[:2] = 1e-4, 2e-4
    assert corrected(p_values, first, second)[:2] == pytest.approx([136e-4, 240e-4])


@given(boards())
@settings(max_examples=60, deadline=None)
def test_no_p_value_falls_and_all_are_chances(board):
    methods, p_values = board
    found = corrected(p_values, *all_pairs(methods))
    assert (found >= p_values * (1 - 1e-9)).all()
    assert (found <= 1).all()


@given(boards(), st.data())
@settings(max_examples=60, deadline=None)
def test_more_evidence_in_one_pair_takes_none_from_another(board, data):
    methods, p_values = board
    less = p_values.copy()
    less[data.draw(st.integers(0, len(less) - 1))] *= data.draw(st.floats(0.01, 1.0))
    assert (corrected(less, *all_pairs(methods)) <= corrected(p_values, *all_pairs(methods)) + 1e-9).all()


@given(boards(), st.randoms())
@settings(max_examples=40, deadline=None)
def test_neither_the_methods_names_nor_the_pairs_order_matter(board, random):
    methods, p_values = board
    first, second = all_pairs(methods)
    named = np.array(random.sample(range(20), methods))
    order = np.array(random.sample(range(len(first)), len(first)))
    swapped = np.array([random.random() < 0.5 for _ in first])
    a, b = np.where(swapped, named[second], named[first]), np.where(swapped, named[first], named[second])
    again = corrected(p_values[order], a[order], b[order])
    assert again == pytest.approx(corrected(p_values, first, second)[order], rel=1e-6)


@pytest.mark.parametrize("methods", [2, 4, FEW + 2, MANY + 1])
def test_what_one_look_refuted_stays_refuted(methods):
    first, second = all_pairs(methods)
    generator = np.random.default_rng(methods)
    early, late = generator.random((2, len(first))) ** 4
    both = corrected(np.array([early, late]), first, second, (0.03 / 0.05, 0.02 / 0.05))
    for p_values, share in ((early, 0.6), (late, 0.4)):
        assert (both <= np.minimum(corrected(p_values, first, second) / share, 1) + 1e-9).all()


@pytest.mark.exhaustive
@pytest.mark.parametrize("methods", [3, 5, 9, 13])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_equal_methods_are_separated_no_more_often_than_the_level_says(methods, groups):
    """Normal means with known variances: whatever groups of equals there are, however far apart."""
    generator = np.random.default_rng([methods, groups])
    first, second = all_pairs(methods)
    group = np.arange(methods) % groups
    equal = group[first] == group[second]
    wrong, boards_drawn = 0, 1500
    for _ in range(boards_drawn):
        means = generator.standard_normal(methods) + generator.choice([0.0, 3.0, 30.0]) * group
        p_values = 2 * stats.norm.sf(np.abs(means[first] - means[second]) / np.sqrt(2))
        wrong += bool((corrected(p_values, first, second)[equal] < 0.05).any())
    assert wrong / boards_drawn < 0.05 + 3 * np.sqrt(0.05 * 0.95 / boards_drawn)
