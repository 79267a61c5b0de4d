"""The mask of a trial depends on its seed and step, and on nothing that runs beside it."""

from __future__ import annotations

import math

import pytest
import torch

from harness import ConfigError, Dropout

SIZE = 1 << 18


def build(p, seed=0):
    return Dropout(p, torch.Generator().manual_seed(seed))


def mask(dropout, shape=(SIZE,)):
    return dropout(torch.ones(shape, dtype=torch.float64)) != 0


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("step", [0, 1, 1000])
def test_the_share_dropped_is_p(p, step):
    dropout = build(p, seed=step)
    for _ in range(min(step, 5)):
        dropout.advance()
    dropped = 1 - mask(dropout).double().mean().item()
    assert abs(dropped - p) < 5 * math.sqrt(p * (1 - p) / SIZE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kept_elements_are_scaled_and_dropped_ones_are_zero(dtype):
    x = torch.arange(1, 1001, dtype=dtype)
    output = build(0.2)(x)
    kept = output != 0
    assert 0 < kept.sum() < 1000
    torch.testing.assert_close(output[kept], x[kept] / 0.8)
    assert output.dtype == dtype


def test_an_infinite_element_that_is_dropped_is_gone():
    output = build(0.5)(torch.full((1000,), math.inf))
    assert set(output.tolist()) == {0.0, math.inf}


def test_the_gradient_is_masked_and_scaled_likewise():
    x = torch.ones(1000, dtype=torch.float64, requires_grad=True)
    output = build(0.3)(x)
    output.sum().backward()
    torch.testing.assert_close(x.grad, output.detach())


def test_evaluation_and_p_zero_are_the_identity():
    x = torch.randn(5, 7)
    assert build(0.5).eval()(x) is x
    assert build(0.0)(x) is x


def test_the_mask_changes_on_advance_and_not_before():
    dropout = build(0.5)
    first, again = mask(dropout), mask(dropout)
    dropout.advance()
    second = mask(dropout)
    assert torch.equal(first, again)
    # Independent masks of p = 1/2 agree on half of the elements.
    assert abs((first == second).double().mean().item() - 0.5) < 5 * 0.5 / math.sqrt(SIZE)


def test_masks_of_different_seeds_are_independent():
    agreement = (mask(build(0.5, 1)) == mask(build(0.5, 2))).double().mean().item()
    assert abs(agreement - 0.5) < 5 * 0.5 / math.sqrt(SIZE)


@pytest.mark.parametrize("distance", [1, 2, 3, 64])
def test_elements_of_one_mask_are_independent(distance):
    m = mask(build(0.5))
    agreement = (m[:-distance] == m[distance:]).double().mean().item()
    assert abs(agreement - 0.5) < 5 * 0.5 / math.sqrt(SIZE)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 5), (3, 5, 7)])
def test_odd_sizes_work(shape):
    assert mask(build(0.5), shape).shape == shape


def test_stacked_lanes_see_the_masks_they_see_alone():
    lanes = [build(0.4, seed) for seed in (1, 2, 3)]
    lanes[1].advance()
    x = torch.randn(3, 4, 5)
    parameters, buffers = torch.func.stack_module_state(lanes)

    def one(p, b, v):
        return torch.func.functional_call(lanes[0], (p, b), (v,))

    stacked = torch.func.vmap(one)(parameters, buffers, x)
    for lane, dropout in enumerate(lanes):
        assert torch.equal(stacked[lane], dropout(x[lane]))


def test_a_recomputed_forward_sees_the_same_mask():
    dropout = build(0.5)
    x = torch.ones(64, requires_grad=True)
    output = torch.utils.checkpoint.checkpoint(dropout, x, use_reentrant=False)
    output.sum().backward()
    assert torch.equal(x.grad, output.detach())


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    mask(build(0.5))
    assert torch.equal(before, torch.get_rng_state())


def test_the_counter_is_no_part_of_a_saved_adapter():
    assert build(0.5).state_dict() == {}


def test_the_hash_is_splitmix64():
    """The generator's first outputs for seed 1234567, as other implementations publish them."""
    from harness.contract.dropout import GOLDEN, splitmix64

    state = 1234567 + GOLDEN * torch.arange(1, 6)
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [value % 2**64 for value in splitmix64(state).tolist()] == published


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, math.nan])
def test_a_probability_outside_its_range_is_refused(p):
    with pytest.raises(ConfigError, match="p="):
        build(p)


@pytest.mark.gpu
def test_a_gpu_draws_the_mask_of_a_cpu():
    x = torch.ones(1001)
    on_gpu = Dropout(0.3, torch.Generator().manual_seed(0), torch.device("cuda"))
    assert torch.equal(on_gpu(x.cuda()).cpu(), build(0.3)(x))
