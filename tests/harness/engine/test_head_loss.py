"""A head's cross-entropy without its logits is the plain one, forward and backward, in one piece or in many."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from harness.engine import head_loss
from harness.engine.head_loss import head_losses, to_errors


def problem(dtype, device="cpu", rows=11, width=7, vocabulary=23, bias=True):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()

    targets = torch.randint(vocabulary, (rows,), generator=generator).to(device)
    upstream = torch.rand(rows, generator=generator, dtype=torch.float64).to(device)
    return draw(rows, width), draw(vocabulary, width), draw(vocabulary) if bias else None, targets, upstream


def plain(hidden, weight, bias, targets):
    high = torch.promote_types(hidden.dtype, torch.float32)
    return cross_entropy(linear(hidden, weight, bias).to(high), targets, reduction="none")


def gradients(function, hidden, weight, bias, targets, upstream):
    losses = function(hidden, weight, bias, targets)
    wanted = [each for each in (hidden, weight, bias) if each is not None and each.requires_grad]
    return losses, torch.autograd.grad(losses, wanted, upstream.to(losses.dtype))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("most", [2**26, 60, 1])
def test_losses_and_gradients_are_those_of_the_plain_loss(bias, trains, most, monkeypatch):
    monkeypatch.setattr(head_loss, "MOST_LOGITS", most)
    hidden, weight, offset, targets, upstream = problem(torch.float64, bias=bias)
    if not trains:
        weight.requires_grad_(False)
        if offset is not None:
            offset.requires_grad_(False)
    found, found_gradients = gradients(head_losses, hidden, weight, offset, targets, upstream)
    expected, expected_gradients = gradients(plain, hidden, weight, offset, targets, upstream)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_there_are_never_more_logits_than_may_be(monkeypatch):
    monkeypatch.setattr(head_loss, "MOST_LOGITS", 60)
    seen = []
    monkeypatch.setattr(head_loss, "linear", lambda *args: seen.append(linear(*args)) or seen[-1])
    hidden, weight, bias, targets, upstream = problem(torch.float64)
    gradients(head_losses, hidden, weight, bias, targets, upstream)
    assert seen
    assert all(each.numel() <= 60 for each in seen)


def test_in_half_precision_losses_are_float32_and_as_exact_as_the_plain_ones():
    hidden, weight, bias, targets, upstream = problem(torch.bfloat16, rows=64, width=32, vocabulary=301)
    exact = gradients(
        plain, *(each.detach().double().requires_grad_() for each in (hidden, weight, bias)), targets, upstream
    )
    found = gradients(head_losses, hidden, weight, bias, targets, upstream)
    ordinary = gradients(plain, hidden, weight, bias, targets, upstream)
    assert found[0].dtype == torch.float32
    for one, other, reference in zip(
        (found[0], *found[1]), (ordinary[0], *ordinary[1]), (exact[0], *exact[1]), strict=True
    ):
        assert one.dtype == other.dtype
        assert (one - reference).norm() <= 1.5 * (other - reference).norm()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("vocabulary", [23, 4_096, 49_153])
def test_the_kernel_computes_what_plain_operations_do(gpu, dtype, vocabulary):
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(9, vocabulary, generator=generator)).to(gpu, dtype)
    targets = torch.randint(vocabulary, (9,), generator=generator).to(gpu)
    host, host_targets = logits.cpu().double(), targets.cpu()
    expected = to_errors(host, host_targets)
    found = to_errors(logits, targets)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-5, atol=1e-5)
    scale = 1e-5 if dtype is torch.float32 else 4e-3
    torch.testing.assert_close(logits.cpu().double(), host, rtol=scale, atol=1e-7)
