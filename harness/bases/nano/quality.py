"""The yardstick of ``nano``: bits per byte of text and of UUIDs that it was not trained on."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from harness.bases.nano import recipe
from harness.bases.nano.text import held_out_text


@dataclass(frozen=True)
class Quality:
    """How well a byte-level model predicts what it was not trained on, in bits per byte; lower is better.

    Attributes:
        text: The held-out modules of the standard library.
        uuid: Random UUIDs, hyphens included. The floor is 122 / 36 = 3.39, for 122 of the bits are random.
        hex_digit: The 30 digits of a UUID that are uniformly random: 4 at best.
        copy: The second of two equal UUIDs, side by side: 0 at best.
    """

    text: float
    uuid: float
    hex_digit: float
    copy: float


# Where a UUID of version 4 is not uniform: always '4', and one of '89ab'.
VERSION_DIGIT, VARIANT_DIGIT = 14, 19


@torch.no_grad()
def quality(model: Any, pairs: int = 128) -> Quality:
    """Measure a byte-level causal language model, in float32 on the device it is on.

    Args:
        model: Anything with ``model(input_ids=...).logits`` over the tokens of ``recipe``.
        pairs: UUID pairs to score; always the same ones for the same number.
    """
    device = next(model.parameters()).device

    def bits(rows: Tensor) -> Tensor:
        """Bits of each token after the first: (B, T) to (B, T - 1)."""
        chunks = []
        for chunk in torch.split(rows.to(device), 16):
            logits = model(input_ids=chunk[:, :-1], use_cache=False).logits.float()
            chunks.append(functional.cross_entropy(logits.transpose(1, 2), chunk[:, 1:], reduction="none"))
        return torch.cat(chunks).double().cpu() / math.log(2)

    def with_bos(texts: list[bytes]) -> Tensor:
        return torch.tensor([[recipe.BOS, *text] for text in texts])

    text = held_out_text()
    pieces = [
        text[start : start + recipe.TOKENS - 1] for start in range(0, len(text) - recipe.TOKENS, recipe.TOKENS - 1)
    ]
    generator = np.random.default_rng(2**32)  # beyond any seed one would train with
    drawn = [str(uuid.UUID(bytes=generator.bytes(16), version=4)) for _ in range(2 * pairs)]
    keys, values = drawn[:pairs], drawn[pairs:]
    strangers = bits(with_bos([f"{key} {value}".encode() for key, value in zip(keys, values, strict=True)]))
    copies = bits(with_bos([f"{key} {key}".encode() for key in keys]))
    first, second = strangers[:, :36], strangers[:, 37:]
    hyphens = [at for at, letter in enumerate(keys[0]) if letter == "-"]
    uniform = [at for at in range(36) if at not in (*hyphens, VERSION_DIGIT, VARIANT_DIGIT)]
    return Quality(
        text=bits(with_bos(pieces)).mean().item(),
        uuid=torch.cat([first, second]).mean().item(),
        hex_digit=torch.cat([first, second])[:, uniform].mean().item(),
        copy=copies[:, 37:].mean().item(),
    )
