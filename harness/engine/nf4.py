"""NF4: a matrix in 4 bits a value, as QLoRA defines it, in plain PyTorch: the same numbers on every machine.

64 values in a row, in row-major order, are a block. Each block is divided by its largest absolute value, which is kept
in float32, and every quotient becomes the nearest of 16 levels: quantiles of the normal distribution, stretched to
[-1, 1], with an exact zero. The last block may be shorter.

Double quantisation keeps the blocks' largest values in 8 bits: less their mean, in groups of 256, each divided by its
largest absolute value, as floats of 8 bits (4 of exponent, 3 of mantissa).

Source: Dettmers, Pagnoni, Holtzman, Zettlemoyer, "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS 2023,
arXiv:2305.14314, section 3 and appendix E. The 8-bit floats are the paper's words; ``bitsandbytes`` has another 8-bit
code there, so that its doubly quantised values differ from these by up to a few per cent of a block's scale.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 64
GROUP = 256  # blocks
# The outermost quantile: the mean of 1 - 1/32 and 1 - 1/30, as 8 levels stand above zero and 7 below.
OUTERMOST = 0.9677083
FLOAT8 = torch.float8_e4m3fn


class NF4(NamedTuple):
    """A quantised matrix.

    Attributes:
        codes: Two levels' numbers in each byte, the first in the upper half, (ceil(n / 2),) uint8.
        largest: The largest absolute value of each block, (ceil(n / 64),) float32.
    """

    codes: Tensor
    largest: Tensor


class Scales(NamedTuple):
    """The blocks' largest absolute values, quantised themselves.

    Attributes:
        fine: One float of 8 bits for each block, (ceil(n / 64),), as bytes.
        coarse: The largest of each group, as a multiple of the largest such float, (ceil(n / 16384),) float32.
        mean: Of all, () float32.
    """

    fine: Tensor
    coarse: Tensor
    mean: Tensor


@cache
def nf4_levels(device: torch.device) -> Tensor:
    """Return the 16 levels, ascending, float32."""
    above = torch.special.ndtri(torch.linspace(OUTERMOST, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(OUTERMOST, 0.5, 8, dtype=torch.float64)[:-1])
    every = torch.cat((above, torch.zeros(1, dtype=torch.float64), below)).sort().values
    return (every / every[-1]).to(device, torch.float32)


@cache
def pairs(device: torch.device) -> Tensor:
    """Return the two levels that each byte stands for, (256, 2) float32."""
    return torch.cartesian_prod(nf4_levels(device), nf4_levels(device)).contiguous()


def quantise_nf4(matrix: Tensor) -> NF4:
    """Return a matrix of any floating dtype and shape in 4 bits a value."""
    values = matrix.detach().float().flatten()
    blocks = pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
    largest = blocks.abs().amax(1)
    table = nf4_levels(matrix.device)
    middles = (table[1:] + table[:-1]) / 2
    scaled = blocks / torch.where(largest > 0, largest, 1.0).unsqueeze(1)
    numbers = torch.bucketize(scaled, middles).flatten()[: len(values) + len(values) % 2].to(torch.uint8)
    return NF4(numbers[::2] << 4 | numbers[1::2], largest)


def dequantise_nf4(packed: NF4, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return the matrix that a quantised one stands for."""
    return unpack(packed.codes, packed.largest, pairs(packed.codes.device), shape, dtype)


def unpack(codes: Tensor, largest: Tensor, table: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return the matrix of ``codes`` and ``largest`` as ``NF4`` has them, looked up in ``pairs`` of their device."""
    if codes.is_cuda and dtype is torch.bfloat16 and (kernel := fused(codes.device)) is not None:
        return kernel(codes, largest, shape)
    values = table[codes.int()].flatten()
    if missing := BLOCK * largest.shape[0] - values.shape[0]:
        values = pad(values, (0, missing))
    return (values.view(-1, BLOCK) * largest.unsqueeze(1)).flatten()[: prod(shape)].view(shape).to(dtype)


@cache
def fused(device: torch.device) -> Callable[[Tensor, Tensor, tuple[int, ...]], Tensor] | None:
    """Return ``unpack`` into bfloat16 as one kernel, of ``bitsandbytes``; ``None`` where it is not to be had.

    On a GPU the steps of ``unpack`` take three times as long as the product that they are for. The kernel is used where
    it is installed and gives the very values that ``unpack`` gives, which is tried here.
    """
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it says what it lacks on a CPU
    try:
        import bitsandbytes  # noqa: F401 - brings the operator
    except Exception:  # noqa: BLE001 - whatever is wrong with an installation, there is another way
        return None
    finally:
        logger.setLevel(level)

    def kernel(codes: Tensor, largest: Tensor, shape: tuple[int, ...]) -> Tensor:
        operator = torch.ops.bitsandbytes.dequantize_4bit.default
        values: Tensor = operator(codes.view(-1, 1), largest, BLOCK, "nf4", list(shape), torch.bfloat16)
        return values

    shape = (48, 1024)
    packed = quantise_nf4(torch.linspace(-1, 1, prod(shape), device=device).view(shape).pow(3))
    plain = pairs(device)[packed.codes.int()].view(-1, BLOCK) * packed.largest.unsqueeze(1)
    try:
        same = torch.equal(kernel(*packed, shape), plain.view(shape).bfloat16())
    except (RuntimeError, NotImplementedError):  # built for another device
        same = False
    return kernel if same else None


def quantise_scales(largest: Tensor) -> Scales:
    """Return the blocks' largest values in 8 bits each."""
    mean = largest.mean()
    groups = pad(largest - mean, (0, -len(largest) % GROUP)).view(-1, GROUP)
    coarse = groups.abs().amax(1) / torch.finfo(FLOAT8).max
    fine = groups / torch.where(coarse > 0, coarse, 1.0).unsqueeze(1)
    return Scales(fine.to(FLOAT8).flatten()[: len(largest)].view(torch.uint8), coarse, mean)


def dequantise_scales(scales: Scales) -> Tensor:
    """Return the blocks' largest values, (ceil(n / 64),) float32."""
    fine = scales.fine.view(FLOAT8).float()
    groups = pad(fine, (0, GROUP * scales.coarse.shape[0] - fine.shape[0])).view(-1, GROUP)
    return (groups * scales.coarse.unsqueeze(1)).flatten()[: fine.shape[0]] + scales.mean
