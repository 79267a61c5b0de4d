"""NF4: a matrix in 4 bits a value, as QLoRA defines it, in plain PyTorch.

64 values in a row, in row-major order, are a block. Each block is divided by its largest absolute value, which is kept
in float32, and every quotient becomes the nearest of 16 levels: quantiles of the normal distribution, stretched to
[-1, 1], with an exact zero. The last block may be shorter.

Source: Dettmers, Pagnoni, Holtzman, Zettlemoyer, "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS 2023,
arXiv:2305.14314, section 3 and appendix E. What is not here: the second quantisation, of the blocks' largest values.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 64
# The outermost quantile: the mean of 1 - 1/32 and 1 - 1/30, as 8 levels stand above zero and 7 below.
OUTERMOST = 0.9677083


class NF4(NamedTuple):
    """A quantised matrix.

    Attributes:
        codes: Two levels' numbers in each byte, the first in the upper half, (ceil(n / 2),) uint8.
        largest: The largest absolute value of each block, (ceil(n / 64),) float32.
    """

    codes: Tensor
    largest: Tensor


@cache
def levels(device: torch.device) -> Tensor:
    """Return the 16 levels, ascending, float32."""
    above = torch.special.ndtri(torch.linspace(OUTERMOST, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(OUTERMOST, 0.5, 8, dtype=torch.float64)[:-1])
    every = torch.cat((above, torch.zeros(1, dtype=torch.float64), below)).sort().values
    return (every / every[-1]).to(device, torch.float32)


def quantise(matrix: Tensor) -> NF4:
    """Return a matrix of any floating dtype and shape in 4 bits a value."""
    values = matrix.detach().float().flatten()
    blocks = pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
    largest = blocks.abs().amax(1)
    table = levels(matrix.device)
    middles = (table[1:] + table[:-1]) / 2
    scaled = blocks / torch.where(largest > 0, largest, 1.0).unsqueeze(1)
    numbers = torch.bucketize(scaled, middles).flatten()[: len(values) + len(values) % 2].to(torch.uint8)
    return NF4(numbers[::2] << 4 | numbers[1::2], largest)


def dequantise(packed: NF4, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return the matrix that a quantised one stands for."""
    codes, largest = packed
    numbers = torch.stack((codes >> 4, codes & 15), dim=-1).flatten()
    count = 1
    for size in shape:
        count *= size
    values = levels(codes.device)[numbers[:count].int()]
    scale = largest.repeat_interleave(BLOCK, output_size=BLOCK * largest.shape[0])[:count]
    return (values * scale).view(shape).to(dtype)
