"""Decompositions are exact, agree between dtypes, and are computed once per content."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch

from harness import svd

SHAPES = [(60, 100), (100, 60), (64, 64), (1, 9), (9, 1)]


def draw(shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def check(weight, tolerance):
    """Check every property of an economy SVD of ``weight``."""
    u, s, vh = svd(weight)
    size = min(weight.shape)
    assert (u.shape, s.shape, vh.shape) == ((weight.shape[0], size), (size,), (size, weight.shape[1]))
    close = {"rtol": 0, "atol": tolerance * weight.double().norm().item()}
    u, s, vh = u.double(), s.double(), vh.double()
    torch.testing.assert_close(u * s @ vh, weight.double(), **close)
    torch.testing.assert_close(s, torch.linalg.svdvals(weight.double()), **close)
    one = torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(u.T @ u, one, rtol=0, atol=tolerance)
    torch.testing.assert_close(vh @ vh.T, one, rtol=0, atol=tolerance)
    assert (s.diff() <= 0).all()
    assert (u.gather(0, u.abs().argmax(0, keepdim=True)) > 0).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)]
)
def test_it_is_an_economy_svd(shape, dtype, tolerance):
    check(draw(shape, dtype), tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_matrix_without_full_rank_still_gets_orthonormal_vectors(dtype):
    weight = draw((40, 5), dtype) @ draw((5, 30), dtype, seed=1)
    check(weight, 1e-6)
    check(torch.zeros(12, 20, dtype=dtype), 1e-6)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_the_smallest_component_of_a_float32_matrix_is_as_good_as_float64s(shape):
    """A spectrum over four decades, more than the weights of language models have."""
    u, _, vh = torch.linalg.svd(draw(shape), full_matrices=False)
    weight = (u * torch.logspace(0, -4, min(shape), dtype=torch.float64) @ vh).float()
    found, exact = svd(weight), torch.linalg.svd(weight.double(), full_matrices=False)
    for part in (slice(0, 4), slice(-4, None)):
        one = found.u.double()[:, part] * found.s.double()[part] @ found.vh.double()[part]
        other = exact.U[:, part] * exact.S[part] @ exact.Vh[part]
        assert ((one - other).norm() / other.norm()).item() < 1e-6


def test_dtype_is_the_weights_but_at_least_float32():
    for given, kept in [(torch.bfloat16, torch.float32), (torch.float32,) * 2, (torch.float64,) * 2]:
        assert {t.dtype for t in svd(draw((6, 8), given))} == {kept}


def test_equal_contents_are_decomposed_once():
    weight = draw((30, 20), seed=3)
    assert svd(weight) is svd(weight.clone())
    assert svd(weight) is svd(weight.T.contiguous().T), "the layout in memory is not the content"


def one_bit(weight):
    weight.view(torch.int64)[4, 5] ^= 1


def complement(weight):
    weight.view(torch.int64)[4, 5] = ~weight.view(torch.int64)[4, 5]


def swap(weight):
    weight[4, 5], weight[4, 6] = weight[4, 6].clone(), weight[4, 5].clone()


def negate(weight):
    weight.neg_()


@pytest.mark.parametrize("change", [one_bit, complement, swap, negate])
def test_any_change_of_content_is_seen(change):
    weight = draw((30, 20), seed=4)
    changed = weight.clone()
    change(changed)
    assert not torch.equal(weight, changed)
    assert svd(weight) is not svd(changed)


@pytest.mark.parametrize("change", [one_bit, complement, swap, negate])
def test_a_change_of_an_announced_weight_is_seen(change):
    weight = draw((30, 20), seed=11)
    import_module("harness.engine.decomposition").announce([weight])
    before = svd(weight)
    assert svd(weight) is before
    assert svd(weight.clone()) is before, "an announced weight's content is looked up like any other's"
    change(weight)
    assert svd(weight) is not before


def test_part_of_an_announced_weight_is_not_taken_for_it():
    weight = draw((30, 20), seed=12)
    import_module("harness.engine.decomposition").announce([weight])
    assert svd(weight).u.shape == (30, 20)
    assert svd(weight[:10]).u.shape == (10, 10)


def test_matrices_of_a_batch_are_decomposed_as_alone():
    """Several shapes and dtypes, one of them of low rank, in one call."""
    weights = [draw((24, 16), torch.float32, seed) for seed in range(3)]
    weights += [draw((16, 24), torch.float32), draw((24, 16)), torch.zeros(24, 16)]
    module = import_module("harness.engine.decomposition")
    for weight, together in zip(weights, module._decompose(weights), strict=True):
        for one, other in zip(together, svd(weight, cache=False), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_shape_and_dtype_are_part_of_the_content():
    flat = torch.zeros(6, 4)
    assert svd(flat).u.shape != svd(flat.reshape(4, 6)).u.shape
    assert svd(flat).u.dtype != svd(torch.zeros(6, 2, dtype=torch.float64)).u.dtype


def test_without_the_cache_nothing_is_kept():
    weight = draw((30, 20), seed=5)
    once = svd(weight, cache=False)
    again = svd(weight)
    assert once is not again
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_the_least_recently_used_goes_first_when_the_cache_is_full(monkeypatch):
    first, second, third = (draw((30, 20), seed=seed) for seed in (6, 7, 8))
    bytes_each = sum(t.nbytes for t in svd(first, cache=False))
    module = import_module("harness.engine.decomposition")
    monkeypatch.setattr(module, "_cache", type(module._cache)())
    monkeypatch.setattr(module, "CACHE_BYTES", 2 * bytes_each)
    kept, dropped = svd(first), svd(second)
    assert svd(first) is kept
    svd(third)
    assert svd(first) is kept
    assert svd(second) is not dropped


def test_one_entry_is_kept_however_large(monkeypatch):
    monkeypatch.setattr(import_module("harness.engine.decomposition"), "CACHE_BYTES", 0)
    weight = draw((30, 20), seed=9)
    assert svd(weight) is svd(weight)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_gpu_gives_what_a_cpu_gives(dtype):
    weight = draw((60, 100), dtype)
    for one, other in zip(svd(weight.cuda()), svd(weight), strict=True):
        assert one.is_cuda
        torch.testing.assert_close(one.cpu(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_announced_weights_are_decomposed_together_on_a_gpu() -> None:
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(40, 24, generator=generator).cuda() for _ in range(5)]
    module = import_module("harness.engine.decomposition")
    module.announce(weights)
    before = len(module._cache)
    first = svd(weights[2])
    assert len(module._cache) == before + 5
    for weight in weights:
        u, s, vh = svd(weight)
        torch.testing.assert_close((u * s) @ vh, weight, rtol=1e-5, atol=1e-5)
    assert svd(weights[2]).u is first.u


@pytest.mark.parametrize("smallest", [1.0, 1e-2, 1e-6])
def test_factors_are_orthogonal_whatever_the_condition(smallest: float) -> None:
    generator = torch.Generator().manual_seed(4)
    left = torch.linalg.qr(torch.randn(30, 20, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64)).Q
    spectrum = torch.logspace(0, math.log10(smallest), 20, dtype=torch.float64)
    u, _, vh = svd(((left * spectrum) @ right).float(), cache=False)
    one = torch.eye(20)
    torch.testing.assert_close(u.T @ u, one, rtol=0, atol=2e-6)
    torch.testing.assert_close(vh @ vh.T, one, rtol=0, atol=2e-6)
