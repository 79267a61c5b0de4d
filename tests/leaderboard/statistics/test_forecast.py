"""What a board will be able to tell apart."""

import numpy as np
import pytest

from harness_leaderboard.statistics import Scores, analyse
from harness_leaderboard.statistics.forecast import ASSUMED, detectable_difference, noise_of


def drawn(methods, seeds, items=256, seed=0):
    generator = np.random.default_rng(seed)
    noise = 0.02 * generator.standard_normal((methods, seeds, 1)) + 0.16 * generator.standard_normal(
        (methods, 1, items)
    )
    values = 0.5 + noise + 0.4 * generator.standard_normal((methods, seeds, items))
    names = tuple(f"m{number}" for number in range(methods))
    return Scores(methods=names, seeds=tuple(range(seeds)), totals=values.mean(2), items=values)


def test_more_seeds_tell_more_apart_and_more_methods_less():
    assert detectable_difference(5, 10, ASSUMED) < detectable_difference(5, 5, ASSUMED)
    assert detectable_difference(5, 5, ASSUMED) < detectable_difference(13, 5, ASSUMED)


def test_one_seed_or_one_method_tells_nothing():
    assert detectable_difference(5, 1, ASSUMED) is None
    assert detectable_difference(1, 5, ASSUMED) is None
    assert noise_of(drawn(5, 1)) is None


@pytest.mark.parametrize(("methods", "seeds"), [(2, 5), (9, 5), (13, 10)])
def test_the_forecast_is_what_the_board_then_says(methods, seeds):
    scores = drawn(methods, seeds)
    said = analyse(scores).detectable
    assert detectable_difference(methods, seeds, noise_of(scores)) == pytest.approx(said, rel=0.2)
