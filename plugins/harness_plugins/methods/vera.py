"""VeRA: two trained vectors between random matrices that all layers of one shape share.

    y = W x + diag(b) B diag(d) A x,   A (R, I) and B (O, R) random and frozen, d (R,) at 0.1, b (O,) zero.

There is no scale. A and B are uniform with the deviation of He et al.'s law, sqrt(2 / fan-in), as in PEFT, which draws
one pair of the model's largest sizes and cuts every layer's out of it; here each shape has its own, as in the paper.
They follow from ``projection_seed`` and the shape alone, not from the trial's seed. So they are the same in every trial
and stored once, however many layers and trials there are; a saved adapter does not hold them.

The forward pass goes through the vectors, or forms the update first, whichever takes fewer products: the two differ by
rounding only.

Source: Kopiczko, Blankevoort, Asano, "VeRA: Vector-based Random Matrix Adaptation", ICLR 2024, arXiv:2310.11454,
section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from harness import Adapter, Dropout, Method, MethodConfig, MethodTraits, hookimpl, setting


class Projections:
    """The frozen A (R, I) and B (O, R) of one shape, on one device, in one precision."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a, self.b = a, b


# Alive as long as an adapter holds them.
_KNOWN: WeakValueDictionary[tuple[object, ...], Projections] = WeakValueDictionary()


def projections(
    r: int, in_features: int, out_features: int, seed: int, device: torch.device, dtype: torch.dtype
) -> Projections:
    """Return the pair that all layers of a shape share: the same object as long as somebody holds it."""
    key = (r, in_features, out_features, seed, device, dtype)
    found = _KNOWN.get(key)
    if found is None:
        generator = torch.Generator().manual_seed(seed)
        # He et al.'s law: uniform with variance 2 / fan-in.
        a, b = (
            math.sqrt(6 / columns) * (2 * torch.rand(rows, columns, generator=generator, dtype=torch.float64) - 1)
            for rows, columns in ((r, in_features), (out_features, r))
        )
        found = _KNOWN[key] = Projections(a.to(device, dtype), b.to(device, dtype))
    return found


class VeRAAdapter(Adapter):
    """d (R,), b (O,), and the shared A and B."""

    def __init__(
        self, layer: nn.Linear, r: int, initial_d: float, dropout: float, seed: int, generator: torch.Generator
    ) -> None:
        super().__init__(layer)
        self.d = nn.Parameter(torch.full((r,), initial_d, device=self.device, dtype=self.dtype))
        self.b = nn.Parameter(torch.zeros(self.out_features, device=self.device, dtype=self.dtype))
        # In the model's own precision, and no buffers: stacked trials would each get a copy.
        dtype = self.pretrained_weight.dtype
        self.shared = projections(r, self.in_features, self.out_features, seed, self.device, dtype)
        self.dropout = Dropout(dropout, generator, self.device)

    def forward(self, x: Tensor, base_output: Tensor) -> Tensor:
        """Return ``W x + diag(b) B diag(d) A x``; dropout acts on ``x`` of the update only."""
        a, b, x = self.shared.a.to(x.dtype), self.shared.b.to(x.dtype), self.dropout(x)
        inner, outer, r, rows = self.in_features, self.out_features, len(self.d), x.numel() // self.in_features
        if rows * r * (inner + outer) <= (rows + r) * inner * outer:
            return base_output + linear(linear(x, a) * self.d, b) * self.b
        # At a rank beyond the layer's width, as a budget sets it, the update itself is fewer products for many rows.
        return base_output + linear(x, (b @ (self.d.unsqueeze(1) * a)) * self.b.unsqueeze(1))

    def delta_weight(self) -> Tensor:
        """Return ``diag(b) B diag(d) A``, shape (O, I)."""
        a, b = self.shared.a.to(self.dtype), self.shared.b.to(self.dtype)
        return (self.b.unsqueeze(1) * b) @ (self.d.unsqueeze(1) * a)


@dataclass(frozen=True)
class VeRAConfig(MethodConfig):
    """Settings of VeRA."""

    r: int = setting(256, "rank of the update; its parameters are few, so ranks are large", minimum=1)
    initial_d: float = setting(0.1, "starting value of d", minimum=0)
    dropout: float = setting(0.0, "probability of dropping an input element of the update", minimum=0, maximum=0.99)
    projection_seed: int = setting(0, "seed of the shared matrices, the same in every trial", minimum=0)


class VeRA(Method):
    """Vector-based random matrix adaptation."""

    name = "vera"
    title = "VeRA"
    paper = "https://arxiv.org/abs/2310.11454"
    citation = "Kopiczko, Blankevoort, Asano: VeRA: Vector-based Random Matrix Adaptation, ICLR 2024"
    formula = "r + O"
    Config = VeRAConfig
    # The paper's rates are about ten times LoRA's (its tables of hyper-parameters).
    traits = MethodTraits(in_all=False, learning_rate_factor=10.0, check_config={"r": 8})

    def trainable_parameters(self, in_features: int, out_features: int) -> int:
        """Return ``r + O``."""
        return int(self.config.r) + out_features

    def adapter(self, linear: nn.Linear, generator: torch.Generator) -> VeRAAdapter:
        """Build the vectors of one layer."""
        c = self.config
        return VeRAAdapter(linear, c.r, c.initial_d, c.dropout, c.projection_seed, generator)


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register VeRA."""
    return [VeRA]
