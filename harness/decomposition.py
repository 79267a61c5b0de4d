"""Singular value decompositions of frozen weights, computed once and shared by trials, ranks and methods.

The cache is keyed by the weight's content, so a reloaded model finds what an earlier trial computed.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.dropout import GOLDEN, splitmix64

CACHE_BYTES = 8 << 30  # a 250M LLaMA needs about 2 GiB
GPU_STREAMS = 8  # decompositions at once: one alone leaves most of a GPU idle


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
_announced: list[weakref.ref[Tensor]] = []


def announce(weights: Iterable[Tensor]) -> None:
    """Say which weights belong together: on a GPU, asking for the first then decomposes all of them at once.

    Nothing is computed before one is asked for. The weights of an earlier call are forgotten.
    """
    _announced[:] = [weakref.ref(weight) for weight in weights]


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
        _decompose_announced(weight)
    if key not in _cache:
        _keep(key, _decompose(weight))
    _cache.move_to_end(key)
    return _cache[key]


def _keep(key: tuple[object, ...], factors: Svd) -> None:
    _cache[key] = factors
    while len(_cache) > 1 and sum(t.nbytes for entry in _cache.values() for t in entry) > CACHE_BYTES:
        _cache.popitem(last=False)


def _decompose_announced(asked: Tensor) -> None:
    """Decompose all announced weights on the GPU of the one asked for, if it is among them and the cache holds them."""
    weights = [w.detach() for ref in _announced if (w := ref()) is not None and w.device == asked.device]
    bytes_needed = sum(4 * min(w.shape) * (sum(w.shape) + 1) for w in weights)
    is_among = any(w.data_ptr() == asked.data_ptr() for w in weights)
    if asked.is_cuda and is_among and bytes_needed < CACHE_BYTES:
        for weight, factors in zip(weights, _decompose_at_once(weights), strict=True):
            _keep(_content_key(weight), factors)


def _decompose_at_once(weights: Sequence[Tensor]) -> list[Svd]:
    """Return the SVDs of weights on one GPU, computed on several streams."""
    main = torch.cuda.current_stream(weights[0].device)
    main.synchronize()

    def work(weight: Tensor) -> Svd:
        stream = torch.cuda.Stream(weight.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            factors = _decompose(weight)
            stream.synchronize()
        for each in factors:
            each.record_stream(main)
        return factors

    with ThreadPoolExecutor(GPU_STREAMS) as pool:
        return list(pool.map(work, weights))


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
    if s[-1] > 1e-4 * s[0]:
        v = (wide.mT @ u) / s
        return (u, s, v.mT) if is_wide else (v, s, u.mT)
    # By QR instead: dividing by a tiny s amplifies rounding, and s = 0 leaves no direction.
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
