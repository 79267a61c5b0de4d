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
MOST_TOKENS = 2**20  # per example: rows are counted this far apart


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
        uniform = self._bits(x.shape, x.device)
        keep = uniform >= round(self.p * 2**32)
        return torch.where(keep, x, 0.0) / (1.0 - self.p)

    def _bits(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Return 32 random bits per element of x (..., T, I), as int64.

        An element's bits depend on its place (row, token, feature) and not on T, so that padding a batch further, as
        happens beside a trial with longer examples, changes no mask.
        """
        features, tokens = shape[-1], shape[-2] if len(shape) > 1 else 1
        pairs = (features + 1) // 2  # one 64-bit hash serves two elements: hashing is what this costs
        rows = torch.arange(shape.numel() // max(1, tokens * features), device=device, dtype=torch.int64)
        place = rows[:, None] * MOST_TOKENS + torch.arange(tokens, device=device, dtype=torch.int64)
        position = place[..., None] * pairs + torch.arange(pairs, device=device, dtype=torch.int64)
        words = splitmix64(splitmix64(self.seed + self.step * GOLDEN) + position * GOLDEN)
        halves = torch.stack([words & 0xFFFFFFFF, _shift(words, 32)], dim=-1)
        return halves.flatten(-2)[..., :features].reshape(shape)

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
