"""Eigenvectors of batches are those of PyTorch, whichever solver computes them."""

from __future__ import annotations

import pytest
import torch

from harness.engine.eigen import symmetric_eigen


def symmetric(count, n, dtype, device="cpu"):
    draw = torch.randn(count, n, 2 * n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (draw @ draw.mT / n).to(device, dtype)


def check(matrices, tolerance):
    before = matrices.clone()
    values, vectors = symmetric_eigen(matrices)
    assert torch.equal(matrices, before), "the input is left as it was"
    close = {"rtol": 0, "atol": tolerance * float(matrices.abs().max())}
    torch.testing.assert_close(matrices @ vectors, vectors * values.unsqueeze(-2), **close)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(matrices), **close)
    one = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device).expand_as(matrices)
    torch.testing.assert_close(vectors.mT @ vectors, one, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("count", [1, 3])
def test_eigenvectors_on_a_cpu(count, dtype, tolerance):
    check(symmetric(count, 17, dtype), tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-3)])
@pytest.mark.parametrize(("count", "n"), [(1, 64), (5, 1), (7, 65), (40, 200)])
def test_eigenvectors_on_a_gpu(count, n, dtype, tolerance):
    matrices = symmetric(count, n, dtype, "cuda")
    check(matrices, tolerance)
    with torch.cuda.stream(torch.cuda.Stream()):
        check(matrices + 0, tolerance)


@pytest.mark.gpu
def test_a_current_gpu_has_the_batched_solver():
    from harness.engine.eigen import _solver

    assert _solver(torch.device("cuda", 0)) is not None
