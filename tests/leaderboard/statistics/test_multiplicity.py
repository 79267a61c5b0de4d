"""Corrections for all pairs."""

import numpy as np
import pytest

from harness_leaderboard.statistics.multiplicity import corrected


def test_two_methods_need_no_correction():
    assert corrected(np.array([0.03]), 2) == pytest.approx([0.03])


def test_three_methods_after_one_difference_leave_one_pair_to_be_equal():
    # Shaffer 1986: of three pairs one difference leaves at most one equality; then nothing more is counted.
    assert corrected(np.array([0.04, 0.01, 0.03]), 3) == pytest.approx([0.04, 0.03, 0.03])


def test_five_methods_count_ten_then_six_pairs():
    p_values = np.array([0.001, 0.002, 0.003, *[0.5] * 7])
    assert corrected(p_values, 5)[:3] == pytest.approx([0.01, 0.012, 0.018])


def test_no_pair_counts_more_than_in_holms_correction():
    p_values = np.linspace(0.001, 0.02, 78)
    holm = np.maximum.accumulate(p_values * np.arange(78, 0, -1)).clip(max=1)
    assert (corrected(p_values, 13) <= holm + 1e-12).all()
