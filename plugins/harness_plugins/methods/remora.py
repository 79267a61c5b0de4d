"""ReMoRA: MoRA that is merged into the weight and restarted, with new groups each time.

    y = W x + D x + E M C x;   every T updates   D <- D + E M C,   M = 0,   regroup (draw C and E anew).

Compression (C) sums the inputs of each group, expansion (E) gives every output the value of its group (MoRA's sharing
operator; one cycle equals ``mora`` with that operator). Merging alone would leave the rank at R: it grows
because the groups change. Adapters of many trials are stacked and captured, so the groups are matrices in
buffers, rewritten in place, and never branches in the code.

Source: Jiang et al., "MoRA", arXiv:2405.12130, and its pretraining experiments. Settings to know:

* ``groups``: ``official``, the default, cycles through the code's sharing types 1, 2, 3, 4, ``alternate`` (another
  flag of that code) through 1, 2. There are only two groupings per side in these, so the rank stops growing in the
  second cycle, at less than 2 R. ``permutation`` draws new groups at every merge (type 1 on shuffled inputs and
  outputs; the first cycle is type 1 itself), which keeps the rank growing, as the paper argues it does.
* ``padding``, ``rounding``: as in ``mora``; the defaults are the code's.
* Merging, learning rate and reset have ``relora``'s settings. ``timing`` and ``reset`` default to what the MoRA
  repository does, the only published ReMoRA: merge after update T, delete the adapters' state. ``schedule``
  defaults to the jagged cosine, which the paper names; the repository's own command runs the other (``mora_repo``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, one_hot

from harness import Adapter, Dropout, Method, hookimpl, setting
from harness_plugins.methods.mora import square_size
from harness_plugins.methods.relora import RestartConfig, Restarting

# Groups of (inputs, outputs) of MoRA's sharing types 1 to 4, in the order in which cycles use them.
CYCLES = {
    "official": (
        ("strided", "strided"),
        ("contiguous", "contiguous"),
        ("contiguous", "strided"),
        ("strided", "contiguous"),
    ),
    "alternate": (("strided", "strided"), ("contiguous", "contiguous")),
}


def group_sizes(features: int, size: int) -> Tensor:
    """Return the members of each of R contiguous groups, the longer ones first."""
    members, longer = divmod(features, size)
    return torch.tensor([members + 1] * longer + [members] * (size - longer))


def input_groups(kind: str, in_features: int, size: int, padding: str) -> Tensor:
    """Return how often each group sums each input, shape (R, I)."""
    if kind == "contiguous":
        return output_groups(kind, in_features, size).mT
    slots = torch.arange(math.ceil(in_features / size) * size)  # what fills the last ones up is the padding
    kept = slots if padding == "wrap" else slots[:in_features]
    table = torch.zeros(size, in_features)
    return table.index_put_((kept % size, kept % in_features), torch.ones(()), accumulate=True)


def output_groups(kind: str, out_features: int, size: int) -> Tensor:
    """Return the group of every output, one-hot, shape (O, R)."""
    strided = torch.arange(out_features) % size
    groups = strided if kind == "strided" else torch.arange(size).repeat_interleave(group_sizes(out_features, size))
    return one_hot(groups, size).float()


class ReMoRAAdapter(Adapter):
    """M (R, R), D (O, I), and the groups as matrices: C (R, I) sums each group's inputs, E (O, R) gives to its outputs.

    Groups are drawn anew, so they are no reshaping, as in MoRA. On a GPU multiplying by a matrix of zeros and ones is
    far cheaper than gathering by index, whose backward pass adds to one place at a time.
    """

    merged: Tensor
    compress: Tensor
    expand: Tensor

    def __init__(
        self,
        layer: nn.Linear,
        size: int,
        groups: str,
        padding: str,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__(layer)
        self.groups, self.padding = groups, padding
        self.m = nn.Parameter(torch.zeros(size, size, device=self.device, dtype=self.dtype))
        self.dropout = Dropout(dropout, generator, self.device)
        merged = torch.zeros(self.out_features, self.in_features, device=self.device, dtype=self.dtype)
        self.register_buffer("merged", merged)
        self.register_buffer("compress", input_groups("strided", self.in_features, size, padding).to(merged))
        self.register_buffer("expand", output_groups("strided", self.out_features, size).to(merged))

    def forward(self, x: Tensor, base_output: Tensor) -> Tensor:
        """Return ``W x + D x + E M C x``; dropout acts on the last term only."""
        update = linear(linear(linear(self.dropout(x), self.compress), self.m), self.expand)
        return base_output + linear(x, self.merged) + update

    def delta_weight(self) -> Tensor:
        """Return ``D + E M C``, shape (O, I)."""
        return self.merged + self.expand @ self.m @ self.compress

    @torch.no_grad()
    def merge(self, cycle: int, generator: torch.Generator) -> None:
        """Move the update into D, zero M, regroup for a cycle (from 0); the function stays the same."""
        self.merged.copy_(self.delta_weight())
        self.m.zero_()
        kinds = CYCLES.get(self.groups, (("strided", "strided"),))
        inputs_kind, outputs_kind = kinds[cycle % len(kinds)]
        compress = input_groups(inputs_kind, self.in_features, len(self.m), self.padding)
        expand = output_groups(outputs_kind, self.out_features, len(self.m))
        if self.groups == "permutation":
            compress = compress[:, torch.randperm(self.in_features, generator=generator).argsort()]
            expand = expand[torch.randperm(self.out_features, generator=generator)]
        self.compress.copy_(compress)
        self.expand.copy_(expand)


@dataclass(frozen=True)
class ReMoRAConfig(RestartConfig):
    """Settings of ReMoRA."""

    r: int = setting(8, "rank of the LoRA whose parameters M gets; 128 in the paper", minimum=1)
    timing: str = setting(
        "mora_repo", "merge after update T (mora_repo) or T + 1 (as ReLoRA)", choices=("official", "mora_repo")
    )
    reset: str = setting(
        "delete",
        "moments at a merge: the state deleted with its step counter (mora_repo), all erased, or erased at random or "
        "by size (as ReLoRA)",
        choices=("random_pruning", "magnitude_pruning", "zero", "delete"),
    )
    groups: str = setting(
        "official",
        "how groups change at a merge: through the code's sharing types 1-2-3-4 or 1-2, or drawn anew",
        choices=("permutation", "official", "alternate"),
    )
    rounding: str = setting(
        "code", "side of M: nearest integer (published code) or floor (paper)", choices=("code", "paper")
    )
    padding: str = setting(
        "wrap",
        "what fills strided groups: x from its start (published code) or zero",
        choices=("wrap", "zero"),
    )
    dropout: float = setting(0.0, "probability of dropping an input element of the update", minimum=0, maximum=0.99)


class ReMoRA(Restarting):
    """High-rank updating with merges, restarts and new groups."""

    name = "remora"
    title = "ReMoRA"
    paper = "https://arxiv.org/abs/2405.12130"
    citation = "Jiang, Huang, Luo, Zhang, Huang, Wei, Deng, Sun, Zhang, Wang, Zhuang: MoRA, 2024"
    formula = "round(sqrt((I + O) r))^2"
    Config = ReMoRAConfig

    def trainable_parameters(self, in_features: int, out_features: int) -> int:
        """Return ``R^2``."""
        return square_size(in_features, out_features, self.config.r, self.config.rounding) ** 2

    def adapter(self, linear: nn.Linear, generator: torch.Generator) -> ReMoRAAdapter:
        """Build M, the empty D and the first groups for one layer."""
        c = self.config
        size = square_size(linear.in_features, linear.out_features, c.r, c.rounding)
        return ReMoRAAdapter(linear, size, c.groups, c.padding, c.dropout, generator)

    def merge(self, adapter: Any, cycle: int, generator: torch.Generator) -> None:
        """Merge one layer's adapter and regroup."""
        adapter.merge(cycle, generator)


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register ReMoRA."""
    return [ReMoRA]
