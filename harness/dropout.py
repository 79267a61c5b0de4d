"""Dropout whose mask is a pure function of (seed, step, position).

PyTorch's own dropout draws from one global stream, so a trial's mask would depend on which other trials run
beside it. Here every mask is computed by hashing a counter (the construction of SplitMix64, Steele et al.
2014, doi:10.1145/2660193.2660195), so a trial sees the same masks alone, stacked with others, recomputed
under activation checkpointing, or replayed in a CUDA graph, on every device.

What is not here: who calls ``advance`` (the training loop, once per micro-batch).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.errors import ConfigError

GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


class Dropout(nn.Module):
    """Zero each element with probability ``p`` and scale the rest by ``1 / (1 - p)``, in training mode only.

    Args:
        p: Probability, 0 <= p < 1, exact to 2^-33.
        generator: Gives this module its seed.
        device: Where the counter lives: the adapter's device.

    Raises:
        ConfigError: ``p`` is outside its range.
    """

    seed: Tensor
    step: Tensor

    def __init__(self, p: float, generator: torch.Generator, device: torch.device | None = None) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ConfigError(f"Dropout: p={p!r} is not allowed; give a probability >= 0 and < 1")
        self.p = p
        seed = torch.randint(2**62, (), generator=generator, dtype=torch.int64)
        # Not persistent: they are part of a training run, not of the trained adapter.
        self.register_buffer("seed", seed.to(device), persistent=False)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64, device=device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with elements dropped; ``x`` itself in evaluation mode or when ``p`` is 0."""
        if self.p == 0.0 or not self.training:
            return x
        # One 64-bit hash serves two elements: hashing is what this costs.
        position = torch.arange((x.numel() + 1) // 2, device=x.device, dtype=torch.int64)
        words = splitmix64(splitmix64(self.seed + self.step * GOLDEN) + position * GOLDEN)
        bits = words.view(torch.int32)[: x.numel()].view(x.shape)
        keep = bits >= round(self.p * 2**32) - 2**31
        return torch.where(keep, x, 0.0) / (1.0 - self.p)

    def advance(self) -> None:
        """Move on to the next step's mask. The harness calls this once per micro-batch."""
        self.step.add_(1)


def splitmix64(z: Tensor) -> Tensor:
    """Scramble 64-bit integers one by one by SplitMix64's finaliser, in wrapping signed arithmetic."""
    z = (z ^ _shift(z, 30)) * MIX_1
    z = (z ^ _shift(z, 27)) * MIX_2
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shift right without sign extension."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
