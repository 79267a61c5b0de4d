"""Ranks and letters say what the pairs say."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from harness_leaderboard.statistics.ranks import closed, letters, rank_ranges


def relation(count, pairs):
    better = np.zeros((count, count), dtype=bool)
    for upper, lower in pairs:
        better[upper, lower] = True
    return better


def test_nobody_separated_is_one_range_and_one_letter():
    better = relation(4, [])
    assert rank_ranges(better) == [(1, 4)] * 4
    assert letters(better, [2, 0, 1, 3]) == ["a"] * 4


def test_a_method_between_two_shares_a_letter_with_each():
    better = relation(3, [(0, 2)])
    assert letters(better | better.T, [0, 1, 2]) == ["a", "ab", "b"]
    assert rank_ranges(better) == [(1, 2), (1, 3), (2, 3)]


def test_what_follows_is_claimed_and_contradictions_are_not():
    assert closed(relation(3, [(0, 1), (1, 2)]))[0, 2]
    assert not closed(relation(3, [(0, 1), (1, 2), (2, 0)])).any()


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 7), st.data())
def test_a_reader_of_ranks_or_letters_infers_only_separated_pairs(count, data):
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    better = closed(relation(count, data.draw(st.lists(st.sampled_from(pairs), unique=True))))
    ranges, shown = rank_ranges(better), letters(better | better.T, list(range(count)))
    for a, b in pairs:
        if ranges[a][1] < ranges[b][0]:
            assert better[a, b]
        assert (not set(shown[a]) & set(shown[b])) == bool(better[a, b])
