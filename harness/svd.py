"""Singular value decompositions of frozen weights, computed once per weight and shared by trials, ranks and methods.

The cache is keyed by the weight's content, so a reloaded model finds what an earlier trial computed.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor

CACHE_BYTES = 8 << 30  # a 250M LLaMA needs about 2 GiB


class Svd(NamedTuple):
    """``weight = u @ diag(s) @ vh``, economy size ``K = min(O, I)``, singular values in descending order, float64 or float32.

    Attributes:
        u: Left singular vectors, (O, K).
        s: Singular values, (K,).
        vh: Right singular vectors, (K, I).
    """

    u: Tensor
    s: Tensor
    vh: Tensor


_cache: OrderedDict[tuple[object, ...], Svd] = OrderedDict()


def svd(weight: Tensor) -> Svd:
    """Return the exact economy SVD of a weight (O, I), on its device, in at least float32; from the cache if it is known.

    On a GPU a weight of float32 or less goes through the eigenvectors of its Gram matrix in float64, several times
    faster than a direct SVD; squaring costs half of float64's digits, which leaves more than float32 has.
    """
    weight = weight.detach()
    key = _content_key(weight)
    if key in _cache:
        _cache.move_to_end(key)
        return _cache[key]
    keep = torch.promote_types(weight.dtype, torch.float32)
    if weight.is_cuda and keep is torch.float32:
        factors = _through_gram_matrix(weight.double())
    else:
        factors = Svd(*torch.linalg.svd(weight.double(), full_matrices=False))
    result = _cache[key] = Svd(*(t.to(keep) for t in factors))
    while len(_cache) > 1 and sum(t.nbytes for entry in _cache.values() for t in entry) > CACHE_BYTES:
        _cache.popitem(last=False)
    return result


def _through_gram_matrix(weight: Tensor) -> Svd:
    """Return the SVD of a float64 (O, I) or batch of matrices by ``eigh`` of the smaller Gram matrix."""
    wide = weight if weight.shape[-2] <= weight.shape[-1] else weight.mT
    squares, u = torch.linalg.eigh(wide @ wide.mT)
    u, s = u.flip(-1), squares.flip(-1).clamp_min(0).sqrt()
    # Small singular vectors are re-orthogonalised by QR: dividing by a tiny s would amplify rounding.
    v, r = torch.linalg.qr(wide.mT @ u)
    v = v * torch.sign(torch.diagonal(r, dim1=-2, dim2=-1)).unsqueeze(-2)
    return Svd(u, s, v.mT) if wide is weight else Svd(v, s, u.mT)


def _content_key(weight: Tensor) -> tuple[object, ...]:
    """Return a key that equal contents share and different contents do not: two universal hashes of all bits."""
    bits = weight.contiguous().view(torch.uint8).flatten()
    padded = torch.nn.functional.pad(bits, (0, -bits.numel() % 8)).view(torch.int64)
    position = torch.arange(padded.numel(), device=weight.device, dtype=torch.int64)
    hashes = [((padded ^ (padded >> 29)) * (position * factor + 1 | 1)).sum() for factor in (0x9E3779B1, 0x85EBCA6B)]
    return (tuple(weight.shape), weight.dtype, str(weight.device), *torch.stack(hashes).tolist())
