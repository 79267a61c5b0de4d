"""A plugin as a stranger with strict type checking writes it. ``mypy tests/typing`` must accept it; nothing runs it.

``assert_type`` and the expected errors below say what the annotations promise. An ignore comment that is not needed
is an error under strict mode, so a promise that is lost shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, assert_type

import torch
from torch import Tensor, nn

from harness import (
    Adapter,
    Evaluation,
    Example,
    Method,
    MethodConfig,
    MethodTraits,
    Metric,
    Recipe,
    Record,
    Task,
    TaskContext,
    TaskData,
    Trial,
    hookimpl,
    setting,
)
from harness.testing import CheckResult, check_method


@dataclass(frozen=True)
class GainConfig(MethodConfig):
    start: float = setting(0.0, "the gain before the first step", minimum=-1.0, maximum=1.0)


class GainAdapter(Adapter):
    def __init__(self, linear: nn.Linear, start: float) -> None:
        super().__init__(linear)
        self.gain = nn.Parameter(torch.full((self.out_features,), start, dtype=self.dtype, device=self.device))

    def forward(self, x: Tensor, base_output: Tensor) -> Tensor:
        return base_output * (1 + self.gain)

    def delta_weight(self) -> Tensor:
        return self.gain.unsqueeze(1) * assert_type(self.pretrained_weight, Tensor)


class Gain(Method):
    name = "gain"
    paper = "https://example.org/gain"
    Config = GainConfig
    traits = MethodTraits(budget_knob=None, in_all=False)

    def trainable_parameters(self, in_features: int, out_features: int) -> int:
        return out_features

    def adapter(self, linear: nn.Linear, generator: torch.Generator) -> Adapter:
        return GainAdapter(linear, self.config.start)


class Echo(Task):
    name = "echo"
    main_metric = "accuracy"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "accuracy": Metric("Accuracy", "fraction", True, "Share of right answers.")
    }
    recipes: ClassVar[Mapping[str, Recipe]] = {"smoke": Recipe(steps=1)}

    def load(self, context: TaskContext) -> TaskData:
        return TaskData(train=[Example([1, 2], [1, 2])], splits={"validation": (), "test": ()})

    def evaluate(self, model: Any, context: TaskContext, split: Any) -> Evaluation:
        return Evaluation(metrics={"accuracy": 1.0})


@hookimpl
def harness_register_methods() -> Sequence[type[Method]]:
    return [Gain]


@hookimpl
def harness_register_tasks() -> Sequence[type[Task]]:
    return [Echo]


@hookimpl
def harness_trial_finished(trial: Trial, record: Record) -> None:
    assert_type(trial.id, str)
    assert_type(record.score, float | None)
    record.state = None  # type: ignore[misc, assignment]  # records are frozen


def show(result: CheckResult) -> None:
    assert_type(result.reason, str)


check_method(Gain, on_result=show)
check_method("gain")  # type: ignore[arg-type]  # a method, not its name
Gain().trainable_parameters("3", 4)  # type: ignore[arg-type]
