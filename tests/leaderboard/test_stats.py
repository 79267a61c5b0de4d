import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from harness_leaderboard.stats import (
    PairedBootstrap,
    cochran_cox_p_value,
    cochran_cox_quantile,
    holm,
    interquartile_mean,
    mean_interval,
    minimum_detectable_difference,
    sign_flip_p_value,
    student_p_value,
    student_quantile,
    tie_groups,
)
from harness_leaderboard.table import power_text

finite = st.floats(-100, 100, allow_nan=False)


@given(st.floats(0, 40), st.integers(1, 60))
def test_student_p_value_equals_scipys(t, degrees):
    assert student_p_value(t, degrees) == pytest.approx(
        2 * reference.t.sf(t, degrees), abs=1e-8
    )  # scipy rounds tiny t to 1
    assert student_p_value(-t, degrees) == student_p_value(t, degrees)


@given(st.floats(1e-4, 0.9), st.integers(1, 40))
def test_student_quantile_equals_scipys(p_value, degrees):
    assert student_quantile(p_value, degrees) == pytest.approx(reference.t.isf(p_value / 2, degrees), rel=1e-6)


def test_cochran_and_cox_worked_by_hand():
    # Student's 5 % values are 2.7764 with 4 degrees and 2.2622 with 9; weights 0.25 and 0.75.
    quantile = cochran_cox_quantile(0.05, 4, 9, 0.25)
    assert quantile == pytest.approx(0.25 * 2.7764 + 0.75 * 2.2622, abs=1e-4)
    assert cochran_cox_p_value(quantile, 4, 9, 0.25) == pytest.approx(0.05, rel=1e-6)
    assert cochran_cox_p_value(-quantile, 4, 9, 0.25) == pytest.approx(0.05, rel=1e-6)


@given(st.floats(0.01, 5), st.integers(1, 30), st.integers(1, 200), st.floats(0, 1))
def test_cochran_and_coxs_p_value_is_the_level_of_its_quantile(t, degrees, item_degrees, share):
    level = cochran_cox_p_value(t, degrees, item_degrees, share)
    low, high = sorted(2 * reference.t.sf(t, each) for each in (degrees, item_degrees))
    assert low - 1e-9 <= level <= high + 1e-9
    quantiles = reference.t.isf(level / 2, degrees), reference.t.isf(level / 2, item_degrees)
    assert share * quantiles[0] + (1 - share) * quantiles[1] == pytest.approx(t, rel=1e-4)


@pytest.mark.parametrize("share", [0.0, 1e-12, 1 - 1e-12, 1.0])
def test_one_variance_alone_is_students(share):
    expected = student_p_value(3.0, 4 if share > 0.5 else 50)
    assert cochran_cox_p_value(3.0, 4, 50, share) == pytest.approx(expected, rel=1e-6)


def test_mean_interval_worked_by_hand():
    # Mean 2, standard deviation 1, three values: 2 -+ 4.30265 / sqrt(3).
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert interval.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)


def test_one_value_has_no_interval():
    with pytest.raises(ValueError, match="at least 2"):
        mean_interval([1.0])


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_mean_interval_covers_the_truth_in_95_percent_of_experiments(seeds):
    draws = np.random.default_rng(seeds).normal(0.7, 0.1, (1500, seeds))
    intervals = [mean_interval(list(each)) for each in draws]
    covered = np.mean([each.low <= 0.7 <= each.high for each in intervals])
    assert 0.93 < covered < 0.97  # three standard errors of 1500 draws are 0.017


@given(st.lists(finite, min_size=1, max_size=30))
def test_interquartile_mean_is_the_trimmed_mean(values):
    assert interquartile_mean(values) == pytest.approx(reference.trim_mean(values, 0.25), abs=1e-9)


def test_interquartile_mean_ignores_one_wild_value_in_four():
    assert interquartile_mean([0.0, 1.0, 2.0, 1000.0]) == 1.5


def test_sign_flips_worked_by_hand():
    generator = np.random.default_rng(0)
    assert sign_flip_p_value(np.array([1.0, 1.0, 1.0, 1.0, 1.0]), generator) == 2 / 32
    # Of the eight sums +-1 +-2 +-3 four are at least |1 + 2 - 3| = 0: all of them.
    assert sign_flip_p_value(np.array([1.0, 2.0, -3.0]), generator) == 1.0
    # Sums of at least 4 in size: 6, 4 and their negatives.
    assert sign_flip_p_value(np.array([-1.0, 2.0, 3.0]), generator) == 4 / 8


def test_many_seeds_are_flipped_at_random_and_agree_with_the_exact_test():
    differences = np.random.default_rng(1).normal(0.4, 1, 16)
    exact = reference.permutation_test(
        (differences,), lambda x: abs(x.sum()), permutation_type="samples", alternative="greater", n_resamples=np.inf
    )
    estimate = sign_flip_p_value(differences, np.random.default_rng(0))
    assert estimate == pytest.approx(exact.pvalue, abs=0.02)
    assert sign_flip_p_value(np.ones(30), np.random.default_rng(0)) > 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values):
    adjusted = holm(p_values)
    assert all(before <= after <= 1 for before, after in zip(p_values, adjusted, strict=True))
    for i, first in enumerate(p_values):
        for j, second in enumerate(p_values):
            if first < second:
                assert adjusted[i] <= adjusted[j]


def test_holm_worked_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1 is 0.04, 0.06, 0.06, 0.04; none may fall below the one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])


def test_without_items_the_bootstrap_is_the_paired_t_test():
    differences = np.array([0.02, 0.05, 0.01, 0.04, 0.06])
    result = PairedBootstrap(0, resamples=20_000).compare(differences)
    expected = reference.ttest_1samp(differences, 0)
    assert result.difference == pytest.approx(differences.mean())
    assert result.standard_error == pytest.approx(differences.std(ddof=1) / math.sqrt(5), rel=0.03)
    assert result.p_value == pytest.approx(expected.pvalue, rel=0.15)
    assert (result.seeds, result.items, result.degrees) == (5, 0, 4)


def test_with_items_both_noises_count():
    generator = np.random.default_rng(0)
    table = generator.normal(0, 0.2, (5, 1)) + generator.normal(0, 0.5, (1, 200)) + generator.normal(0, 0.3, (5, 200))
    result = PairedBootstrap(0, resamples=20_000).compare(table)
    seeds, items = table.mean(1).var(ddof=1) / 5, table.mean(0).var(ddof=1) / 200
    assert result.standard_error == pytest.approx(math.sqrt(seeds + items), rel=0.03)
    assert 4 <= result.degrees <= 203


def test_same_seed_same_interval_other_seed_another():
    table = np.random.default_rng(3).normal(0.1, 1, (4, 50))
    again, other = PairedBootstrap(1), PairedBootstrap(2)
    assert PairedBootstrap(1).compare(table) == again.compare(table)
    assert again.compare(table).interval != other.compare(table).interval


def test_the_order_of_comparisons_does_not_matter():
    generator = np.random.default_rng(3)
    first, second = generator.normal(0, 1, (4, 50)), generator.normal(0, 1, (3, 20))
    one, two = PairedBootstrap(1), PairedBootstrap(1)
    assert (one.compare(first), one.compare(second)) == (two.compare(second), two.compare(first))[::-1]


def test_swapping_the_methods_mirrors_the_result():
    table = np.random.default_rng(3).normal(0.1, 1, (4, 50))
    one, two = PairedBootstrap(1).compare(table), PairedBootstrap(1).compare(-table)
    assert two.difference == pytest.approx(-one.difference)
    assert two.p_value == pytest.approx(one.p_value)
    assert two.interval.low == pytest.approx(-one.interval.high)


def test_missing_items_are_left_out():
    table = np.random.default_rng(4).normal(0.5, 0.1, (3, 40))
    with_gap = np.concatenate([table, np.full((3, 5), np.nan)], axis=1)
    assert PairedBootstrap(0).compare(with_gap).difference == pytest.approx(table.mean())
    assert math.isfinite(PairedBootstrap(0).compare(with_gap).p_value)


@pytest.mark.parametrize(("seeds", "p_value"), [(2, 0.5), (3, 0.25), (5, 0.0625)])
def test_equal_differences_are_no_proof(seeds, p_value):
    result = PairedBootstrap(0).compare(np.full(seeds, 0.05))
    assert result.p_value == p_value


@pytest.mark.parametrize(
    ("seeds", "items", "seed_noise", "item_noise"),
    [(3, 0, 1.0, 0.0), (5, 0, 1.0, 0.0), (3, 60, 0.1, 0.3), (5, 60, 0.1, 0.3), (5, 60, 0.02, 0.5), (6, 60, 0.2, 0.1)],
)
def test_equal_methods_are_rarely_told_apart(seeds, items, seed_noise, item_noise):
    generator = np.random.default_rng(7)
    bootstrap = PairedBootstrap(0, resamples=300)
    rejected = 0
    for _ in range(800):
        differences = generator.normal(0, seed_noise, (seeds, 1))
        if items:
            differences = (
                differences + generator.normal(0, item_noise, (1, items)) + generator.normal(0, 0.3, (seeds, items))
            )
        rejected += bootstrap.compare(differences if items else differences[:, 0]).p_value < 0.05
    assert rejected / 800 < 0.075  # 0.05 and three standard errors


def test_a_large_difference_is_found():
    table = np.random.default_rng(5).normal(0.5, 0.2, (3, 100))
    assert PairedBootstrap(0).compare(table).p_value < 0.01


def methods(generator, repeats, gain=0.0):
    """13 methods, 5 seeds, 1,000 items; the methods differ on single items, and on the whole only in ``gain``."""
    for _ in range(repeats):
        scores = generator.normal(0, 0.02, (13, 5, 1)) + generator.normal(0, 0.15, (13, 1, 1000))
        scores = scores + generator.normal(0, 0.15, (13, 5, 1000))
        scores[0] += gain
        yield scores


def test_among_thirteen_equal_methods_few_experiments_find_any_difference():
    # 5 % of 90 are 4.5. Degrees after Satterthwaite reject in about 12 % to 15 % of experiments.
    bootstrap, wrong = PairedBootstrap(0, resamples=300), 0
    for scores in methods(np.random.default_rng(9), 90):
        p_values = [bootstrap.compare(scores[i] - scores[j]).p_value for i, j in combinations(range(13), 2)]
        wrong += min(holm(p_values)) < 0.05
    assert wrong <= 5


def test_items_let_five_seeds_tell_apart_what_the_seeds_alone_cannot():
    # The error is about sqrt(2 (0.02^2 / 5 + 0.15^2 / 1000)) = 0.0143; half of it squared is the items'. At 5 % / 78
    # Student's t with 4 degrees asks for 9.7 errors; a true difference of 8.4 is found all the same.
    bootstrap, generator = PairedBootstrap(0, resamples=300), np.random.default_rng(3)
    found = alone = 0
    for _ in range(60):
        table = generator.normal(0.12, 0.02, (5, 1)) + generator.normal(0, 0.45, (1, 1000))
        result = bootstrap.compare(table + generator.normal(0, 0.1, (5, 1000)))
        found += result.p_value < 0.05 / 78
        alone += student_p_value(result.difference / result.standard_error, 4) < 0.05 / 78
    assert found >= 40
    assert alone <= 20


def test_tie_groups_follow_the_leader_of_each_group():
    values = [0.90, 0.89, 0.80, 0.79, 0.50]
    assert tie_groups(5, lambda i, j: values[i] - values[j] > 0.05) == [1, 1, 2, 2, 3]


def test_a_wide_interval_joins_an_earlier_group_than_a_better_mean():
    separated = {(0, 1)}
    assert tie_groups(3, lambda i, j: (i, j) in separated) == [1, 2, 1]


@given(st.integers(0, 12), st.data())
def test_every_method_has_exactly_one_group_and_none_is_skipped(count, data):
    matrix = data.draw(st.lists(st.booleans(), min_size=count * count, max_size=count * count))
    groups = tie_groups(count, lambda i, j: matrix[i * count + j])
    assert set(groups) == set(range(1, len(set(groups)) + 1))


def test_detectable_difference_is_found_with_80_percent_power():
    seeds, noise = 5, 1.0
    error = noise / math.sqrt(seeds)
    difference = minimum_detectable_difference(error, seeds - 1, 1)
    draws = np.random.default_rng(0).normal(difference, noise, (4000, seeds))
    power = np.mean(reference.ttest_1samp(draws, 0, axis=1).pvalue < 0.05)
    assert 0.76 < power < 0.86
    assert minimum_detectable_difference(error, seeds - 1, 10) > difference


def test_detectable_difference_with_items_is_found_about_as_often():
    bootstrap, generator = PairedBootstrap(0, resamples=300), np.random.default_rng(6)
    noise = math.sqrt(0.02**2 / 5 + 0.45**2 / 1000)
    difference = minimum_detectable_difference(noise, 4, 78, 999, 0.02**2 / 5 / noise**2)
    tables = (generator.normal(difference, 0.02, (5, 1)) + generator.normal(0, 0.45, (1, 1000)) for _ in range(300))
    power = np.mean([bootstrap.compare(np.broadcast_to(each, (5, 1000))).p_value < 0.05 / 78 for each in tables])
    assert 0.7 < power < 0.9  # 0.8, less what the estimate of few seeds costs


def test_a_difference_that_no_score_can_have_is_said_to_be_out_of_reach():
    assert "0.034" in power_text(0.0342, fraction=True)
    assert "cannot tell a typical pair of methods apart" in power_text(1.1, fraction=True)
    assert "1.1" in power_text(1.1, fraction=False)


def test_the_power_is_said_to_be_of_a_typical_pair():
    sentence = power_text(0.0342, fraction=True)
    assert sentence == (
        "A typical pair of methods must truly differ by about 0.034 for this board to tell them apart (80 % power); "
        "a pair with less noise, by less."
    )
