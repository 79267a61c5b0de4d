"""MoRA against dense matrices built from the definition: update = (expansion) M-blocks (compression)."""

import itertools
import math

import pytest
import torch
from torch import nn

from harness import ConfigError
from harness_plugins.methods.mora import MoRA, MoRAConfig, harness_register_methods

# In and out features, and r; the last ones give an M larger than the input, the output, or both.
SIZES = [
    (12, 20, 2),
    (60, 100, 8),
    (128, 344, 8),
    (344, 128, 8),
    (10, 9, 3),
    (5, 33, 40),
    (33, 5, 40),
    (5, 7, 300),
]
OPERATORS = [
    {"operator": "truncation"},
    *({"operator": "sharing", "sharing": s, "padding": p} for s in (1, 2, 3, 4) for p in ("wrap", "zero")),
    *({"operator": "decoupling", "padding": p} for p in ("wrap", "zero")),
    *(
        {"operator": "rotation", "padding": padding, "pairing": pairing}
        for padding in ("wrap", "zero")
        for pairing in ("half", "adjacent")
    ),
]


def build(in_features, out_features, seed=0, dtype=torch.float64, random_m=True, **config):
    """Return a frozen layer and its adapter, with M drawn at random so that the update is not zero."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(in_features, out_features, bias=False, dtype=dtype).requires_grad_(False)
    layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
    adapter = MoRA(MoRAConfig(**config)).adapter(layer, generator)
    if random_m:
        with torch.no_grad():
            adapter.m.copy_(torch.randn(adapter.m.shape, generator=generator))
    return layer, adapter


def padded_inputs(in_features, size, padding):
    """Return a (P, I) selection matrix: the input, filled up to a multiple of R."""
    width = -(-in_features // size) * size
    select = torch.zeros(width, in_features, dtype=torch.float64)
    for place in range(width):
        if place < in_features or padding == "wrap":
            select[place, place % in_features] = 1
    return select


def contiguous_groups(features, size):
    """Return the group of each feature: the first ``features mod R`` groups are one longer."""
    short, longer = divmod(features, size)
    groups = []
    for group in range(size):
        groups += [group] * (short + 1 if group < longer else short)
    return groups


def rotation(size, block, pairing):
    """Return R_i, (R, R), acting on column vectors."""
    turn = torch.zeros(size, size, dtype=torch.float64)
    for j in range(size // 2):
        angle = block * 10000 ** (-2 * j / size)
        u, v = (j, j + size // 2) if pairing == "half" else (2 * j, 2 * j + 1)
        turn[u, u] = turn[v, v] = math.cos(angle)
        turn[u, v], turn[v, u] = -math.sin(angle), math.sin(angle)
    return turn


def dense_update(m, in_features, out_features, operator, sharing=1, padding="wrap", pairing="half"):
    """Return the (O, I) update, differentiable in ``m``."""
    size = len(m)
    if operator == "truncation":
        expand = torch.eye(out_features, size, dtype=torch.float64)
        return expand @ m @ torch.eye(size, in_features, dtype=torch.float64)
    select = padded_inputs(in_features, size, padding)
    if operator == "sharing":
        compress = torch.zeros(size, in_features, dtype=torch.float64)
        if sharing in (1, 4):
            for place in range(len(select)):
                compress[place % size] += select[place]
        else:
            for j, group in enumerate(contiguous_groups(in_features, size)):
                compress[group, j] = 1
        strided = [i % size for i in range(out_features)]
        groups = strided if sharing in (1, 3) else contiguous_groups(out_features, size)
        expand = torch.zeros(out_features, size, dtype=torch.float64)
        expand[range(out_features), groups] = 1
        return expand @ m @ compress
    blocks = len(select) // size
    turns = [rotation(size, i, pairing) if operator == "rotation" else torch.eye(size).double() for i in range(blocks)]
    diagonal = torch.block_diag(*(m @ turn for turn in turns))
    expand = torch.zeros(out_features, len(select), dtype=torch.float64)
    for i in range(out_features):
        expand[i, i % len(select)] = 1
    return expand @ diagonal @ select


def label(config):
    return "-".join(str(v) for v in config.values()) if isinstance(config, dict) else "x".join(map(str, config))


@pytest.mark.parametrize("sizes", SIZES, ids=label)
@pytest.mark.parametrize("config", OPERATORS, ids=label)
def test_forward_gradients_and_delta_are_those_of_the_dense_matrix(sizes, config):
    in_features, out_features, r = sizes
    layer, adapter = build(in_features, out_features, r=r, **config)
    m = adapter.m.detach().clone().requires_grad_()
    x = torch.randn(2, 3, in_features, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    weights = torch.randn(2, 3, out_features, dtype=torch.float64)

    update = dense_update(m, in_features, out_features, **config)
    got, expected = adapter(x, x @ layer.weight.T), y @ (layer.weight + update).T
    (got * weights).sum().backward()
    (expected * weights).sum().backward()

    # The published code holds its angles in float32, so rotations agree with exact ones to about 1e-6 only.
    tolerance = 1e-5 if config["operator"] == "rotation" else 1e-12
    for mine, reference in (
        (got, expected),
        (x.grad, y.grad),
        (adapter.m.grad, m.grad),
        (adapter.delta_weight(), update),
    ):
        assert (mine - reference).abs().max() <= tolerance * (1 + reference.abs().max())


@pytest.mark.parametrize("config", OPERATORS, ids=label)
def test_delta_is_the_forward_pass_exactly(config):
    layer, adapter = build(60, 100, r=8, **config)
    eye = torch.eye(60, dtype=torch.float64)
    torch.testing.assert_close(adapter(eye, eye @ layer.weight.T).T, layer.weight + adapter.delta_weight())


def test_a_small_case_by_hand():
    # I = 5, O = 4, r = 1: R = sqrt(9) = 3. Padded x = (1, 2, 4, 8, 16, 1): strided sums are 9, 18, 5.
    layer, adapter = build(5, 4, r=1)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        adapter.m.copy_(torch.tensor([[1, 0, 0], [0, 10, 0], [0, 0, 100]]))
    x = torch.tensor([1.0, 2, 4, 8, 16]).double()
    assert adapter(x, layer(x)).tolist() == [9, 180, 500, 9]
    _, zero = build(5, 4, r=1, padding="zero")
    zero.load_state_dict(adapter.state_dict())
    assert zero(x, layer(x)).tolist() == [9, 180, 400, 9]
    _, contiguous = build(5, 4, r=1, sharing=2)  # groups {1, 2}, {4, 8}, {16} in; {0, 1}, {2}, {3} out
    contiguous.load_state_dict(adapter.state_dict())
    assert contiguous(x, layer(x)).tolist() == [3, 3, 120, 1600]


def test_a_single_rotated_block_can_be_merged():
    # The published code's merge fails here, with R >= I. Block 0 is not turned: the update is M itself, cut.
    _, adapter = build(6, 6, r=8, operator="rotation", padding="zero")
    assert adapter.size == 10
    assert torch.equal(adapter.delta_weight(), adapter.m[:6, :6])


def test_the_angles_are_float32_in_a_float64_layer():
    _, adapter = build(60, 100, operator="rotation")
    assert adapter.cos.dtype == torch.float64
    assert torch.equal(adapter.cos.float().double(), adapter.cos)
    theta = 10000 ** (-2 / adapter.size)
    assert adapter.sin[1, 1].item() == pytest.approx(math.sin(theta), rel=1e-6)
    assert adapter.sin[1, 1].item() != math.sin(theta)


def test_decoupling_and_rotation_reach_a_higher_rank_than_sharing():
    ranks = {}
    for operator in ("truncation", "sharing", "decoupling", "rotation"):
        _, adapter = build(64, 64, r=2, operator=operator)  # R = 16
        ranks[operator] = int(torch.linalg.matrix_rank(adapter.delta_weight()))
    assert ranks == {"truncation": 16, "sharing": 16, "decoupling": 64, "rotation": 64}


@pytest.mark.parametrize(
    ("sizes", "rounding", "operator", "expected"),
    [
        ((4096, 4096, 8), "code", "sharing", 256),
        ((4096, 4096, 128), "paper", "sharing", 1024),
        ((4096, 11008, 8), "code", "sharing", 348),
        ((4096, 11008, 8), "paper", "sharing", 347),
        ((4096, 11008, 8), "paper", "rotation", 346),
        ((60, 100, 1), "code", "sharing", 13),  # sqrt(160) = 12.65
        ((60, 100, 1), "paper", "sharing", 12),
        ((60, 100, 1), "code", "rotation", 12),
        ((60, 100, 1), "code", "decoupling", 13),
    ],
)
def test_the_side_of_m(sizes, rounding, operator, expected):
    in_features, out_features, r = sizes
    method = MoRA(MoRAConfig(r=r, rounding=rounding, operator=operator))
    assert method.trainable_parameters(in_features, out_features) == expected**2


@pytest.mark.parametrize(("r", "published"), [(8, 20_014_592), (256, 639_433_088)])
def test_counts_of_llama_2_7b_are_those_of_the_code(r, published):
    method = MoRA(MoRAConfig(r=r))
    block = [(4096, 4096)] * 4 + [(4096, 11008)] * 2 + [(11008, 4096)]
    assert 32 * sum(method.trainable_parameters(i, o) for i, o in block) == published


@pytest.mark.parametrize("operator", ["sharing", "rotation"])
def test_the_count_is_exact_and_never_falls_with_r(operator):
    counts = []
    for r in range(1, 40):
        _, adapter = build(12, 20, r=r, operator=operator)
        counts.append(sum(p.numel() for p in adapter.parameters()))
        assert counts[-1] == MoRA(MoRAConfig(r=r, operator=operator)).trainable_parameters(12, 20)
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


def test_it_starts_as_the_pretrained_layer_with_m_zero():
    layer, adapter = build(12, 20, random_m=False)
    x = torch.randn(3, 12, dtype=torch.float64)
    assert not adapter.m.any()
    assert torch.equal(adapter(x, layer(x)), layer(x))


def test_rotation_refuses_a_layer_without_a_pair():
    method = MoRA(MoRAConfig(r=1, operator="rotation"))
    with pytest.raises(ConfigError, match="r=1 gives a 1x1 matrix on a layer with in_features=1, out_features=1"):
        method.trainable_parameters(1, 1)


@pytest.mark.parametrize("bad", [{"operator": "rope"}, {"sharing": 5}, {"r": 0}, {"padding": "reflect"}])
def test_bad_settings_are_named(bad):
    with pytest.raises(ConfigError, match=f"{next(iter(bad))}="):
        MoRAConfig(**bad)


def test_dropout_acts_on_the_update_only():
    layer, adapter = build(12, 20, dropout=0.5)
    x = torch.randn(4, 12, dtype=torch.float64)
    base = x @ layer.weight.T
    dropped, kept = adapter(x, base), adapter.eval()(x, base)
    assert not torch.allclose(dropped, kept)
    torch.testing.assert_close(kept, x @ (layer.weight + adapter.delta_weight()).T)
    nn.init.zeros_(adapter.m)
    assert torch.equal(adapter.train()(x, base), base)


@pytest.mark.parametrize("config", OPERATORS, ids=label)
def test_a_bfloat16_layer_keeps_a_float32_m_and_bfloat16_output(config):
    layer, adapter = build(60, 100, dtype=torch.bfloat16, r=2, **config)
    assert adapter.m.dtype == torch.float32
    x = torch.randn(5, 60, dtype=torch.bfloat16)
    output = adapter(x, layer(x))
    assert output.dtype == torch.bfloat16
    expected = layer(x).float() + x.float() @ adapter.delta_weight().T
    torch.testing.assert_close(output.float(), expected, rtol=0.01, atol=0.1)


@pytest.mark.parametrize("sizes", [(60, 100, 3), (100, 60, 3), (5, 33, 40)], ids=label)
@pytest.mark.parametrize(
    ("config", "shared_input"),
    itertools.product(OPERATORS, (True, False)),
    ids=lambda v: label(v) if isinstance(v, dict) else f"shared-{v}",
)
def test_three_adapters_stacked_equal_one_at_a_time(kit, sizes, config, shared_input):
    in_features, out_features, r = sizes
    kit.check_stacks(lambda seed: build(in_features, out_features, seed, r=r, dropout=0.2, **config)[1], shared_input)


def test_it_is_registered():
    assert harness_register_methods() == [MoRA]
