"""Singular value decompositions of frozen weights, computed once and shared by trials, ranks and methods.

The cache is keyed by the weight's content, so a reloaded model finds what an earlier trial computed.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.dropout import GOLDEN, splitmix64

CACHE_BYTES = 8 << 30  # a 250M LLaMA needs about 2 GiB


class Svd(NamedTuple):
    """``weight = u @ diag(s) @ vh``, of economy size ``K = min(O, I)``.

    Read the tensors, never write them: they are shared.

    Attributes:
        u: Left singular vectors, (O, K). The largest entry of each is positive, so that every machine agrees
        on signs.
        s: Singular values, (K,), descending.
        vh: Right singular vectors, (K, I).
    """

    u: Tensor
    s: Tensor
    vh: Tensor


_cache: OrderedDict[tuple[object, ...], Svd] = OrderedDict()


def svd(weight: Tensor, *, cache: bool = True) -> Svd:
    """Return the exact economy SVD of a matrix (O, I), on its device, in at least float32.

    A float64 matrix is decomposed directly. One of float32 or less goes through the eigenvectors of its Gram
    matrix in float64, which on a GPU is several times faster: squaring costs half of float64's digits, and
    what is left is more than float32 holds.

    Args:
        weight: The matrix, any floating dtype.
        cache: Look the answer up and keep it. Turn off for a matrix that is asked for once, e.g. a gradient.
    """
    weight = weight.detach()
    if not cache:
        return _decompose(weight)
    key = _content_key(weight)
    if key not in _cache:
        _cache[key] = _decompose(weight)
        while len(_cache) > 1 and sum(t.nbytes for entry in _cache.values() for t in entry) > CACHE_BYTES:
            _cache.popitem(last=False)
    _cache.move_to_end(key)
    return _cache[key]


def _decompose(weight: Tensor) -> Svd:
    """Return the SVD, signs fixed, of any floating matrix."""
    keep = torch.promote_types(weight.dtype, torch.float32)
    direct = keep is torch.float64
    u, s, vh = torch.linalg.svd(weight, full_matrices=False) if direct else _through_gram_matrix(weight.double())
    largest = u.gather(0, u.abs().argmax(0, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(u.dtype)
    return Svd((u * sign).to(keep), s.to(keep), (vh * sign.mT).to(keep))


def _through_gram_matrix(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (u, s, vh) of a float64 (O, I) by ``eigh`` of the smaller of its two Gram matrices."""
    is_wide = weight.shape[0] <= weight.shape[1]
    wide = weight if is_wide else weight.mT
    squares, u = torch.linalg.eigh(wide @ wide.mT)
    u, s = u.flip(-1), squares.flip(-1).clamp_min(0).sqrt()
    # v = W^T u / s, but by QR: dividing by a tiny s amplifies rounding, and s = 0 leaves no direction.
    v, triangle = torch.linalg.qr(wide.mT @ u)
    v = v * torch.where(triangle.diagonal() < 0, -1.0, 1.0)
    return (u, s, v.mT) if is_wide else (v, s, u.mT)


def _content_key(weight: Tensor) -> tuple[object, ...]:
    """Return a key that equal contents share and others do not: a 128-bit hash, computed on the device."""
    contents = weight.contiguous().view(torch.uint8).flatten()
    words = pad(contents, (0, -contents.numel() % 8)).view(torch.int64)
    position = torch.arange(words.numel(), device=weight.device, dtype=torch.int64)
    salted = words + splitmix64(position * GOLDEN)
    hashes = torch.stack([splitmix64(salted + salt).sum() for salt in (0, GOLDEN)])
    return (tuple(weight.shape), weight.dtype, str(weight.device), *hashes.tolist())
