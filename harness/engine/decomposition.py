"""Singular value decompositions of frozen weights, computed once and shared by trials, ranks and methods.

The cache is keyed by the weight's content, so a reloaded model finds what an earlier trial computed.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.contract.dropout import GOLDEN, splitmix64
from harness.engine.eigen import symmetric_eigen

CACHE_BYTES = 8 << 30  # a 250M LLaMA needs about 2 GiB
AT_ONCE_BYTES = 4 << 30  # of Gram matrices decomposed together on a GPU; the work takes up to 20 times their size


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
_announced: dict[int, weakref.ref[Tensor]] = {}  # by address
_keys: dict[int, tuple[int, tuple[object, ...]]] = {}  # of announced weights, by address: version and key


def announce(weights: Iterable[Tensor]) -> None:
    """Say which frozen weights belong together: on a GPU, asking for the first then decomposes all of them at once.

    Nothing is computed before one is asked for. The weights of an earlier call are forgotten.
    """
    _keys.clear()
    _announced.clear()
    _announced.update((weight.data_ptr(), weakref.ref(weight)) for weight in weights)


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
        return _decompose([weight])[0]
    key = _key(weight)
    if key not in _cache:
        together = _announced_with(weight)
        for each, factors in zip(together, _decompose(together), strict=True):
            _keep(_key(each), factors)
    _cache.move_to_end(key)
    return _cache[key]


def _keep(key: tuple[object, ...], factors: Svd) -> None:
    _cache[key] = factors
    while len(_cache) > 1 and sum(t.nbytes for entry in _cache.values() for t in entry) > CACHE_BYTES:
        _cache.popitem(last=False)


def _announced_with(asked: Tensor) -> list[Tensor]:
    """Return what to decompose: on a GPU all announced weights, if this is one and the cache holds them; else this."""
    alive = [weight.detach() for reference in _announced.values() if (weight := reference()) is not None]
    weights = [weight for weight in alive if weight.device == asked.device]
    bytes_needed = sum(4 * min(w.shape) * (sum(w.shape) + 1) for w in weights)
    is_among = any(_is_same(weight, asked) for weight in weights)
    return weights if asked.is_cuda and is_among and bytes_needed < CACHE_BYTES else [asked]


def _is_same(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are the same memory, read the same way."""
    return (a.data_ptr(), a.shape, a.stride(), a.dtype) == (b.data_ptr(), b.shape, b.stride(), b.dtype)


def _key(weight: Tensor) -> tuple[object, ...]:
    """Return the content key; that of an announced weight is computed once, as long as nothing is written to it."""
    reference = _announced.get(weight.data_ptr())
    announced = reference() if reference is not None else None
    if announced is None or not _is_same(announced, weight):
        return _content_key(weight)
    version, key = _keys.get(weight.data_ptr(), (None, ()))
    if version != weight._version:
        key = _content_key(weight)
        _keys[weight.data_ptr()] = (weight._version, key)
    return key


def _decompose(weights: Sequence[Tensor]) -> list[Svd]:
    """Return the SVDs, signs fixed, of any floating matrices on one device; those of one shape are done together."""
    results: dict[int, Svd] = {}
    for places in _batches(weights):
        batch = torch.stack([weights[place] for place in places])
        keep = torch.promote_types(batch.dtype, torch.float32)
        direct = keep is torch.float64
        u, s, vh = torch.linalg.svd(batch, full_matrices=False) if direct else _through_gram_matrix(batch.double())
        largest = u.gather(-2, u.abs().argmax(-2, keepdim=True))
        sign = torch.where(largest < 0, -1.0, 1.0).to(u.dtype)
        factors = ((u * sign).to(keep), s.to(keep), (vh * sign.mT).to(keep))
        for place, *one in zip(places, *factors, strict=True):
            results[place] = Svd(*(each.clone() for each in one))  # each in memory of its own, to be freed by itself
    return [results[place] for place in range(len(weights))]


def _batches(weights: Sequence[Tensor]) -> Iterator[list[int]]:
    """Yield the places of matrices of one shape and dtype, as many as are worth doing at once."""
    alike: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for place, weight in enumerate(weights):
        alike[weight.shape, weight.dtype].append(place)
    most = AT_ONCE_BYTES
    if weights[0].is_cuda:
        most = min(most, torch.cuda.mem_get_info(weights[0].device)[0] // 32)
    for places in alike.values():
        count = max(1, most // (8 * min(weights[places[0]].shape) ** 2))
        yield from (places[start : start + count] for start in range(0, len(places), count))


def _through_gram_matrix(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (u, s, vh) of float64 matrices (N, O, I) by the eigenvectors of the smaller of their two Gram matrices."""
    is_wide = weights.shape[-2] <= weights.shape[-1]
    wide = weights if is_wide else weights.mT
    squares, u = symmetric_eigen(wide @ wide.mT)
    u, s = u.flip(-1), squares.flip(-1).clamp_min(0).sqrt()
    product = wide.mT @ u
    v = product / s.unsqueeze(-2)
    # By QR instead where s is tiny: dividing by it amplifies rounding, and s = 0 leaves no direction.
    for place in (s[:, -1] <= 1e-4 * s[:, 0]).nonzero().flatten().tolist():
        q, triangle = torch.linalg.qr(product[place])
        v[place] = q * torch.where(triangle.diagonal() < 0, -1.0, 1.0)
    return (u, s, v.mT) if is_wide else (v, s, u.mT)


def _content_key(weight: Tensor) -> tuple[object, ...]:
    """Return a key that equal contents share and others do not: a 128-bit hash, computed on the device."""
    contents = weight.contiguous().view(torch.uint8).flatten()
    words = pad(contents, (0, -contents.numel() % 8)).view(torch.int64)
    position = torch.arange(words.numel(), device=weight.device, dtype=torch.int64)
    salted = words + splitmix64(position * GOLDEN)
    hashes = torch.stack([splitmix64(salted + salt).sum() for salt in (0, GOLDEN)])
    return (tuple(weight.shape), weight.dtype, str(weight.device), *hashes.tolist())
