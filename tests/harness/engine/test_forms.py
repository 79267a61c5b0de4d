"""Batches are padded to few sizes, chosen from what is needed, and little is wasted."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from harness.engine.forms import LITTLE, MOST_FORMS, MULTIPLE, Forms, Size, plan, together


def totals(lanes, rows=16, updates=300, seed=0):
    """What batches of texts of 24 to 160 tokens need, of which each lane lays its texts flat."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(24, 161, (updates, lanes, rows))
    return [Size(int(each.sum(1).max()), 9 * rows) for each in lengths]


@pytest.mark.parametrize("lanes", [1, 3, 8, 64])
def test_there_are_at_most_eight_forms_and_rounding_wastes_little(lanes):
    needs = totals(lanes)
    forms = plan(needs, longest=160)
    assert 1 <= len(forms.sizes) <= MOST_FORMS
    given = sum(forms.fit(each, 16).tokens for each in needs)
    assert given <= (1 + LITTLE) * sum(each.tokens for each in needs) + MULTIPLE * len(needs)


def test_texts_of_one_length_have_one_form():
    forms = plan([Size(16 * 74, 16 * 37)] * 20, longest=74)
    assert forms.sizes == (Size(16 * 74, 16 * 37),)


def test_every_need_fits_and_every_form_occurs():
    generator = np.random.default_rng(1)
    needs = [Size(int(t), int(n)) for t, n in generator.integers(1, 2_000, (200, 2))]
    forms = plan(needs)
    fitted = [forms.fit(each, 16) for each in needs]
    assert all(
        size.tokens >= need.tokens and size.labels >= need.labels for size, need in zip(fitted, needs, strict=True)
    )
    assert set(fitted) == set(forms.sizes)
    assert all(fitted[update] == size for size, update in forms.examples.items())
    assert all(size.tokens % MULTIPLE == size.labels % MULTIPLE == 0 for size in forms.sizes)


def test_no_other_choice_of_as_many_sizes_wastes_less():
    generator = np.random.default_rng(2)
    needs = [Size(int(t), 1) for t in generator.integers(1, 180, 60)]
    forms = plan(needs)
    rounded = [-(-each.tokens // MULTIPLE) * MULTIPLE for each in needs]
    candidates = sorted(set(rounded))

    def waste(sizes):
        return sum(min(size for size in sizes if size >= each) - each for each in rounded)

    best = min(waste({*some, candidates[-1]}) for some in combinations(candidates, len(forms.sizes) - 1))
    assert waste({size.tokens for size in forms.sizes}) == best


def test_without_a_device_that_captures_nothing_is_rounded():
    assert Forms().fit(Size(37, 11), 4) == Size(37, 11)


@pytest.mark.parametrize("number", [1, 16, 100, 1_000, 5_000, 100_001])
def test_what_was_not_foreseen_is_rounded_to_few_sizes_when_texts_lie_flat(number):
    size = Forms(longest=160, multiple=MULTIPLE).fit(Size(number, number), 16)
    assert number <= size.tokens <= max(number * 9 / 8 + 1, number + MULTIPLE)


def clipped(lengths):
    return np.clip(lengths, 3, 4096).astype(int)


LENGTHS = {
    "alike": lambda generator, count: np.full(count, 74),
    "two clusters": lambda generator, count: generator.choice([20, 400], count),
    "a heavy tail": lambda generator, count: clipped(generator.lognormal(4, 1, count)),
    "a giant": lambda generator, count: np.where(
        np.arange(count) == count // 3, 4096, generator.integers(20, 61, count)
    ),
    "1 to 4096": lambda generator, count: generator.integers(1, 4097, count),
}


def flat(lengths):
    return [Size(int(each.sum()), int(each.sum())) for each in lengths]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("updates", [5, 300])
def test_whatever_the_lengths_a_trials_texts_have_eight_forms_and_a_tenth_of_padding(lengths, updates):
    """Of all tokens that a step computes, when texts lie flat and nobody trains beside it."""
    texts = LENGTHS[lengths](np.random.default_rng(3), updates * 16).reshape(updates, 16)
    forms = plan(needs := flat(texts), longest=int(texts.max()))
    given = [forms.fit(each, 16) for each in needs]
    assert len(set(given)) <= MOST_FORMS
    assert 1 - texts.sum() / sum(each.tokens for each in given) <= 0.1


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("rows", [1, 16])
def test_the_rare_batch_that_is_larger_than_all_foreseen_brings_few_forms(lengths, rows):
    total = 8_192 * 8
    texts = LENGTHS[lengths](np.random.default_rng(4), total).reshape(-1, rows)
    texts[-1] = 4096
    needs = flat(texts)
    forms = plan(needs[: 8_192 // rows], longest=4096)
    given = [forms.fit(each, rows) for each in needs]
    assert all(
        size.tokens >= need.tokens and size.labels >= need.labels for size, need in zip(given, needs, strict=True)
    )
    assert len(set(given)) <= 2 * MOST_FORMS


@pytest.mark.parametrize("beyond", [10, 40])
def test_padding_needs_no_more_positions_than_the_model_has(beyond):
    """Of 100: rounded up to a multiple of 16, a text of 99 tokens would have 112, and reading that ends the process."""
    forms = plan([Size(10, 4), Size(99 if beyond == 10 else 60, 4)], limit=100)
    assert forms.fit(Size(99, 4), 2).tokens == 100
    assert Forms(multiple=MULTIPLE, limit=100).fit(Size(98, 4), 2).tokens == 100
    assert plan([Size(990, 4)], longest=99, limit=100).fit(Size(990, 4), 2).tokens == 992, "flat texts have their own"


def test_lanes_together_need_what_the_largest_needs():
    assert together([Size(3, 9), Size(5, 2)]) == Size(5, 9)
