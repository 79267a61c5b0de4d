"""DyLoRA: LoRA trained so that every smaller rank is a good adapter too.

    y = W x + (alpha / b) B[:, :b] A[:b] x,   b drawn anew from 1..r for every update, the same for all layers.

With ``update="row"``, the default of the authors' scripts, only row b of A and column b of B get a gradient; what
stands before them is constant. With ``"all"`` all of the first b do. At the end any rank may be used: all of r unless
``evaluation_rank`` says otherwise, always with the scale alpha / b.

The authors' code reaches this scale by multiplying each factor with sqrt(r / b) and the product with alpha / r.

Source: Valipour et al., "DyLoRA: Parameter-Efficient Tuning of Pre-trained Models using Dynamic Search-Free Low-Rank
Adaptation", EACL 2023, arXiv:2210.07558, section 3. b is uniform, as in the paper's experiments.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from harness import ConfigError, Method, MethodConfig, MethodTraits, StepInfo, TrialContext, hookimpl, setting
from harness_plugins.methods.lora import LAWS, LoRAAdapter


class DyLoRAAdapter(LoRAAdapter):
    """LoRA's pair, and the rank of the update to come.

    Args:
        layer: The frozen layer.
        config: Settings.
        generator: Draws A and the first rank.
    """

    rank: Tensor
    place: Tensor
    keep_float32 = ("rank", "place")  # whole numbers, which half precision would round

    def __init__(self, layer: nn.Linear, config: DyLoRAConfig, generator: torch.Generator) -> None:
        super().__init__(layer, config.r, 1.0, config.dropout, generator, config.init)
        self.alpha, self.is_row_only = config.alpha, config.update == "row"
        self.evaluation_rank = config.r if config.evaluation_rank == "auto" else config.evaluation_rank
        self.register_buffer("rank", torch.zeros((), device=self.device, dtype=self.dtype))
        place = torch.arange(config.r, device=self.device, dtype=self.dtype)
        self.register_buffer("place", place, persistent=False)

    @torch.no_grad()
    def draw(self, share: float) -> None:
        """Set the rank of the next update.

        Args:
            share: Uniform on [0, 1), one number for all layers: layers of the same r get the same rank.
        """
        self.rank.fill_(1 + int(share * self.a.shape[0]))

    def forward(self, x: Tensor, base_output: Tensor) -> Tensor:
        """Return ``W x + (alpha / b) B[:, :b] A[:b] x``, b being drawn in training, chosen in evaluation."""
        rank = self.rank if self.training else torch.full_like(self.rank, self.evaluation_rank)
        scale = torch.where(self.place < rank, self.alpha / rank, 0.0).to(x.dtype)
        a: Tensor = self.a
        b: Tensor = self.b
        if self.training and self.is_row_only:  # what stands before the last kept row is constant
            last = (self.place == rank - 1).to(x.dtype)
            a = a.detach() + last.unsqueeze(1) * (a - a.detach())
            b = b.detach() + last * (b - b.detach())
        return base_output + linear(linear(self.dropout(x), a) * scale, b)

    def truncated(self, rank: int) -> Tensor:
        """Return the weight change (O, I) of the first ``rank`` rows: ``alpha / rank * B[:, :rank] A[:rank]``."""
        return self.alpha / rank * self.b[:, :rank] @ self.a[:rank]

    def delta_weight(self) -> Tensor:
        """Return the weight change of the rank of evaluation, shape (O, I)."""
        return self.truncated(self.evaluation_rank)


@dataclass(frozen=True)
class DyLoRAConfig(MethodConfig):
    """Settings of DyLoRA."""

    r: int = setting(8, "largest rank", minimum=1)
    alpha: float = setting(16.0, "numerator of the scale alpha / b", minimum=0)
    dropout: float = setting(0.0, "probability of dropping an input element of the update", minimum=0, maximum=0.99)
    init: str = setting("uniform", "law of A, as of LoRA's", choices=tuple(LAWS))
    update: str = setting("row", "trained by one update: 'row' b, or 'all' of the first b", choices=("row", "all"))
    evaluation_rank: int | Literal["auto"] = setting(
        "auto", "rank that is scored and exported; auto: r", kind=int, formerly=0, minimum=1
    )

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        if self.evaluation_rank != "auto" and self.evaluation_rank > self.r:
            raise ConfigError(
                f"DyLoRAConfig: evaluation_rank={self.evaluation_rank} is not allowed; give an int <= r={self.r}"
            )


class DyLoRA(Method):
    """Dynamic low-rank adaptation."""

    name = "dylora"
    title = "DyLoRA"
    paper = "https://arxiv.org/abs/2210.07558"
    citation = "Valipour, Rezagholizadeh, Kobyzev, Ghodsi: DyLoRA, EACL 2023"
    formula = "r (I + O)"
    Config = DyLoRAConfig
    # The checks' few updates must train every row.
    traits = MethodTraits(in_all=False, check_config={"r": 2, "update": "all"})

    @classmethod
    def resolve(cls, config: Any, context: TrialContext) -> Any:
        """Return settings with the rank of evaluation."""
        return replace(config, evaluation_rank=config.r) if config.evaluation_rank == "auto" else config

    def trainable_parameters(self, in_features: int, out_features: int) -> int:
        """Return ``r (I + O)``."""
        return int(self.config.r) * (in_features + out_features)

    def adapter(self, linear: nn.Linear, generator: torch.Generator) -> DyLoRAAdapter:
        """Build the pair (A, B) for one layer, and draw the first rank: from the trial's seed, so that layers agree."""
        adapter = DyLoRAAdapter(linear, self.config, generator)
        first = torch.Generator().manual_seed(generator.initial_seed())
        adapter.draw(float(torch.rand((), generator=first, dtype=torch.float64)))
        return adapter

    def after_step(self, info: StepInfo) -> None:
        """Draw the rank of the next update."""
        share = float(torch.rand((), generator=info.generator, dtype=torch.float64))
        for adapter in info.adapters.values():
            adapter.draw(share)


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register DyLoRA."""
    return [DyLoRA]
