"""ReLoRA: LoRA that is merged into the weight and restarted every T updates, so that the total rank can grow.

    y = W x + D x + s B A x;   every T updates   D <- D + s B A,   A redrawn,   B = 0.

The pretrained weight is never changed: what was merged lives in the buffer D (O, I). At a restart most of the
optimizer's moments are erased and the learning rate is warmed up again.

Here is also what merge-and-restart methods share: ``Restarting``, ``RestartConfig`` and the functions on it.
Left out: the trainable scaling (at a merge it kills the branch), and the full-rank warm start (it is the base model's
business).

Source: Lialin et al., "ReLoRA: High-Rank Training Through Low-Rank Updates", ICLR 2024, arXiv:2307.05695.
Defaults follow the authors' code. The MoRA authors ran ReLoRA through code of their own, which differs; where
the two differ, the setting offers ``official`` and ``mora_repo``, and it is not public which one made the
MoRA paper's ReLoRA numbers:

* ``timing``: the rate is exactly 0 at update T + 1, and the official code merges right after that empty
  update; the other right after update T. Neither merges after the last update here: nothing would train
  afterwards.
* ``schedule``: one global cosine with a floor, dented at every restart (``jagged_cosine``), against a fresh
  cosine to 0 from the current rate at every restart (``compounding_cosine``).
* ``reset``: random pruning of the moments keeping the step counter, against deleting the state, counter
  included. ``reset_scope``: outside of pretraining the other deletes that of all parameters, heads included.
* ``reset_every``: the official code counts merges and the cycles of reset and warm-up apart.
* ``initial_a``: the official wrapper zeroes A too at the start, a known bug: nothing is learned before the
  first merge. ``zero`` reproduces it.
* alpha 32 with r = 128 (a scale of 0.25) and dropout 0.1 are the official code's; at r = 8 the scale is 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from harness import ConfigError, Method, MethodConfig, MethodTraits, StepInfo, TrialContext, hookimpl, setting
from harness_plugins.methods.lora import LoRAAdapter, kaiming_uniform

# --- restarting: when, at what learning rate, with what left of the optimizer's memory ----------------------


@dataclass(frozen=True)
class RestartConfig(MethodConfig):
    """Settings shared by the methods that merge and restart."""

    merge_every: int | Literal["auto"] = setting(
        "auto", "T, updates between merges (papers: 1000 to 5000); auto: the run is split into `cycles`",
        kind=int, formerly=0, minimum=2,
    )  # fmt: skip
    reset_every: int | Literal["auto"] = setting(
        "auto", "updates between resets, each with a warmup: the period of the schedule; auto: as merges",
        kind=int, formerly=0, minimum=2,
    )  # fmt: skip
    cycles: int = setting(4, "number of cycles where merge_every is auto; the last one may be shorter", minimum=2)
    timing: str = setting(
        "official", "merge after update T + 1 (official) or T (mora_repo)", choices=("official", "mora_repo")
    )
    schedule: str = setting(
        "official",
        "learning rate: jagged cosine (official), compounding cosine (mora_repo), or the task's own (recipe)",
        choices=("official", "mora_repo", "recipe"),
    )
    warmup: int | Literal["auto"] = setting(
        "auto", "updates of the first warmup; auto: a tenth of the run, at most T", kind=int, minimum=0
    )
    restart_warmup: int | Literal["auto"] = setting(
        "auto", "updates of warmup after a merge; auto: 50 (paper), at most T / 4", kind=int, minimum=0
    )
    floor: float = setting(0.1, "where the jagged cosine ends, as a fraction of the peak", minimum=0, maximum=1)
    adjust_step: int = setting(0, "updates by which the jagged cosine (not the merges) runs ahead", minimum=0)
    reset: str = setting(
        "random_pruning",
        "moments at a merge: erased at random or by size (official), all erased, or the state deleted "
        "with its step counter, so that bias correction restarts (mora_repo)",
        choices=("random_pruning", "magnitude_pruning", "zero", "delete"),
    )
    reset_ratio: float = setting(
        0.999,
        "fraction that pruning erases; official README: 0.9 for magnitude_pruning",
        minimum=0,
        maximum=1,
    )
    reset_scope: str = setting(
        "adapters",
        "whose moments: the adapters', or all that the optimizer has (mora_repo, outside of pretraining)",
        choices=("adapters", "all"),
    )


def first_merge(config: RestartConfig, total_steps: int) -> int:
    """Return the update after which the first merge is due."""
    period = max(2, math.ceil(total_steps / config.cycles)) if config.merge_every == "auto" else config.merge_every
    return period + (config.timing == "official")


def merge_period(config: RestartConfig, total_steps: int) -> int:
    """Return T in updates, at least 2. It need not divide the run: the last cycle is then shorter.

    Raises:
        ConfigError: A given ``merge_every`` would never merge in a run this short.
    """
    first = first_merge(config, total_steps)
    if config.merge_every == "auto":
        return first - (config.timing == "official")
    if first >= total_steps:
        raise ConfigError(
            f"{type(config).__qualname__}: merge_every={config.merge_every} merges from update {first}, "
            f"but the run ends at {total_steps}; give a smaller merge_every, or auto for {config.cycles} cycles"
        )
    return config.merge_every


def reset_period(config: RestartConfig, total_steps: int) -> int:
    """Return the updates between resets, at least 2: the schedule's T."""
    return merge_period(config, total_steps) if config.reset_every == "auto" else config.reset_every


def warmups(config: RestartConfig, total_steps: int) -> tuple[int, int]:
    """Return the updates of the first warmup and of those after a merge."""
    period = reset_period(config, total_steps)
    first = max(0, min(total_steps // 10, period - config.adjust_step)) if config.warmup == "auto" else config.warmup
    later = max(1, min(50, period // 4)) if config.restart_warmup == "auto" else config.restart_warmup
    return first, later


def is_due(period: int, timing: str, step: int, total_steps: int) -> bool:
    """Return whether what happens every ``period`` updates happens after update ``step`` (from 1)."""
    if step >= total_steps or step < period:
        return False
    return step % period == (1 if timing == "official" else 0)


def is_merge_due(config: RestartConfig, info: StepInfo) -> bool:
    """Return whether to merge after this update."""
    return is_due(merge_period(config, info.total_steps), config.timing, info.step, info.total_steps)


def reset_if_due(config: RestartConfig, info: StepInfo) -> None:
    """Forget the optimizer's moments if a cycle ends with this update."""
    if not is_due(reset_period(config, info.total_steps), config.timing, info.step, info.total_steps):
        return
    if config.reset_scope == "all":
        chosen = [p for group in info.optimizer.param_groups for p in group["params"]]
    else:
        chosen = [p for adapter in info.adapters.values() for p in adapter.parameters()]
    reset_moments(info.optimizer, chosen, config.reset, config.reset_ratio, info.generator)


def restart_multiplier(config: RestartConfig, step: int, total_steps: int, default: Callable[[int], float]) -> float:
    """Return the learning rate of update ``step`` (from 0) as a fraction of the peak.

    Raises:
        ConfigError: A warmup does not fit into a cycle.
    """
    period = reset_period(config, total_steps)
    if config.schedule == "recipe":
        return default(step)
    room = period - config.adjust_step
    warmup, restart_warmup = warmups(config, total_steps)
    for name, value, most in (
        ("adjust_step", config.adjust_step, period),
        ("warmup", warmup, room),
        ("restart_warmup", restart_warmup, period - 1),
    ):
        if value > most:
            raise ConfigError(
                f"{type(config).__qualname__}: {name}={value} does not fit into a cycle of {period} updates; "
                f"give at most {most}, or raise merge_every or reset_every"
            )
    if config.schedule == "mora_repo":
        return compounding_cosine(step, total_steps, period, warmup, restart_warmup)
    return jagged_cosine(step, total_steps, period, warmup, restart_warmup, config.floor, config.adjust_step)


def jagged_cosine(
    step: int,
    total_steps: int,
    period: int,
    warmup: int,
    restart_warmup: int,
    floor: float = 0.1,
    adjust_step: int = 0,
) -> float:
    """Return the official schedule: one cosine over the run, to which every restart climbs back from 0."""

    def envelope(at: int) -> float:
        progress = (at - warmup) / (total_steps - warmup)
        return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2

    if step < warmup:
        return step / warmup
    cycle, within = divmod(step + adjust_step, period)
    if step >= period and within < restart_warmup:
        return within / restart_warmup * envelope(cycle * period + restart_warmup)
    return envelope(step + adjust_step)


def compounding_cosine(step: int, total_steps: int, period: int, warmup: int, restart_warmup: int) -> float:
    """Return the MoRA repository's schedule: every restart warms up to the rate it found and decays to 0.

    Its first update after a restart still has the old rate: the new scheduler takes effect one update late.
    """

    def fresh(at: int, horizon: int, warmup: int) -> float:
        if at < warmup:
            return at / warmup
        return (1 + math.cos(math.pi * (at - warmup) / (horizon - warmup))) / 2

    peak, start = 1.0, 0
    while step >= start + period:
        peak *= fresh(period, total_steps - start, restart_warmup if start else warmup)
        start += period
    if start == 0:
        return fresh(step, total_steps, warmup)
    return peak if step == start else peak * fresh(step - start, total_steps - start, restart_warmup)


@torch.no_grad()
def reset_moments(
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[Tensor],
    how: str,
    ratio: float,
    generator: torch.Generator,
) -> None:
    """Erase Adam's moments of these parameters in place; the two moments of a parameter independently.

    Args:
        optimizer: An Adam or AdamW.
        parameters: Nobody else's state is touched.
        how: ``random_pruning`` (each entry with probability ``ratio``), ``magnitude_pruning`` (entries not
            above the ``ratio``-quantile of their tensor's magnitudes), ``zero`` (all) or ``delete`` (all, and
            the step counter).
        ratio: Fraction, 0 to 1; ``zero`` and ``delete`` do not use it.
        generator: Source of randomness, on the CPU.
    """
    for parameter in parameters:
        state = optimizer.state.get(parameter)
        if not state:  # not updated yet, so nothing to forget
            continue
        for moment in (state["exp_avg"], state["exp_avg_sq"]):
            if how == "random_pruning":
                keep = torch.rand(moment.shape, generator=generator) >= ratio
                moment.mul_(keep.to(moment.device))
            elif how == "magnitude_pruning":
                moment.mul_(moment.abs() > quantile(moment.abs(), ratio))
            else:
                moment.zero_()
        if how == "delete":
            # As good as deleted, and safe where the state is stacked or captured in a CUDA graph.
            state["step"].zero_()


def quantile(x: Tensor, q: float) -> Tensor:
    """Return the linearly interpolated ``q``-quantile in float32; ``torch.quantile`` refuses large x."""
    ordered = x.flatten().float().sort().values
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    return torch.lerp(ordered[low], ordered[min(low + 1, len(ordered) - 1)], position - low)


class Restarting(Method):
    """A method whose adapters are merged into the weight every T updates, and start over."""

    # Pretraining in the MoRA paper gives LoRA, ReLoRA, MoRA and ReMoRA one rate. Two cycles fit into a few updates.
    traits = MethodTraits(check_config={"cycles": 2})

    @classmethod
    def resolve(cls, config: Any, context: TrialContext) -> Any:
        """Return settings with the periods and warmups of a run of known length, where it is long enough to merge."""
        steps = context.total_steps
        if steps is None or first_merge(config, steps) >= steps:
            return config
        first, later = warmups(config, steps)
        periods = {"merge_every": merge_period(config, steps), "reset_every": reset_period(config, steps)}
        return replace(config, **periods, warmup=first, restart_warmup=later)

    def learning_rate_multiplier(self, step: int, total_steps: int, default: Callable[[int], float]) -> float:
        """Return the schedule that warms up again after every merge."""
        return restart_multiplier(self.config, step, total_steps, default)

    def after_step(self, info: StepInfo) -> None:
        """Merge and forget when a cycle ends."""
        if is_merge_due(self.config, info):
            cycle = info.step // merge_period(self.config, info.total_steps)
            for adapter in info.adapters.values():
                self.merge(adapter, cycle, info.generator)
        reset_if_due(self.config, info)

    def merge(self, adapter: Any, cycle: int, generator: torch.Generator) -> None:
        """Merge one layer's adapter, and start it over for a cycle (from 0)."""
        raise NotImplementedError


# --- the method ---------------------------------------------------------------------------------------------


class ReLoRAAdapter(LoRAAdapter):
    """LoRA's A (R, I) and B (O, R), and D (O, I), the sum of what was merged."""

    merged: Tensor

    def __init__(
        self,
        layer: nn.Linear,
        r: int,
        scale: float,
        dropout: float,
        initial_a: str,
        generator: torch.Generator,
    ) -> None:
        super().__init__(layer, r, scale, dropout, generator)
        if initial_a == "zero":
            nn.init.zeros_(self.a)
        merged = torch.zeros(self.out_features, self.in_features, device=self.device, dtype=self.dtype)
        self.register_buffer("merged", merged)

    def forward(self, x: Tensor, base_output: Tensor) -> Tensor:
        """Return ``W x + D x + s B A x``; dropout acts on the last term only."""
        return super().forward(x, base_output + linear(x, self.merged))

    def delta_weight(self) -> Tensor:
        """Return ``D + s B A``, shape (O, I)."""
        return self.merged + super().delta_weight()

    @torch.no_grad()
    def merge(self, generator: torch.Generator) -> None:
        """Move ``s B A`` into D and start over; the layer's function does not change."""
        self.merged.copy_(self.delta_weight())
        r, fan_in = self.a.shape
        self.a.copy_(kaiming_uniform(r, fan_in, generator))
        self.b.zero_()


@dataclass(frozen=True)
class ReLoRAConfig(RestartConfig):
    """Settings of ReLoRA."""

    r: int = setting(8, "rank of one cycle's update; 128 in the paper", minimum=1)
    alpha: float = setting(32.0, "numerator of the scale alpha / r; official: 32, with r 128", minimum=0)
    dropout: float = setting(
        0.0,
        "probability of dropping an input of the update; the official code has 0.1, comparisons here have none",
        minimum=0,
        maximum=0.99,
    )
    initial_a: str = setting(
        "kaiming", "A of the first cycle: random (paper) or zero (official bug)", choices=("kaiming", "zero")
    )


class ReLoRA(Restarting):
    """Low-rank adaptation with merges and restarts."""

    name = "relora"
    title = "ReLoRA"
    paper = "https://arxiv.org/abs/2307.05695"
    citation = "Lialin, Shivagunde, Muckatira, Rumshisky: ReLoRA, ICLR 2024"
    formula = "r (I + O)"
    Config = ReLoRAConfig

    def trainable_parameters(self, in_features: int, out_features: int) -> int:
        """Return ``r (I + O)``."""
        return int(self.config.r) * (in_features + out_features)

    def adapter(self, linear: nn.Linear, generator: torch.Generator) -> ReLoRAAdapter:
        """Build the pair (A, B) and the empty D for one layer."""
        c = self.config
        return ReLoRAAdapter(linear, c.r, c.alpha / c.r, c.dropout, c.initial_a, generator)

    def merge(self, adapter: Any, cycle: int, generator: torch.Generator) -> None:
        """Merge one layer's adapter and draw a new A."""
        adapter.merge(generator)


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register ReLoRA."""
    return [ReLoRA]
