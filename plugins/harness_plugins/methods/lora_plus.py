"""LoRA+: LoRA with a higher learning rate for B.

    learning rate of A = eta,   of B = ratio * eta,   ratio > 1.   The update and its scale are LoRA's.

B starts at zero and A does not, so one rate cannot suit both in wide models. The published optimiser code
also gives every one-dimensional adapter parameter (a DoRA magnitude, say) the higher rate; the MoRA
repository's rerun leaves those at eta. LoRA itself has none, so the choice matters only to a method that
borrows ``parameter_groups``.

Source: Hayou, Ghosh, Yu, "LoRA+: Efficient Low Rank Adaptation of Large Models", ICML 2024, arXiv:2402.12354.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from harness import Method, MethodTraits, hookimpl, setting
from harness_plugins.methods.lora import LoRA, LoRAConfig


@dataclass(frozen=True)
class LoRAPlusConfig(LoRAConfig):
    """Settings of LoRA+: LoRA's and the two rates'."""

    ratio: float = setting(16.0, "learning rate of B over that of A; the paper advises about 16", minimum=1)
    vectors: str = setting(
        "ratio",
        "rate of one-dimensional parameters: 'ratio' times the base (published code) or 'base' (MoRA's)",
        choices=("ratio", "base"),
    )


class LoRAPlus(LoRA):
    """LoRA with two learning rates."""

    name = "lora+"
    title = "LoRA+"
    paper = "https://arxiv.org/abs/2402.12354"
    citation = "Hayou, Ghosh, Yu: LoRA+: Efficient Low Rank Adaptation of Large Models, ICML 2024"
    Config = LoRAPlusConfig
    traits = MethodTraits(in_all=False)

    def parameter_groups(
        self, adapters: Mapping[str, nn.Module], learning_rate: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """Return two groups: the base rate, and ``ratio`` times it for every B (a parameter called ``b``)."""
        slow: list[nn.Parameter] = []
        fast: list[nn.Parameter] = []
        for adapter in adapters.values():
            for name, parameter in adapter.named_parameters():
                is_fast = name.split(".")[-1] == "b" or (parameter.ndim == 1 and self.config.vectors == "ratio")
                if parameter.requires_grad:
                    (fast if is_fast else slow).append(parameter)
        rates = ((slow, learning_rate), (fast, self.config.ratio * learning_rate))
        return [{"params": p, "lr": rate, "weight_decay": weight_decay} for p, rate in rates if p]


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register LoRA+."""
    return [LoRAPlus]
