"""What a board claims, through ``analyse``."""

import numpy as np
import pytest
from scipy import stats

from harness_leaderboard.statistics import Scores, Search, analyse
from harness_leaderboard.statistics.search import halve


def scores(values, **more):
    """Items of shape (methods, seeds, items) as scores."""
    values = np.asarray(values, dtype=float)
    names = tuple(f"m{number}" for number in range(len(values)))
    return Scores(methods=names, seeds=tuple(range(values.shape[1])), totals=values.mean(2), items=values, **more)


def noisy(means, seeds=3, items=200, seed_deviation=0.02, seed=0):
    """Draw scores with seeds' and items' noise about given means."""
    generator = np.random.default_rng(seed)
    shape = (len(means), seeds, items)
    noise = seed_deviation * generator.standard_normal(shape[:2])[:, :, None] + 0.3 * generator.standard_normal(shape)
    return np.asarray(means)[:, None, None] + noise


def test_two_methods_without_items_are_students_paired_test():
    totals = np.array([[0.61, 0.72, 0.66, 0.70], [0.55, 0.69, 0.58, 0.61]])
    found = analyse(Scores(methods=("a", "b"), seeds=(0, 1, 2, 3), totals=totals)).between(0, 1)
    expected = stats.ttest_rel(*totals)
    assert found.difference == pytest.approx(np.mean(totals[0] - totals[1]))
    assert found.p_value == pytest.approx(expected.pvalue, rel=0.06)
    low, high = expected.confidence_interval(0.95)
    assert found.these_items.low == pytest.approx(low, abs=0.03 * (high - low))
    assert found.new_items is None


def test_a_difference_of_the_size_that_two_methods_name_is_found_by_about_four_of_five():
    generator = np.random.default_rng(3)

    def board(gap):
        totals = generator.standard_normal((2, 3)) + np.array([[gap], [0.0]])
        return analyse(Scores(methods=("a", "b"), seeds=(0, 1, 2), totals=totals))

    named = np.median([board(0.0).detectable for _ in range(400)])
    assert 0.74 < np.mean([board(named).between(0, 1).is_separated for _ in range(400)]) < 0.86


def test_a_board_without_items_says_that_it_speaks_of_these_items():
    totals = np.array([[0.1, 0.2, 0.3], [0.8, 0.9, 0.95]])
    assert analyse(Scores(methods=("a", "b"), seeds=(0, 1, 2), totals=totals)).scope == "these items"
    assert analyse(scores(noisy([0.1, 0.2]))).scope == "new items"


def test_one_methods_interval_is_students_where_no_items_are_kept():
    totals = np.array([[0.61, 0.72, 0.66], [0.55, 0.69, 0.58]])
    found = analyse(Scores(methods=("a", "b"), seeds=(0, 1, 2), totals=totals)).estimates[0]
    low, high = stats.t.interval(0.95, 2, totals[0].mean(), totals[0].std(ddof=1) / np.sqrt(3))
    assert (found.these_items.low, found.these_items.high) == pytest.approx((low, high), abs=0.02 * (high - low))
    assert found.new_items is None


def test_other_items_are_a_wider_question_than_these():
    for seed in range(5):
        found = analyse(scores(noisy([0.5, 0.6, 0.7], seed=seed)))
        for each in (*found.estimates, *found.differences.values()):
            assert each.new_items.low <= each.these_items.low < each.these_items.high <= each.new_items.high


def test_far_methods_are_separated_and_ranks_follow_from_the_pairs():
    found = analyse(scores(noisy([0.1, 0.9, 0.5, 0.5])))
    ranks = [(each.best_rank, each.worst_rank) for each in found.estimates]
    assert ranks == [(4, 4), (1, 1), (2, 3), (2, 3)]
    assert found.between(1, 0).is_separated
    assert found.between(0, 1).difference == -found.between(1, 0).difference < 0
    assert not found.between(2, 3).is_separated
    assert [each.letters for each in found.estimates] == ["c", "a", "b", "b"]


def test_lower_is_better_turns_ranks_and_keeps_differences():
    found = analyse(scores(noisy([0.1, 0.9]), higher_is_better=False))
    assert [each.best_rank for each in found.estimates] == [1, 2]
    assert found.between(0, 1).difference < 0


def test_extra_seeds_of_one_method_take_no_rank_away():
    values = noisy([0.9, 0.5, 0.1], seeds=8)
    values[1:, 3:] = np.nan
    found = analyse(scores(values))
    assert [(each.best_rank, each.worst_rank) for each in found.estimates] == [(1, 1), (2, 2), (3, 3)]
    assert [each.seeds for each in found.estimates] == [8, 3, 3]
    assert found.between(0, 1).seeds == 3


def test_methods_that_ran_other_seeds_are_compared_unpaired():
    values = noisy([0.9, 0.1], seeds=6)
    values[0, :3] = values[1, 3:] = np.nan
    found = analyse(scores(values)).between(0, 1)
    assert not found.is_paired
    assert found.difference == pytest.approx(0.8, abs=0.1)


def test_a_method_with_one_seed_has_a_mean_and_no_rank():
    values = noisy([0.9, 0.5, 0.1])
    values[0, 1:] = np.nan
    first, second, _ = analyse(scores(values)).estimates
    assert first.mean is not None
    assert first.best_rank is first.these_items is None
    assert (second.best_rank, second.worst_rank) == (1, 1)


def test_diverged_seeds_are_a_share_with_an_exact_interval():
    values = noisy([0.9, 0.5], seeds=10)
    values[0, 4] = np.nan
    found = analyse(scores(values, diverged=(1, 0))).estimates[0]
    assert (found.diverged.count, found.diverged.of) == (1, 10)
    exact = stats.binomtest(1, 10).proportion_ci(0.95, method="exact")
    assert (found.diverged.interval.low, found.diverged.interval.high) == pytest.approx((exact.low, exact.high))
    assert found.best_rank == 1


def test_equal_differences_on_few_seeds_are_no_certainty():
    totals = np.array([[0.5, 0.5, 0.5], [0.6, 0.6, 0.6]])
    two = analyse(Scores(methods=("a", "b"), seeds=(0, 1), totals=totals[:, :2]))
    assert not two.between(0, 1).is_separated
    same = analyse(Scores(methods=("a", "b"), seeds=(0, 1, 2), totals=totals[[0, 0]]))
    assert same.between(0, 1).p_value == pytest.approx(1)


def test_items_of_one_document_do_not_count_as_many():
    generator = np.random.default_rng(1)
    documents = np.repeat(np.arange(20), 10)
    by_document = 0.4 * generator.standard_normal((2, 20))[:, None, documents]
    values = 0.5 + by_document + 0.1 * generator.standard_normal((2, 3, 200))
    alone = analyse(scores(values)).between(0, 1).new_items
    grouped = analyse(scores(values, groups=documents)).between(0, 1).new_items
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def test_documents_of_equal_size_are_as_good_as_their_means():
    values = noisy([0.5, 0.6], items=60)
    documents = np.repeat(np.arange(12), 5)
    grouped = analyse(scores(values, groups=documents)).between(0, 1)
    means = analyse(scores(values.reshape(2, 3, 12, 5).mean(3))).between(0, 1)
    assert grouped.new_items.low == pytest.approx(means.new_items.low)
    assert grouped.items == 12


def test_a_search_that_might_have_gone_elsewhere_widens_the_error():
    values = noisy([0.9, 0.5])
    steep = Search(rates=(1e-4, 1e-3, 1e-2), scores=np.array([[0.1, 0.9, 0.1]]), chosen=1)
    rough = Search(rates=(1e-4, 1e-3, 1e-2), scores=np.array([[0.88, 0.9, 0.89]]), chosen=1)
    plain = analyse(scores(values))
    sure = analyse(scores(values, searches=(steep, steep)))
    unsure = analyse(scores(values, searches=(rough, rough)))
    width = [each.between(0, 1).new_items.high - each.between(0, 1).new_items.low for each in (plain, sure, unsure)]
    assert width[0] == pytest.approx(width[1])
    assert width[1] < width[2]
    assert sure.estimates[0].selection.again == 1
    assert unsure.estimates[0].selection.flatness == 3


def test_a_rate_that_was_stopped_early_is_chosen_again_only_as_the_search_would():
    values, nan = noisy([0.5, 0.6, 0.55, 0.58]), np.nan
    rates = (1e-4, 1e-3, 1e-2)
    seen = np.array([[0.55, 0.60, 0.59], [nan, 0.60, 0.59], [nan, 0.60, 0.59], [nan, 0.60, 0.59]])
    halved = Search(rates=rates, scores=seen, chosen=1, halves=True)
    unknown = Search(rates=rates, scores=seen, chosen=1)
    found, other = (analyse(scores(values, searches=(each,) * 4)).estimates[0] for each in (halved, unknown))
    assert 0 < found.selection.variance < other.selection.variance


def test_halving_redrawn_is_halving_as_it_is_planned():
    drawn = np.random.default_rng(3).standard_normal((40, 4, 5))
    chosen, spent = halve(drawn)
    for search, place, seeds in zip(drawn, chosen, spent, strict=True):
        first = list(np.argsort(-search[0])[:3])
        second = sorted(first, key=lambda rate: -search[:2, rate].mean())[:2]
        assert place == max(second, key=lambda rate: search[:, rate].mean())
        assert [seeds[rate] for rate in range(5)] == [1 + (rate in first) + 2 * (rate in second) for rate in range(5)]


def test_the_same_scores_give_the_same_analysis():
    values = noisy([0.5, 0.6, 0.7])
    assert analyse(scores(values)) == analyse(scores(values))


def test_no_interval_leaves_what_a_metric_can_be():
    right = np.array([[[1, 1, 0, 1, 1, 1, 0, 1], [1, 0, 1, 1, 0, 1, 0, 0]], [[0, 0, 0, 1, 0, 1, 0, 0]] * 2])
    free, bounded = analyse(scores(right)), analyse(scores(right, bounds=(0.0, 1.0)))
    assert free.estimates[0].new_items.high > 1
    for before, after in zip(free.estimates, bounded.estimates, strict=True):
        for name in ("these_items", "new_items"):
            wide, narrow = getattr(before, name), getattr(after, name)
            assert (narrow.low, narrow.high) == (max(wide.low, 0), min(wide.high, 1))
    assert -1 <= bounded.between(0, 1).new_items.low < bounded.between(0, 1).new_items.high <= 1


def test_a_method_beats_guessing_where_its_mean_is_farther_above_than_its_error():
    values = noisy([0.25, 0.5, 0.27])
    found = [each.beats_chance for each in analyse(scores(values, chance=0.25)).estimates]
    assert found == [False, True, False]
    assert [each.beats_chance for each in analyse(scores(values)).estimates] == [None] * 3
    below = analyse(scores(values, chance=0.5, higher_is_better=False)).estimates
    assert [each.beats_chance for each in below] == [True, False, True]
    one_seed = analyse(scores(values[:, :1], chance=0.25)).estimates
    assert [each.beats_chance for each in one_seed] == [None] * 3


def test_boards_that_guess_seldom_claim_that_any_method_does_better():
    boards = (analyse(scores(noisy([0.25] * 6, items=60, seed=seed), chance=0.25)) for seed in range(150))
    claims = sum(any(each.beats_chance for each in board.estimates) for board in boards)
    assert claims / 150 < 0.09  # the level is 0.05


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="totals have shape"):
        Scores(methods=("a",), seeds=(0, 1), totals=np.zeros((2, 2)))
