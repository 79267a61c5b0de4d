"""What each item adds to a score that is no mean of items."""

import numpy as np
import pytest

from harness import pseudo_values


def test_of_a_mean_they_are_the_items_themselves():
    assert pseudo_values(np.mean, [0.0, 1.0, 5.0]) == pytest.approx([0.0, 1.0, 5.0])


def test_their_mean_is_the_score():
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((2, 50))
    values = pseudo_values(lambda x, y: np.corrcoef(x, y)[0, 1], a, a + b)
    assert np.mean(values) == pytest.approx(np.corrcoef(a, a + b)[0, 1])


def test_their_spread_is_the_scores_own_over_new_items():
    generator = np.random.default_rng(1)
    draws = generator.standard_normal((2, 400, 200))
    draws[1] += draws[0]
    scores = [np.corrcoef(*draws[:, each])[0, 1] for each in range(400)]
    errors = [
        np.std(pseudo_values(lambda x, y: np.corrcoef(x, y)[0, 1], *draws[:, each]), ddof=1) / 200**0.5
        for each in range(20)
    ]
    assert np.mean(errors) == pytest.approx(np.std(scores), rel=0.15)


def test_equal_items_are_scored_once():
    calls = []

    def score(given, right):
        calls.append(1)
        return float((given == right).mean())

    values = pseudo_values(score, [0, 1] * 500, [0, 0] * 500)
    assert values == pytest.approx([1.0, 0.0] * 500)
    assert len(calls) == 3  # the whole, and one less of each kind


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="3, 2 items"):
        pseudo_values(lambda a, b: 0.0, [1, 2, 3], [1, 2])


def test_a_formula_for_the_score_without_each_item_gives_the_same():
    items = [2.0, 3.0, 7.0, 7.0]
    found = pseudo_values(np.mean, items, without_each=lambda a: (a.sum() - a) / (len(a) - 1))
    assert found == pytest.approx(pseudo_values(np.mean, items))
