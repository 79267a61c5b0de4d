"""MELoRA: n small LoRAs side by side, each on its own slice of the input and of the output.

    y_i = (W x)_i + s B_i A_i x_i,   i = 1..n,   s = alpha / (rank of one mini),

where x_i and y_i are the i-th of n contiguous slices. The update is block-diagonal, so n minis of rank r
reach rank n r with the parameters of one LoRA of rank r.

Source: Ren et al., "MELoRA: Mini-Ensemble Low-Rank Adapters for Parameter-Efficient Fine-Tuning", ACL 2024,
arXiv:2402.17263. Where the paper and the published code differ, the default is the code, which
made the paper's numbers:

* ``rank_convention``: the code reads ``r`` as the rank of each mini, r (I + O) parameters whatever n is; the
  paper's equation reads it as the rank of all minis together, r (I + O) / n parameters.
* The scale is alpha / (mini rank), alpha 16, for every mini; the paper states none.
* A slice that does not come out even makes the code fail with a shape error; here it is a ``ConfigError``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness import Adapter, ConfigError, Dropout, Method, MethodConfig, hookimpl, setting
from harness_plugins.methods.lora import kaiming_uniform


class MELoRAAdapter(Adapter):
    """A (n, R, I/n), B (n, O/n, R) and a fixed scale. Each A_i is drawn for its own fan-in, I/n."""

    def __init__(
        self, layer: nn.Linear, n: int, r: int, scale: float, dropout: float, generator: torch.Generator
    ) -> None:
        super().__init__(layer)
        self.n, self.scale = n, scale
        a = kaiming_uniform(n * r, self.in_features // n, generator).view(n, r, -1)
        self.a = nn.Parameter(a.to(self.device, self.dtype))
        self.b = nn.Parameter(torch.zeros(n, self.out_features // n, r, device=self.device, dtype=self.dtype))
        self.dropout = Dropout(dropout, generator, self.device)

    def forward(self, x: Tensor, base_output: Tensor) -> Tensor:
        """Return ``W x`` plus the n slices of the update; dropout acts on ``x`` of the update only."""
        slices = torch.unflatten(self.dropout(x), -1, (self.n, -1))
        hidden = self.scale * torch.einsum("...ni,nri->...nr", slices, self.a)
        return base_output + torch.einsum("...nr,nor->...no", hidden, self.b).flatten(-2)

    def delta_weight(self) -> Tensor:
        """Return the block-diagonal matrix of the ``s B_i A_i``, shape (O, I)."""
        delta: Tensor = torch.block_diag(*(self.scale * self.b @ self.a))  # type: ignore[no-untyped-call]
        return delta


@dataclass(frozen=True)
class MELoRAConfig(MethodConfig):
    """Settings of MELoRA."""

    r: int = setting(8, "rank, as counted by `rank_convention`; the paper uses mini ranks 8 and 1", minimum=1)
    n: int = setting(
        2,
        "number of minis; divides I and O (GLUE: 2, 4, 8, mostly best at 2; instructions: 8 to 64)",
        minimum=1,
    )
    alpha: float = setting(16.0, "numerator of the scale alpha / (mini rank); 16 in the code", minimum=0)
    rank_convention: str = setting(
        "mini",
        "what r counts: the rank of each mini (published code) or of all n together (the paper's equation)",
        choices=("mini", "equivalent"),
    )
    dropout: float = setting(
        0.0,
        "probability of dropping an input of the update; 0.05 in the paper's runs",
        minimum=0,
        maximum=0.99,
    )

    def __post_init__(self) -> None:
        """Check that the minis get a whole rank."""
        super().__post_init__()
        if self.rank_convention == "equivalent" and self.r % self.n:
            raise ConfigError(
                f"MELoRAConfig: r={self.r} cannot be shared by n={self.n} minis; give a multiple of it, "
                f"or rank_convention='mini'"
            )

    @property
    def mini_rank(self) -> int:
        """The rank of one mini."""
        return self.r if self.rank_convention == "mini" else self.r // self.n


class MELoRA(Method):
    """Mini-ensemble low-rank adapters."""

    name = "melora"
    title = "MELoRA"
    paper = "https://arxiv.org/abs/2402.17263"
    citation = "Ren, Shi, Wu, Zhang, Ren, de Rijke, Chen, Pei: MELoRA, ACL 2024"
    formula = "r (I + O)"
    Config = MELoRAConfig

    def trainable_parameters(self, in_features: int, out_features: int) -> int:
        """Return (mini rank) (I + O): n pairs of r I/n and r O/n.

        Raises:
            ConfigError: ``n`` does not divide both I and O.
        """
        n, common = self.config.n, math.gcd(in_features, out_features)
        if common % n:
            divisors = [d for d in range(1, common + 1) if common % d == 0]
            raise ConfigError(
                f"melora: n={n} does not divide both sides of a layer with in_features={in_features}, "
                f"out_features={out_features}; give an n among {', '.join(map(str, divisors))}"
            )
        return int(self.config.mini_rank) * (in_features + out_features)

    def adapter(self, linear: nn.Linear, generator: torch.Generator) -> MELoRAAdapter:
        """Build the n pairs for one layer.

        Raises:
            ConfigError: ``n`` does not divide both I and O.
        """
        self.trainable_parameters(linear.in_features, linear.out_features)  # refuses what does not divide
        c = self.config
        return MELoRAAdapter(linear, c.n, c.mini_rank, c.alpha / c.mini_rank, c.dropout, generator)


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register MELoRA."""
    return [MELoRA]
