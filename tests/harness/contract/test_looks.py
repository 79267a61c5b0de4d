"""Plans of looks: when, at which share of the level, and how far some seeds are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from harness import Looks


@given(first=some.integers(2, 40), more=some.integers(1, 60))
def test_a_plan_spends_the_level_once_and_never_looks_twice_at_the_same(first, more):
    looks = Looks.plan(5, range(first), first + more)
    assert looks.counts[0] == first
    assert looks.counts[-1] == len(looks.seeds) == len(set(looks.seeds)) == first + more
    assert 2 <= len(looks.counts) <= 4
    assert sum(looks.shares) == pytest.approx(1)
    assert min(looks.shares) > 0


def test_the_usual_plan():
    looks = Looks.plan(5, (0, 1, 2), 10)
    assert looks.counts == (3, 5, 7, 10)
    # 0.05 log(1 + (e - 1) t) at 0.3, 0.5, 0.7 and 1
    assert [0.05 * each for each in looks.shares] == pytest.approx([0.02078, 0.01022, 0.00848, 0.01051], abs=1e-5)


def test_further_seeds_follow_the_largest_and_a_look_is_reached_when_all_of_its_have_ended():
    looks = Looks.plan(5, (7, 3), 4)
    assert looks.seeds == (7, 3, 8, 9)
    assert [looks.reached(ended) for ended in ((), (7,), (3, 7), (3, 7, 9), (3, 7, 8, 9))] == [0, 0, 1, 1, 3]


@pytest.mark.parametrize(
    "change",
    [
        {"counts": [3, 3]},
        {"shares": [2.0, 0.1]},
        {"shares": [0.5]},
        {"seeds": [1, 1, 2]},
        {"points": None},
        {"counts": 3},
    ],
)
def test_a_plan_survives_its_record_and_one_that_makes_no_sense_is_none(change):
    looks = Looks.plan(5, (0, 1), 3)
    assert Looks.of({"looks": looks.to_json()}) == looks
    assert Looks.of({"looks": {**looks.to_json(), **change}}) is None
    assert Looks.of({}) is None
