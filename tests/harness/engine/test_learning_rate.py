"""The recipes' schedules, by hand."""

from __future__ import annotations

import math

import pytest

from harness.engine.learning_rate import schedule

ROOT = math.sqrt(0.5)


@pytest.mark.parametrize(
    ("shape", "steps", "warmup", "expected"),
    [
        ("constant", 4, 0, [1, 1, 1, 1]),
        ("constant", 4, 2, [0.5, 1, 1, 1]),
        ("linear", 4, 0, [1, 0.75, 0.5, 0.25]),
        ("linear", 6, 2, [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", 4, 0, [1, (1 + ROOT) / 2, 0.5, (1 - ROOT) / 2]),
        ("cosine", 5, 1, [1, 1, (1 + ROOT) / 2, 0.5, (1 - ROOT) / 2]),
        ("linear", 3, 3, [1 / 3, 2 / 3, 1]),
        ("cosine", 1, 0, [1]),
    ],
)
def test_multipliers(shape, steps, warmup, expected):
    multiplier = schedule(shape, steps, warmup)
    assert [multiplier(step) for step in range(steps)] == pytest.approx(expected)


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_no_update_is_lost_to_a_rate_of_zero(shape):
    for steps in (1, 2, 7, 100):
        for warmup in (0, 1, steps // 2, steps):
            multiplier = schedule(shape, steps, warmup)
            assert all(0 < multiplier(step) <= 1 for step in range(steps))
