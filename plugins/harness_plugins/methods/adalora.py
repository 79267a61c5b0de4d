"""AdaLoRA: updates in the form of an SVD, whose least important triplets are pruned during training.

    y = W x + s P diag(lambda) Q x,   P (O, R) and Q (R, I) random, lambda (R,) zero,
    loss + gamma * mean over all P and Q of |P^T P - 1| and |Q Q^T - 1|  (Frobenius norms).

Every step scores each triplet (one lambda, one column of P, one row of Q) by smoothed sensitivity times
smoothed uncertainty. The total rank over all layers, the budget, stays at its initial value for ``t_i``
steps, falls along a cubic to its target, and stays there for the last ``t_f`` steps; lambdas of triplets over
the budget are set to zero. Such a lambda still gets gradients and may return until the last phase, in which
the scores are frozen.

Source: Zhang et al., "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", ICLR 2023,
arXiv:2303.10512, section 3 and algorithm 1; where the released code differs, the settings say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness import (
    ConfigError,
    Dropout,
    LowRankAdapter,
    Method,
    MethodConfig,
    MethodTraits,
    StepInfo,
    TrialContext,
    hookimpl,
    setting,
)

DEVIATION = 0.02  # of the entries of P and Q at the start, in the released code


class AdaLoRAAdapter(LowRankAdapter):
    """P (O, R), lambda (R,) and Q (R, I), each with two running averages of its entries' importance."""

    keep_float32 = ("values",)

    def __init__(
        self,
        layer: nn.Linear,
        r: int,
        target_r: int,
        scale: float,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__(layer, scale)
        self.r, self.target_r = r, target_r
        p = torch.empty(self.out_features, r, dtype=torch.float64).normal_(0, DEVIATION, generator=generator)
        q = torch.empty(r, self.in_features, dtype=torch.float64).normal_(0, DEVIATION, generator=generator)
        self.p = nn.Parameter(p.to(self.device, self.dtype))
        self.values = nn.Parameter(torch.zeros(r, device=self.device, dtype=self.dtype))
        self.q = nn.Parameter(q.to(self.device, self.dtype))
        for name, parameter in self.named_parameters():
            # Not persistent: they steer a training run and are no part of the trained adapter.
            self.register_buffer(f"{name}_sensitivity", torch.zeros_like(parameter), persistent=False)
            self.register_buffer(f"{name}_uncertainty", torch.zeros_like(parameter), persistent=False)
        self.dropout = Dropout(dropout, generator, self.device)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return ``diag(lambda) Q`` and P."""
        return self.values.unsqueeze(1) * self.q, self.p

    def deviations_from_orthogonal(self) -> tuple[Tensor, Tensor]:
        """Return ``P^T P - 1`` and ``Q Q^T - 1``, each (R, R)."""
        one = torch.eye(self.r, device=self.p.device, dtype=self.p.dtype)
        return self.p.T @ self.p - one, self.q @ self.q.T - one

    @torch.no_grad()
    def observe(self, beta1: float, beta2: float) -> None:
        """Update the running averages with ``|parameter * gradient|`` of this step (section 3.2)."""
        for name, parameter in self.named_parameters():
            if parameter.grad is None:
                continue
            sensitivity, uncertainty = (
                self.get_buffer(f"{name}_sensitivity"),
                self.get_buffer(f"{name}_uncertainty"),
            )
            now = (parameter * parameter.grad).abs()
            sensitivity.lerp_(now, 1 - beta1)
            # From the average that already holds this step, as in the released code.
            uncertainty.lerp_((now - sensitivity).abs(), 1 - beta2)

    def scores(self) -> Tensor:
        """Return each triplet's importance, (R,): its lambda's plus the means of its column's and row's."""
        p, values, q = (
            self.get_buffer(f"{name}_sensitivity") * self.get_buffer(f"{name}_uncertainty")
            for name in ("p", "values", "q")
        )
        return values + p.mean(0) + q.mean(1)


@dataclass(frozen=True)
class AdaLoRAConfig(MethodConfig):
    """Settings of AdaLoRA."""

    r: int = setting(12, "initial rank of every layer; what the trainable parameters are counted at", minimum=1)
    target_r: int | Literal["auto"] = setting(
        "auto",
        "mean rank per layer at the end; auto: r / 1.5, rounded, as is common practice",
        kind=int,
        formerly=0,
        minimum=1,
    )
    alpha: float | Literal["auto"] = setting(
        "auto",
        "auto: scale 1, as in the paper; a number: alpha / (r + 1e-5) with the initial r, as in the released code",
        kind=float,
        formerly=0,
        minimum=1e-6,
    )
    dropout: float = setting(0.0, "probability of dropping an input element of the update", minimum=0, maximum=0.99)
    t_i: float = setting(0.1, "steps before pruning starts: a fraction of the run if below 1, else steps", minimum=0)
    t_f: float = setting(0.5, "steps at the final budget: a fraction of the run if below 1, else steps", minimum=0)
    delta_t: int = setting(10, "steps between two prunings of the middle phase", minimum=1)
    beta1: float = setting(0.85, "smoothing of the sensitivity", minimum=0, maximum=0.999999)
    beta2: float = setting(0.85, "smoothing of the uncertainty", minimum=0, maximum=0.999999)
    gamma: float = setting(0.1, "weight of the orthogonality penalty", minimum=0)
    penalty: str = setting(
        "norm",
        "'norm': Frobenius norm (released code); 'square': its square (paper, section 3.1)",
        choices=("norm", "square"),
    )

    def __post_init__(self) -> None:
        """Check the settings against each other as well."""
        super().__post_init__()
        if self.target_r != "auto" and self.target_r > self.r:
            raise ConfigError(
                f"AdaLoRAConfig: target_r={self.target_r} is greater than r={self.r}; give at most r, or auto"
            )
        if self.t_i < 1 and self.t_f < 1 and self.t_i + self.t_f >= 1:
            raise ConfigError(
                f"AdaLoRAConfig: t_i={self.t_i} and t_f={self.t_f} leave no steps to prune in; "
                "give fractions that sum to less than 1"
            )

    @property
    def final_rank(self) -> int:
        """Mean rank per layer at the end."""
        return max(1, round(self.r / 1.5)) if self.target_r == "auto" else self.target_r

    @property
    def scale(self) -> float:
        """The scale s."""
        return 1.0 if self.alpha == "auto" else self.alpha / (self.r + 1e-5)


class AdaLoRA(Method):
    """Adaptive budget allocation for low-rank adaptation."""

    name = "adalora"
    title = "AdaLoRA"
    paper = "https://arxiv.org/abs/2303.10512"
    citation = "Zhang, Chen, Bukharin, Karampatziakis, He, Cheng, Chen, Zhao: AdaLoRA, ICLR 2023"
    formula = "r (I + O) + r, at the initial rank; at the end with target_r, which a budget is matched to"
    Config = AdaLoRAConfig
    traits = MethodTraits(in_all=False, check_config={"r": 3, "delta_t": 1})

    @classmethod
    def resolve(cls, config: Any, context: TrialContext) -> Any:
        """Return settings with the final rank, and the alpha that makes the scale what it is."""
        return replace(
            config, target_r=config.final_rank, alpha=config.r + 1e-5 if config.alpha == "auto" else config.alpha
        )

    def trainable_parameters(self, in_features: int, out_features: int) -> int:
        """Return ``r (I + O) + r`` at the initial rank."""
        return int(self.config.r) * (in_features + out_features + 1)

    def final_parameters(self, in_features: int, out_features: int) -> int:
        """Return the same at the final rank: the mean over layers, since pruning spreads it as importance says."""
        return int(self.config.final_rank) * (in_features + out_features + 1)

    def adapter(self, linear: nn.Linear, generator: torch.Generator) -> AdaLoRAAdapter:
        """Build P, lambda and Q for one layer."""
        c = self.config
        return AdaLoRAAdapter(linear, c.r, c.final_rank, c.scale, c.dropout, generator)

    def extra_loss(self, adapters: Mapping[str, Any]) -> Tensor | None:
        """Return the penalty that keeps the columns of every P and the rows of every Q orthonormal."""
        deviations = [d for adapter in adapters.values() for d in adapter.deviations_from_orthogonal()]
        norms = torch.stack([torch.linalg.vector_norm(d) for d in deviations])
        mean = (norms.square() if self.config.penalty == "square" else norms).mean()
        return float(self.config.gamma) * mean

    def budget(self, step: int, total_steps: int, initial: int, target: int) -> int:
        """Return how many triplets, over all layers, may be non-zero after ``step`` updates (section 3.3)."""
        first, last = self._phase_steps(total_steps)
        if step <= first:
            return initial
        if step > last:
            return target
        left = 1 - (step - first) / (last - first)
        return int(target + (initial - target) * left**3)

    @torch.no_grad()
    def after_step(self, info: StepInfo) -> None:
        """Score every triplet, and where the schedule says so zero the lambdas of the least important ones.

        Raises:
            ConfigError: The run is too short for ``t_i`` and ``t_f``.
        """
        first, last = self._phase_steps(info.total_steps)
        adapters = list(info.adapters.values())
        if info.step < last:
            for adapter in adapters:
                adapter.observe(self.config.beta1, self.config.beta2)
        if info.step <= first or (info.step <= last and info.step % self.config.delta_t):
            return
        initial, target = sum(a.r for a in adapters), sum(a.target_r for a in adapters)
        pruned = initial - self.budget(info.step, info.total_steps, initial, target)
        if pruned == 0 or last <= 1:  # a run of one or two steps has no scores to prune by
            return
        scores = [adapter.scores() for adapter in adapters]
        # The threshold stays on the device: reading it would stall the GPU at every step of the last phase.
        threshold = torch.cat(scores).kthvalue(pruned).values
        for adapter, score in zip(adapters, scores, strict=True):
            adapter.values.masked_fill_(score <= threshold, 0.0)

    def _phase_steps(self, total_steps: int) -> tuple[int, int]:
        """Return the last step of the first phase and the last step of the middle phase."""
        first, final = (int(t * total_steps) if t < 1 else int(t) for t in (self.config.t_i, self.config.t_f))
        if first + final >= total_steps:
            raise ConfigError(
                f"{self.name}: t_i={self.config.t_i:g} and t_f={self.config.t_f:g} leave nothing to prune in "
                f"a run of {total_steps} steps; give fractions, or fewer steps"
            )
        return first, total_steps - final


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register AdaLoRA."""
    return [AdaLoRA]
