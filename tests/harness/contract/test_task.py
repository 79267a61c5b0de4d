"""What a task's evaluation must return, and what is said where it does not."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
import torch

from harness import ConfigError, HarnessError
from harness.contract.task import Evaluation, Metric, Recipe, Task, check_evaluation


class Riddles(Task):
    name = "riddles"
    main_metric = "accuracy"
    metrics: ClassVar = {
        "accuracy": Metric("Accuracy", "fraction", True, "Share of right answers."),
        "speed": Metric("Speed", "riddles/s", True, "How fast."),
    }


def test_numbers_of_any_library_become_plain_ones():
    given = Evaluation(
        {"accuracy": np.float32(0.5), "speed": torch.tensor(2.0)},
        items={"accuracy": np.array([1, 0]), "speed": [None, 2]},
        chance={"accuracy": np.float32(0.25)},
    )
    found = check_evaluation(Riddles(), given)
    assert found.metrics == {"accuracy": 0.5, "speed": 2.0}
    assert found.items == {"accuracy": [1.0, 0.0], "speed": [None, 2.0]}
    assert found.chance == {"accuracy": 0.25}
    assert {type(value) for value in [*found.metrics.values(), *found.items["accuracy"]]} == {float}


def test_a_missing_number_has_a_reason():
    found = check_evaluation(Riddles(), Evaluation({"accuracy": 1, "speed": None}, {"speed": "no clock"}))
    assert (found.metrics["speed"], found.reasons) == (None, {"speed": "no clock"})


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"accuracy": 1.0}, "returned dict; return harness.Evaluation"),
        (Evaluation({"accuracy": 1.0}), "returned no metric 'speed'; give its value, or None and a reason"),
        (Evaluation({"accuracy": 1.0, "sped": 2.0, "speed": 1}), "a metric 'sped'; the task declares accuracy, speed"),
        (Evaluation({"accuracy": 1.0, "speed": None}), "metric 'speed' is None; say why"),
        (Evaluation({"accuracy": "high", "speed": 1}), r"metrics\['accuracy'\] has 'high', which is not a number"),
        (Evaluation({"accuracy": 1, "speed": 1}, items={"speed": ["x"]}), r"items\['speed'\] has 'x', which is not"),
        (Evaluation({"accuracy": 1, "speed": 1}, chance={"luck": 0.5}), "chance of 'luck'; the task declares accuracy"),
        (Evaluation({"accuracy": 1, "speed": 1}, chance={"speed": None}), r"chance\['speed'\] is None; give a finite"),
        (Evaluation({"accuracy": 1, "speed": 1}, chance={"speed": math.nan}), r"chance\['speed'\] is nan; give a fin"),
        (Evaluation({"accuracy": 1, "speed": 1}, chance={"speed": "x"}), r"chance\['speed'\] has 'x', which is not"),
    ],
)
def test_anything_else_is_named(found, message):
    with pytest.raises(HarnessError, match=f"task 'riddles': evaluate.*{message}"):
        check_evaluation(Riddles(), found)


@pytest.mark.parametrize("step", [0, -3])
def test_validation_before_the_first_update_is_refused(step):
    with pytest.raises(ConfigError, match=f"Recipe: evaluate_at={step} is no update; the first is 1"):
        Recipe(evaluate_at=(step, 10))
