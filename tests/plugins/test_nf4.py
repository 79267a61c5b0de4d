"""NF4 against its definition, written out, and against bitsandbytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from harness_plugins.nf4 import dequantise, levels, quantise


def back(matrix):
    return dequantise(quantise(matrix), tuple(matrix.shape), matrix.dtype)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_levels_are_the_stretched_quantiles_of_the_normal_distribution():
    found = levels(torch.device("cpu")).double()
    assert len(found) == 16
    assert found[0] == -1
    assert found[7] == 0
    assert found[15] == 1
    offset = ((1 - 1 / 32) + (1 - 1 / 30)) / 2
    top = norm.ppf(offset)
    assert found[8].item() == pytest.approx(norm.ppf(0.5 + (offset - 0.5) / 8) / top, abs=1e-6)
    assert found[6].item() == pytest.approx(-norm.ppf(0.5 + (offset - 0.5) / 7) / top, abs=1e-6)


def test_every_value_becomes_the_nearest_level_of_its_block():
    matrix = normal(10, 100)
    table = levels(torch.device("cpu"))
    flat, found = matrix.flatten(), back(matrix).flatten()
    for start in range(0, 1000, 64):
        block = flat[start : start + 64]
        options = block.abs().max() * table
        nearest = options[(block.unsqueeze(1) - options).abs().argmin(1)]
        torch.testing.assert_close(found[start : start + 64], nearest, rtol=0, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 150), st.floats(1e-3, 1e3))
def test_any_shape_comes_back_with_an_error_below_half_the_widest_gap(rows, columns, size):
    matrix = size * normal(rows, columns, seed=rows * columns)
    packed = quantise(matrix)
    assert packed.codes.dtype == torch.uint8
    assert len(packed.codes) == -(-matrix.numel() // 2)
    found = back(matrix)
    assert found.shape == matrix.shape
    gap = levels(torch.device("cpu")).diff().max() / 2
    assert ((found - matrix).abs() <= (gap + 1e-6) * matrix.abs().max()).all()
    torch.testing.assert_close(back(found), found, rtol=1e-6, atol=0)  # what is on the levels stays


def test_zeros_stay_zeros():
    assert not back(torch.zeros(3, 70)).any()


def test_it_is_what_bitsandbytes_does():
    functional = pytest.importorskip("bitsandbytes.functional")
    matrix = normal(96, 256, seed=3)
    theirs, state = functional.quantize_4bit(matrix, blocksize=64, quant_type="nf4")
    ours = quantise(matrix)
    assert torch.equal(ours.codes, theirs.flatten())
    torch.testing.assert_close(ours.largest, state.absmax.flatten(), rtol=0, atol=0)
    torch.testing.assert_close(back(matrix), functional.dequantize_4bit(theirs, state), rtol=1e-6, atol=1e-7)
