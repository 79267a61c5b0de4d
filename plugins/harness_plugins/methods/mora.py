"""MoRA: one square matrix M beside every frozen layer, between fixed compression and expansion.

    y = W x + expand(M compress(x)),   M (R, R) zero at the start,   R about sqrt((I + O) r).

The same parameters as LoRA of rank r buy a much higher rank. There is no scale: alpha plays no part.

The four operators, with blocks and groups counted from 0:

* ``truncation``: the first R inputs, the first R outputs.
* ``sharing``: inputs of one group are summed, outputs of one group get the same value. ``sharing`` 1 to 4
  says which groups: strided (j mod R) on both sides; contiguous on both; contiguous in, strided out; strided
  in, contiguous out. Contiguous groups: with I = q R + k, the first k have q + 1 members, the others q.
* ``decoupling``: x is cut into blocks of R, the same M acts on each, the results are laid side by side.
* ``rotation``: decoupling, with block i turned first by the angles i theta_j, theta_j = 10000^(-2j/R), j <
  R/2.

Source: Jiang et al., "MoRA: High-Rank Updating for Parameter-Efficient Fine-Tuning", arXiv:2405.12130,
section 4. Where the paper and the published code differ, the default is the code, which made the paper's
numbers:

* ``rounding``: R is the nearest integer in the code, the floor in the paper. Rotation needs pairs, so its R
  is then rounded down to even (code; here under both roundings).
* ``padding``: the code fills the last block (or the last round of strided groups) up with x from its own
  start; the paper leaves it out, ``zero`` fills with zeros. Output that is too long is cut, too short is
  repeated.
* ``pairing``: rotation turns coordinate j with j + R/2 in the code, 2j with 2j + 1 in the paper.
* The code's angles are float32 in every dtype (an effect of about 1e-7); the same is done here.
* Truncation and decoupling exist in the paper only.

The paper runs rotation at r = 8 and sharing at r = 256 for fine-tuning, and sharing (type 1) for UUID memorising and
pretraining: so does ``operator="auto"``, the default. It changes half way between the two ranks, at 45; the paper has
nothing in between. Where no task is known it is sharing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from harness import (
    Adapter,
    ConfigError,
    Dropout,
    Method,
    MethodConfig,
    MethodTraits,
    Purpose,
    TrialContext,
    hookimpl,
    setting,
)

SHARING_FROM = 45  # sqrt(8 * 256): half way, in factors, between the ranks at which the paper runs either operator
STRIDED_INPUTS, STRIDED_OUTPUTS = (1, 4), (1, 3)  # sharing types; the others are contiguous on that side


class MoRAAdapter(Adapter):
    """M (R, R), and for rotation the table of angles."""

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        layer: nn.Linear,
        size: int,
        operator: str,
        sharing: int,
        padding: str,
        pairing: str,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__(layer)
        self.size, self.operator, self.sharing = size, operator, sharing
        self.padding, self.pairing = padding, pairing
        # Blocks whose whole output is cut off are not worth computing.
        self.blocks = math.ceil(min(self.in_features, self.out_features) / size)
        self.m = nn.Parameter(torch.zeros(size, size, device=self.device, dtype=self.dtype))
        self.dropout = Dropout(dropout, generator, self.device)
        if operator == "rotation":
            cos, sin = rotation_table(self.blocks, size, pairing)
            # Not persistent: they follow from the configuration.
            self.register_buffer("cos", cos.to(self.device, self.dtype), persistent=False)
            self.register_buffer("sin", sin.to(self.device, self.dtype), persistent=False)

    def forward(self, x: Tensor, base_output: Tensor) -> Tensor:
        """Return ``W x + expand(M compress(x))``; dropout acts on ``x`` of the update only."""
        x = self.dropout(x)
        if self.operator == "truncation":
            return base_output + fit(linear(fit(x, self.size), self.m), self.out_features)
        if self.operator == "sharing":
            if self.sharing in STRIDED_INPUTS:
                hidden = linear(sum_strided(x, self.size, self.padding), self.m)
            else:
                hidden = linear(sum_contiguous(x, self.size), self.m)
            return base_output + self._spread(hidden)
        width = self.blocks * self.size
        x = torch.unflatten(extend(x[..., :width], width, x, self.padding), -1, (self.blocks, self.size))
        if self.operator == "decoupling":
            output = linear(x, self.m)
        else:
            # Turning M once per block is cheaper than turning every token.
            output = torch.einsum("...ni,noi->...no", x, self._turned())
        return base_output + repeat(output.flatten(-2), self.out_features)

    def delta_weight(self) -> Tensor:
        """Return the update as one matrix, shape (O, I)."""
        if self.operator == "truncation":
            return fit(fit(self.m, self.in_features).mT, self.out_features).mT
        if self.operator == "sharing":
            rows = self._spread(self.m.mT).mT
            if self.sharing in STRIDED_INPUTS:
                width = math.ceil(self.in_features / self.size) * self.size
                return fold(repeat(rows, width), self.in_features, self.padding)
            return spread_contiguous(rows, self.in_features)
        turned = self.m.expand(self.blocks, -1, -1) if self.operator == "decoupling" else self._turned()
        diagonal: Tensor = torch.block_diag(*turned)  # type: ignore[no-untyped-call]
        return fold(repeat(diagonal.mT, self.out_features).mT, self.in_features, self.padding)

    def _spread(self, hidden: Tensor) -> Tensor:
        """Give every output the value of its group: (..., R) to (..., O)."""
        if self.sharing in STRIDED_OUTPUTS:
            return repeat(hidden, self.out_features)
        return spread_contiguous(hidden, self.out_features)

    def _turned(self) -> Tensor:
        """Return ``M R_i`` of every block, shape (blocks, R, R); R_i turns columns, so M's rows turn back."""
        if self.pairing == "half":
            first, second = self.m.chunk(2, dim=-1)
            quarter = torch.cat((-second, first), dim=-1)
        else:
            quarter = torch.stack((-self.m[..., 1::2], self.m[..., 0::2]), dim=-1).flatten(-2)
        return self.m * self.cos.unsqueeze(-2) - quarter * self.sin.unsqueeze(-2)


# --- the parameter-free pieces: views, sums and concatenations of the last dimension ------------------------


def rotation_table(blocks: int, size: int, pairing: str) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, float32 (blocks, R): row i has i theta_j at both coordinates of pair j."""
    exponent = torch.arange(0, size, 2, dtype=torch.float32) / size
    angle = torch.arange(blocks, dtype=torch.float32).unsqueeze(-1) * (1.0 / 10000**exponent)
    angle = torch.cat((angle, angle), dim=-1) if pairing == "half" else angle.repeat_interleave(2, dim=-1)
    return angle.cos(), angle.sin()


def extend(head: Tensor, width: int, source: Tensor, padding: str) -> Tensor:
    """Lengthen ``head`` to ``width``: with ``source``, over and over (``wrap``), or with zeros."""
    missing = width - head.shape[-1]
    if missing == 0:
        return head
    if padding == "zero":
        return pad(head, (0, missing))
    whole, part = divmod(missing, source.shape[-1])
    return torch.cat([head, *[source] * whole, source[..., :part]], dim=-1)


def repeat(x: Tensor, width: int) -> Tensor:
    """Cut ``x`` to ``width``, or repeat it until it is that long."""
    return extend(x[..., :width], width, x, "wrap")


def fit(x: Tensor, width: int) -> Tensor:
    """Cut ``x`` to ``width``, or lengthen it with zeros."""
    return extend(x[..., :width], width, x, "zero")


def sum_strided(x: Tensor, size: int, padding: str) -> Tensor:
    """Sum inputs j with equal j mod R: (..., I) to (..., R)."""
    rounds, rest = divmod(x.shape[-1], size)
    if rest == 0:
        return torch.unflatten(x, -1, (rounds, size)).sum(-2)
    last = extend(x[..., rounds * size :], size, x, padding)
    if rounds == 0:
        return last
    return torch.unflatten(x[..., : rounds * size], -1, (rounds, size)).sum(-2) + last


def sum_contiguous(x: Tensor, size: int) -> Tensor:
    """Sum neighbouring inputs: (..., I) to (..., R), the longer groups first."""
    members, longer = divmod(x.shape[-1], size)
    if members == 0:
        return fit(x, size)
    if longer == 0:
        return torch.unflatten(x, -1, (size, members)).sum(-1)
    cut = longer * (members + 1)
    head = torch.unflatten(x[..., :cut], -1, (longer, members + 1)).sum(-1)
    return torch.cat((head, torch.unflatten(x[..., cut:], -1, (size - longer, members)).sum(-1)), dim=-1)


def spread_contiguous(x: Tensor, width: int) -> Tensor:
    """Repeat every element for its group: (..., R) to (..., ``width``), the longer groups first."""
    members, longer = divmod(width, x.shape[-1])
    if members == 0:
        return x[..., :width]
    head = x[..., :longer].unsqueeze(-1).expand(*x.shape[:-1], longer, members + 1).flatten(-2)
    tail = x[..., longer:].unsqueeze(-1).expand(*x.shape[:-1], x.shape[-1] - longer, members).flatten(-2)
    return torch.cat((head, tail), dim=-1) if longer else tail


def fold(matrix: Tensor, width: int, padding: str) -> Tensor:
    """Turn columns of the padded input into columns of x: a copy of an input adds to that input."""
    folded = fit(matrix, width)
    if padding == "wrap":
        for start in range(width, matrix.shape[-1], width):
            folded = folded + fit(matrix[..., start : start + width], width)
    return folded


# --- the method ---------------------------------------------------------------------------------------------


def square_size(in_features: int, out_features: int, r: int, rounding: str) -> int:
    """Return R, the side of M that comes closest to the parameters of LoRA at rank ``r``."""
    parameters = (in_features + out_features) * r
    return int(math.sqrt(parameters) + 0.5) if rounding == "code" else math.isqrt(parameters)


@dataclass(frozen=True)
class MoRAConfig(MethodConfig):
    """Settings of MoRA."""

    r: int = setting(8, "rank of the LoRA whose parameters M gets; the paper uses 8, 128 and 256", minimum=1)
    operator: str = setting(
        "auto",
        f"how x is compressed; auto: rotation for fine-tuning at r below {SHARING_FROM}, else sharing, as in the paper",
        choices=("auto", "truncation", "sharing", "decoupling", "rotation"),
    )
    sharing: int = setting(
        1,
        "groups: 1 strided, 2 contiguous, 3 contiguous in and strided out, 4 the reverse",
        choices=(1, 2, 3, 4),
    )
    rounding: str = setting(
        "code", "side of M: nearest integer (published code) or floor (paper)", choices=("code", "paper")
    )
    padding: str = setting(
        "wrap",
        "what fills the last block: x from its start (published code) or zero",
        choices=("wrap", "zero"),
    )
    pairing: str = setting(
        "half",
        "coordinates that rotation turns together: j and j + R/2 (published code) or 2j and 2j + 1 (paper)",
        choices=("half", "adjacent"),
    )
    dropout: float = setting(
        0.0,
        "probability of dropping an input of the update; 0.05 in the paper's runs",
        minimum=0,
        maximum=0.99,
    )


class MoRA(Method):
    """High-rank updating with one square matrix."""

    name = "mora"
    title = "MoRA"
    paper = "https://arxiv.org/abs/2405.12130"
    citation = "Jiang, Huang, Luo, Zhang, Huang, Wei, Deng, Sun, Zhang, Wang, Zhuang: MoRA, 2024"
    formula = "round(sqrt((I + O) r))^2"
    Config = MoRAConfig
    # UUID experiment: MoRA searches 5e-5, 1e-4, 2e-4 where LoRA searches 1e-4, 2e-4, 3e-4. (Its math runs use
    # one rate.)
    traits = MethodTraits(learning_rate_factor=0.5)

    @classmethod
    def resolve(cls, config: Any, context: TrialContext) -> Any:
        """Return settings with the operator that the paper runs for such a task at such a rank (section 5)."""
        if config.operator != "auto":
            return config
        rotates = context.purpose is Purpose.FINE_TUNING and config.r < SHARING_FROM
        return replace(config, operator="rotation" if rotates else "sharing")

    @property
    def operator(self) -> str:
        """The operator in use."""
        return str(self.resolve(self.config, TrialContext()).operator)

    def size(self, in_features: int, out_features: int) -> int:
        """Return R for a layer of this shape.

        Raises:
            ConfigError: Rotation on a layer too small to hold one pair.
        """
        c = self.config
        size = square_size(in_features, out_features, c.r, c.rounding)
        if self.operator != "rotation":
            return size
        if size < 2:
            raise ConfigError(
                f"mora: r={c.r} gives a {size}x{size} matrix on a layer with in_features={in_features}, "
                f"out_features={out_features}, and rotation needs at least 2x2; raise r or change operator"
            )
        return size - size % 2

    def trainable_parameters(self, in_features: int, out_features: int) -> int:
        """Return ``R^2``."""
        return self.size(in_features, out_features) ** 2

    def adapter(self, linear: nn.Linear, generator: torch.Generator) -> MoRAAdapter:
        """Build M for one layer."""
        c, size = self.config, self.size(linear.in_features, linear.out_features)
        return MoRAAdapter(linear, size, self.operator, c.sharing, c.padding, c.pairing, c.dropout, generator)


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register MoRA."""
    return [MoRA]
