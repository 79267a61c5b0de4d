"""The base model as it is: nothing of it trains. The row that says what training brought at all.

A task that adds a head trains that head, as for every method: a linear probe. What is not here: steps, which a trial in
which nothing trains does not do (``engine.build``).
"""

from __future__ import annotations

import torch
from torch import nn

from harness import Method, MethodTraits, hookimpl


class FrozenBase(Method):
    """Train nothing but a task's own head, where it has one."""

    name = "frozen"
    title = "Frozen base"
    paper = "https://arxiv.org/abs/1610.01644"
    citation = "Alain and Bengio: Understanding intermediate layers using linear classifier probes, 2016, section 3"
    formula = "0"
    traits = MethodTraits(in_all=False, budget_knob=None, reference=True, trains=False, mergeable=False)

    def trainable_parameters(self, in_features: int, out_features: int) -> int:
        """Return 0."""
        return 0

    def attach(self, model: nn.Module, generator: torch.Generator) -> None:
        """Leave the model as it is."""


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register the frozen base."""
    return [FrozenBase]
