"""ReMoRA: one cycle is MoRA, merging preserves the function, and new groups let the rank grow."""

import pytest
import torch
from torch import nn

from harness import ConfigError
from harness_plugins.methods.mora import MoRA, MoRAConfig
from harness_plugins.methods.relora import jagged_cosine
from harness_plugins.methods.remora import ReMoRA, ReMoRAConfig, harness_register_methods

SIZES = [(12, 20, 2), (60, 100, 8), (128, 344, 8), (344, 128, 8), (10, 9, 3), (5, 33, 40), (33, 5, 40)]


@pytest.fixture
def build(kit):
    """Return what builds method, frozen layer and adapter."""

    def call(in_features, out_features, seed=0, dtype=torch.float64, random=True, **config):
        return kit.build_restarting(ReMoRA(ReMoRAConfig(**config)), "m", in_features, out_features, seed, dtype, random)

    return call


def dense_update(adapter):
    """Return D + the update, row by row: M's row of the output's group, spread over the inputs that each group sums."""
    group_of = [row.nonzero().item() for row in adapter.expand]
    return adapter.merged + torch.stack([adapter.m[group] @ adapter.compress for group in group_of])


@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("padding", ["wrap", "zero"])
@pytest.mark.parametrize("groups", ["permutation", "official"])
@pytest.mark.parametrize("cycle", [0, 1, 2, 3])
def test_forward_gradients_and_delta_are_those_of_the_dense_matrix(build, sizes, padding, groups, cycle):
    in_features, out_features, r = sizes
    _, layer, adapter = build(in_features, out_features, r=r, padding=padding, groups=groups)
    if cycle:
        m = adapter.m.detach().clone()
        adapter.merge(cycle, torch.Generator().manual_seed(cycle))
        adapter.m.data.copy_(m)
    x = torch.randn(2, 3, in_features, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    weights = torch.randn(2, 3, out_features, dtype=torch.float64)
    adapter(x, x @ layer.weight.T).mul(weights).sum().backward()
    got, gradient = adapter.m.grad, x.grad
    adapter.m.grad = None
    expected = y @ (layer.weight + dense_update(adapter)).T
    expected.mul(weights).sum().backward()

    torch.testing.assert_close(adapter(x, x @ layer.weight.T), expected, rtol=1e-11, atol=1e-9)
    torch.testing.assert_close(adapter.delta_weight(), dense_update(adapter), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got, adapter.m.grad, rtol=1e-11, atol=1e-9)
    torch.testing.assert_close(gradient, y.grad, rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("padding", ["wrap", "zero"])
@pytest.mark.parametrize(
    ("groups", "cycle", "sharing"),
    [
        ("permutation", 0, 1),
        *(("official", cycle, 1 + cycle % 4) for cycle in range(6)),
        *(("alternate", cycle, 1 + cycle % 2) for cycle in range(4)),
    ],
)
def test_one_cycle_is_mora_with_the_sharing_type_of_that_cycle(build, sizes, padding, groups, cycle, sharing):
    in_features, out_features, r = sizes
    _, layer, adapter = build(in_features, out_features, r=r, padding=padding, groups=groups, random=False)
    if cycle:
        adapter.merge(cycle, torch.Generator())
    mora = MoRA(MoRAConfig(r=r, padding=padding, sharing=sharing)).adapter(layer, torch.Generator())
    m = torch.randn(mora.m.shape, dtype=torch.float64)
    mora.m.data.copy_(m)
    adapter.m.data.copy_(m)
    torch.testing.assert_close(adapter.delta_weight(), mora.delta_weight(), rtol=1e-12, atol=1e-12)


def test_new_groups_shuffle_all_inputs_and_outputs_evenly(build):
    _, _, adapter = build(
        60, 100, r=1, padding="zero", groups="permutation"
    )  # R = 13, five rounds of inputs with five places to spare
    adapter.merge(1, torch.Generator().manual_seed(0))
    first = adapter.compress.clone(), adapter.expand.clone()
    assert (adapter.compress.sum(0) == 1).all(), "every input is in one group"
    assert set(adapter.compress.sum(1).tolist()) == {4, 5}
    assert (adapter.expand.sum(1) == 1).all(), "every output has one group"
    assert set(adapter.expand.sum(0).tolist()) == {7, 8}
    adapter.merge(2, torch.Generator().manual_seed(1))
    assert not torch.equal(adapter.compress, first[0])
    assert not torch.equal(adapter.expand, first[1])


def test_wrapped_places_are_filled_with_the_first_of_the_shuffled_inputs(build):
    _, _, adapter = build(60, 100, r=1, groups="permutation")
    before = adapter.compress.clone()
    assert before.sum(0).tolist() == [2] * 5 + [1] * 55
    adapter.merge(1, torch.Generator().manual_seed(0))
    assert (adapter.compress.sum(1) == 5).all(), "every group sums as many"
    columns = {tuple(column) for column in adapter.compress.T.tolist()}
    assert columns == {tuple(column) for column in before.T.tolist()}, "the inputs are shuffled, nothing else"
    assert not torch.equal(adapter.compress, before)


@pytest.mark.parametrize("groups", ["permutation", "official", "alternate"])
def test_a_merge_keeps_the_function_and_works_in_place(build, groups):
    _, layer, adapter = build(60, 100, groups=groups)
    x = torch.randn(4, 60, dtype=torch.float64)
    before, weight = adapter(x, layer(x)), layer.weight.clone()
    addresses = {name: tensor.data_ptr() for name, tensor in adapter.state_dict().items()}
    adapter.merge(1, torch.Generator())
    torch.testing.assert_close(adapter(x, layer(x)), before, rtol=1e-12, atol=1e-12)
    assert not adapter.m.any()
    assert torch.equal(layer.weight, weight)
    assert {name: tensor.data_ptr() for name, tensor in adapter.state_dict().items()} == addresses


@pytest.mark.parametrize(
    ("groups", "ranks"),
    [
        # 64x64, r = 2: R = 16. The groups j mod 16 and j div 4 have four sums in common, so both
        # together span 16 + 16 - 4 = 28, and there is nothing else to add.
        ("official", [16, 28, 28, 28, 28, 28]),
        # Shuffled groups have only the sum of all in common: each cycle adds 15 until the matrix is full.
        ("permutation", [16, 31, 46, 61, 64, 64]),
    ],
)
def test_the_rank_grows_beyond_two_r_only_with_new_groups(kit, build, groups, ranks):
    method, layer, adapter = build(64, 64, random=False, r=2, groups=groups, merge_every=10)
    seen = []

    def on_step(step, optimizer):
        if step % 10 == 1 and step > 1:
            seen.append(int(torch.linalg.matrix_rank(adapter.merged, atol=1e-6)))

    kit.train_restarting(method, layer, adapter, 70, on_step, rows=200)
    assert len(adapter.m) == 16
    assert seen == ranks


def test_by_default_it_merges_and_forgets_as_the_only_published_code_does(kit, build):
    """After update T, state and step counter deleted, sharing types 1-2-3-4."""
    method, layer, adapter = build(60, 100, random=False, merge_every=5)
    counted, groups = {}, {}

    def on_step(step, optimizer):
        counted[step] = int(optimizer.state[adapter.m]["step"])
        groups[step] = adapter.compress.clone(), adapter.expand.clone()

    kit.train_restarting(method, layer, adapter, 20, on_step, rows=200)
    assert [step for step, count in counted.items() if count == 0] == [5, 10, 15]
    assert counted[14] == 4
    for step, sharing in [(4, 1), (5, 2), (10, 3), (15, 4), (20, 4)]:
        mora = MoRA(MoRAConfig(sharing=sharing)).adapter(layer, torch.Generator())
        mora.m.data.copy_(m := torch.randn(mora.m.shape, dtype=torch.float64))
        compress, expand = groups[step]
        torch.testing.assert_close(expand @ m @ compress, mora.delta_weight(), rtol=1e-12, atol=1e-12)


def test_training_merges_on_time_resets_moments_and_counts_on(kit, build):
    how = {"timing": "official", "reset": "random_pruning"}
    method, layer, adapter = build(60, 100, random=False, merge_every=5, groups="official", **how)
    zero, kept = [], {}

    def on_step(step, optimizer):
        state = optimizer.state[adapter.m]
        kept[step] = (state["exp_avg_sq"] != 0).float().mean().item()
        assert state["step"] == step
        if not adapter.m.any():
            zero.append(step)

    kit.train_restarting(method, layer, adapter, 20, on_step, rows=200)
    assert [step for step in zero if step > 1] == [6, 11, 16]
    assert all(kept[step] < 0.05 for step in (6, 11, 16))
    assert all(kept[step] == 1 for step in (5, 7, 10, 12, 20))


def test_the_groups_follow_the_merges_under_both_timings(kit, build):
    for timing, merges in (("official", (6, 11, 16)), ("mora_repo", (5, 10, 15))):
        method, layer, adapter = build(12, 20, random=False, merge_every=5, groups="official", timing=timing)
        # Contiguous inputs start with 0, 1; contiguous outputs with 0, 0 (R = 16, I = 12, O = 20).
        contiguous = {}
        kit.train_restarting(
            method,
            layer,
            adapter,
            20,
            lambda step, _, seen=contiguous, a=adapter: seen.update({step: bool(a.expand[1, 0])}),
        )
        second, third, fourth = merges
        for step, seen in contiguous.items():
            cycle = sum(step >= merge for merge in (second, third, fourth))
            assert seen == (cycle in (1, 3))  # types 2 and 4


def test_schedule_and_refusals_are_those_of_the_restarts():
    method = ReMoRA(ReMoRAConfig(merge_every=200))
    assert method.learning_rate_multiplier(225, 1000, lambda _: 1.0) == jagged_cosine(225, 1000, 200, 100, 50)
    with pytest.raises(ConfigError, match="ReMoRAConfig: merge_every=200 merges from update 200"):
        method.learning_rate_multiplier(0, 100, lambda _: 1.0)
    with pytest.raises(ConfigError, match="groups='random' is not allowed"):
        ReMoRAConfig(groups="random")


@pytest.mark.parametrize("rounding", ["code", "paper"])
def test_the_count_is_moras(build, rounding):
    for in_features, out_features, r in [*SIZES, (4096, 11008, 8)]:
        method = ReMoRA(ReMoRAConfig(r=r, rounding=rounding))
        mora = MoRA(MoRAConfig(r=r, rounding=rounding))
        counted = method.trainable_parameters(in_features, out_features)
        assert counted == mora.trainable_parameters(in_features, out_features)
    _, _, adapter = build(60, 100, r=1)
    assert [p.numel() for p in adapter.parameters()] == [169]


def test_it_starts_as_the_pretrained_layer(build):
    _, layer, adapter = build(12, 20, random=False)
    x = torch.randn(3, 12, dtype=torch.float64)
    assert torch.equal(adapter(x, layer(x)), layer(x))


def test_groups_and_merged_weight_are_saved(build):
    _, _, adapter = build(12, 20)
    adapter.merge(1, torch.Generator().manual_seed(3))
    _, _, other = build(12, 20, seed=1)
    other.load_state_dict(adapter.state_dict())
    assert torch.equal(other.delta_weight(), adapter.delta_weight())
    assert set(adapter.state_dict()) == {"m", "merged", "compress", "expand"}


def test_dropout_spares_what_was_merged(build):
    _, layer, adapter = build(12, 20, dropout=0.5)
    x = torch.randn(4, 12, dtype=torch.float64)
    assert not torch.allclose(adapter(x, layer(x)), adapter.eval()(x, layer(x)))
    nn.init.zeros_(adapter.m)
    torch.testing.assert_close(adapter.train()(x, layer(x)), x @ (layer.weight + adapter.merged).T)


def test_a_bfloat16_layer_works(build):
    _, layer, adapter = build(60, 100, dtype=torch.bfloat16, r=2)
    x = torch.randn(5, 60, dtype=torch.bfloat16)
    output = adapter(x, layer(x))
    assert output.dtype == torch.bfloat16
    assert adapter.m.dtype == adapter.merged.dtype == torch.float32
    expected = layer(x).float() + x.float() @ adapter.delta_weight().T
    torch.testing.assert_close(output.float(), expected, rtol=0.01, atol=0.15)


@pytest.mark.parametrize("shared_input", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_three_adapters_with_different_groups_stacked_equal_one_at_a_time(kit, build, shared_input, dropout):
    def merged_once(seed):
        adapter = build(60, 100, seed, r=2, dropout=dropout)[2]
        adapter.merge(1, torch.Generator().manual_seed(seed))
        return adapter

    kit.check_stacks(merged_once, shared_input)


def test_it_is_registered():
    assert harness_register_methods() == [ReMoRA]
