"""ReLoRA: merging preserves the function, restarts follow the published schedules, moments are pruned."""

import math

import pytest
import torch
from torch import nn

from harness import ConfigError, StepInfo
from harness_plugins.methods.relora import (
    ReLoRA,
    ReLoRAConfig,
    compounding_cosine,
    harness_register_methods,
    jagged_cosine,
    quantile,
    reset_moments,
)

PAPER = {"total_steps": 1000, "period": 200, "warmup": 100, "restart_warmup": 50}


@pytest.fixture
def build(kit):
    """Return what builds method, frozen layer and adapter."""

    def call(in_features, out_features, seed=0, dtype=torch.float64, random=True, **config):
        return kit.build_restarting(ReLoRA(ReLoRAConfig(**config)), "b", in_features, out_features, seed, dtype, random)

    return call


# --- the adapter --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("in_features", "out_features"), [(12, 20), (60, 100), (128, 344)])
def test_forward_and_gradients_are_those_of_the_dense_matrix(build, in_features, out_features):
    _, layer, adapter = build(in_features, out_features, r=5, dropout=0.0)
    a, b = (p.detach().clone().requires_grad_() for p in (adapter.a, adapter.b))
    x = torch.randn(2, 3, in_features, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    weights = torch.randn(2, 3, out_features, dtype=torch.float64)

    delta = adapter.merged + 32 / 5 * b @ a
    got, expected = adapter(x, x @ layer.weight.T), y @ (layer.weight + delta).T
    (got * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(adapter.delta_weight(), delta, rtol=1e-12, atol=1e-12)
    for mine, reference in ((x.grad, y.grad), (adapter.a.grad, a.grad), (adapter.b.grad, b.grad)):
        torch.testing.assert_close(mine, reference, rtol=1e-11, atol=1e-9)


def test_only_the_pair_trains_and_is_counted(build):
    method, _, adapter = build(60, 100, r=3)
    assert {name for name, _ in adapter.named_parameters()} == {"a", "b"}
    assert sum(p.numel() for p in adapter.parameters()) == 3 * 160 == method.trainable_parameters(60, 100)
    assert set(adapter.state_dict()) == {"a", "b", "merged"}


def test_official_defaults_scale_by_a_quarter(build):
    _, _, adapter = build(60, 100, r=128)
    assert adapter.scale == 0.25


def test_a_bfloat16_layer_works(build):
    _, layer, adapter = build(12, 20, dtype=torch.bfloat16)
    adapter.eval()
    x = torch.randn(5, 12, dtype=torch.bfloat16)
    output = adapter(x, layer(x))
    assert output.dtype == torch.bfloat16
    assert adapter.merged.dtype == torch.float32
    expected = layer(x).float() + x.float() @ adapter.delta_weight().T
    torch.testing.assert_close(output.float(), expected, rtol=0.01, atol=0.1)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_three_adapters_stacked_equal_one_at_a_time(kit, build, dropout):
    kit.check_stacks(lambda seed: build(60, 100, seed, r=3, dropout=dropout)[2])


# --- merging ------------------------------------------------------------------------------------------------


def test_a_merge_keeps_the_function_redraws_a_and_works_in_place(build):
    _, layer, adapter = build(60, 100, r=3)
    adapter.eval()
    x = torch.randn(4, 60, dtype=torch.float64)
    before, old_a, weight = adapter(x, layer(x)), adapter.a.detach().clone(), layer.weight.clone()
    addresses = {name: tensor.data_ptr() for name, tensor in adapter.state_dict().items()}
    adapter.merge(torch.Generator().manual_seed(5))
    torch.testing.assert_close(adapter(x, layer(x)), before, rtol=1e-12, atol=1e-12)
    assert not adapter.b.any()
    assert not (adapter.a == old_a).any()
    assert adapter.a.abs().max() <= 1 / math.sqrt(60)
    assert torch.equal(layer.weight, weight)
    assert {name: tensor.data_ptr() for name, tensor in adapter.state_dict().items()} == addresses


@pytest.mark.parametrize(
    ("config", "total_steps", "merges"),
    [
        ({"merge_every": 5}, 20, [6, 11, 16]),
        ({"merge_every": 5, "timing": "mora_repo"}, 20, [5, 10, 15]),
        ({"merge_every": 5}, 23, [6, 11, 16, 21]),
        ({"cycles": 4}, 20, [6, 11, 16]),
        ({"cycles": 4}, 23, [7, 13, 19]),  # ceil(23 / 4) = 6
        ({"cycles": 2}, 5, [4]),
        ({}, 2, []),
    ],
)
def test_when_it_merges(kit, build, config, total_steps, merges):
    method, layer, adapter = build(12, 20, random=False, **config)
    seen, last = [], adapter.merged.clone()

    def on_step(step, optimizer):
        if not torch.equal(adapter.merged, last):
            seen.append(step)
            last.copy_(adapter.merged)

    kit.train_restarting(method, layer, adapter, total_steps, on_step)
    assert seen == merges


def test_the_official_merge_follows_an_update_at_rate_zero(kit, build):
    method, layer, adapter = build(12, 20, random=False, merge_every=5, dropout=0.0)
    history = {}
    kit.train_restarting(
        method,
        layer,
        adapter,
        20,
        lambda step, _: history.update({step: adapter.delta_weight().detach().clone()}),
    )
    torch.testing.assert_close(history[6], history[5], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(history[8], history[6])


def test_the_total_rank_grows_with_every_cycle(kit, build):
    method, layer, adapter = build(60, 100, random=False, r=2, merge_every=10, dropout=0.0)
    ranks = []

    def on_step(step, optimizer):
        if step % 10 == 1 and step > 1:
            ranks.append(int(torch.linalg.matrix_rank(adapter.merged, atol=1e-9)))

    kit.train_restarting(method, layer, adapter, 50, on_step)
    assert ranks == [2, 4, 6, 8]


def test_the_official_bug_learns_nothing_before_the_first_merge(kit, build):
    method, layer, adapter = build(12, 20, random=False, merge_every=5, initial_a="zero", dropout=0.0)
    deltas = {}
    kit.train_restarting(
        method,
        layer,
        adapter,
        20,
        lambda step, _: deltas.update({step: adapter.delta_weight().abs().max().item()}),
    )
    assert all(deltas[step] == 0 for step in range(1, 7))
    assert deltas[10] > 0


# --- learning rate ------------------------------------------------------------------------------------------


def test_jagged_cosine_by_hand():
    rate = {step: jagged_cosine(step, **PAPER) for step in (0, 50, 100, 199, 200, 225, 250, 550)}
    assert rate[0] == 0
    assert rate[50] == 0.5
    assert rate[100] == 1
    assert rate[200] == 0  # update T + 1 does nothing
    envelope = 0.1 + 0.9 * (1 + math.cos(math.pi / 6)) / 2  # (250 - 100) / 900 = 1/6
    assert rate[225] == pytest.approx(envelope / 2)
    assert rate[250] == pytest.approx(envelope)
    assert rate[550] == pytest.approx(0.55)  # half way: the mean of 1 and the floor
    assert jagged_cosine(999, **PAPER) == pytest.approx(0.1, abs=1e-4)  # the floor


@pytest.mark.parametrize(("update", "official", "mora_repo"), [
    (252, 4.70, 4.85), (452, 3.51, 4.39), (652, 1.97, 3.63), (852, 0.80, 2.22),
])  # fmt: skip
def test_measured_rates_of_both_codes(update, official, mora_repo):
    # Measured with the authors' code at peak 5e-4, to two decimals; update number u runs at step u - 1.
    assert 5 * jagged_cosine(update - 1, **PAPER) == pytest.approx(official, abs=0.01)
    assert 5 * compounding_cosine(update - 1, **PAPER) == pytest.approx(mora_repo, abs=0.005)


def test_compounding_cosine_by_hand():
    def rate(step):
        return compounding_cosine(step, **PAPER)

    first = (1 + math.cos(math.pi / 9)) / 2  # (200 - 100) / 900 at the first restart
    assert rate(50) == 0.5
    assert rate(200) == pytest.approx(first)  # the old rate, once
    assert rate(201) == pytest.approx(first / 50)
    assert rate(250) == pytest.approx(first)
    second = first * (1 + math.cos(math.pi * 150 / 750)) / 2
    assert rate(400) == pytest.approx(second)
    assert rate(401) == pytest.approx(second / 50)
    assert rate(999) < 1e-4  # ends at 0, not at a floor


def test_adjust_step_shifts_all_but_the_first_warmup():
    shifted = {**PAPER, "adjust_step": 30}
    assert jagged_cosine(99, **shifted) == jagged_cosine(99, **PAPER)
    assert jagged_cosine(150, **shifted) == jagged_cosine(180, **PAPER)
    assert jagged_cosine(215, **shifted) == jagged_cosine(245, **PAPER)
    assert jagged_cosine(370, **shifted) == 0
    # Restarts are recognised by the unshifted step, so the first one, at 170, is not warmed up.
    assert jagged_cosine(175, **shifted) > 0.9


def test_the_method_picks_schedule_and_warmups():
    def rate(step, total_steps=1000, **config):
        method = ReLoRA(ReLoRAConfig(merge_every=200, **config))
        return method.learning_rate_multiplier(step, total_steps, lambda step: -float(step))

    for step in (0, 30, 150, 200, 201, 240, 333, 999):
        assert rate(step) == jagged_cosine(step, **PAPER)  # a tenth of the run, and 50
        assert rate(step, schedule="mora_repo") == compounding_cosine(step, **PAPER)
        assert rate(step, schedule="recipe") == -step
        other = {**PAPER, "warmup": 7, "restart_warmup": 11, "floor": 0.3, "adjust_step": 5}
        config = {key: other[key] for key in ("warmup", "restart_warmup", "floor", "adjust_step")}
        assert rate(step, **config) == jagged_cosine(step, **other)


def test_a_short_run_gets_short_warmups():
    method = ReLoRA(ReLoRAConfig())  # 100 updates: T = 25, warmups 10 and 6
    rates = [method.learning_rate_multiplier(step, 100, lambda _: 1.0) for step in range(100)]
    assert rates == [jagged_cosine(step, 100, 25, 10, 6) for step in range(100)]
    assert [step for step, rate in enumerate(rates) if rate == 0] == [0, 25, 50, 75]


@pytest.mark.parametrize("total_steps", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("schedule", ["official", "mora_repo"])
def test_runs_of_a_few_updates_have_rates(total_steps, schedule):
    method = ReLoRA(ReLoRAConfig(schedule=schedule, **ReLoRA.traits.check_config))
    rates = [method.learning_rate_multiplier(step, total_steps, lambda _: 1.0) for step in range(total_steps)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert rates[0] > 0


@pytest.mark.parametrize(
    ("config", "total_steps", "message"),
    [
        ({"merge_every": 19}, 20, "merge_every=19 merges from update 20, but the run ends at 20"),
        ({"merge_every": 2000}, 100, "merge_every=2000 .* or auto for 4 cycles"),
        (
            {"merge_every": 10, "warmup": 11},
            100,
            "warmup=11 does not fit into a cycle of 10 updates; give at most 10",
        ),
        ({"merge_every": 10, "restart_warmup": 10}, 100, "restart_warmup=10 .* give at most 9"),
        ({"merge_every": 10, "warmup": 5, "adjust_step": 6}, 100, "warmup=5 .* give at most 4"),
        ({"merge_every": 10, "adjust_step": 11}, 100, "adjust_step=11 .* give at most 10"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(config, total_steps, message):
    method = ReLoRA(ReLoRAConfig(**config))
    with pytest.raises(ConfigError, match=message):
        method.learning_rate_multiplier(0, total_steps, lambda _: 1.0)


def test_a_period_of_one_is_refused():
    with pytest.raises(ConfigError, match="merge_every=1 is not allowed; give 'auto' or an int >= 2"):
        ReLoRAConfig(merge_every=1)


# --- the optimizer's memory ---------------------------------------------------------------------------------


def stepped_optimizer(*parameters):
    """Return an AdamW after three steps with random gradients."""
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return optimizer


def test_random_pruning_keeps_one_in_a_thousand_and_the_step_counter():
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.zeros(300, 400))
    optimizer = stepped_optimizer(parameter)
    state = optimizer.state[parameter]
    old = state["exp_avg"].clone()
    c = ReLoRAConfig()
    reset_moments(optimizer, [parameter], c.reset, c.reset_ratio, torch.Generator().manual_seed(0))
    kept = state["exp_avg"] != 0
    assert 60 < kept.sum() < 180  # 120 expected, standard deviation 11
    assert torch.equal(state["exp_avg"][kept], old[kept])
    assert state["step"] == 3


def test_random_pruning_draws_the_two_moments_independently():
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.zeros(300, 400))
    optimizer = stepped_optimizer(parameter)
    reset_moments(optimizer, [parameter], "random_pruning", 0.5, torch.Generator().manual_seed(0))
    first, second = (optimizer.state[parameter][key] != 0 for key in ("exp_avg", "exp_avg_sq"))
    assert first.float().mean().item() == pytest.approx(0.5, abs=0.01)
    assert (first & second).float().mean().item() == pytest.approx(0.25, abs=0.01)


def test_magnitude_pruning_keeps_the_largest_of_each_tensor():
    torch.manual_seed(0)
    small, large = nn.Parameter(torch.zeros(10, 10)), nn.Parameter(torch.zeros(7, 143))
    optimizer = stepped_optimizer(small, large)
    old = {p: {k: optimizer.state[p][k].clone() for k in ("exp_avg", "exp_avg_sq")} for p in (small, large)}
    reset_moments(optimizer, [small, large], "magnitude_pruning", 0.9, torch.Generator())
    for parameter, count in (
        (small, 10),
        (large, 100),
    ):  # 1001 values: the quantile is one of them and goes too
        for key, before in old[parameter].items():
            largest = before.flatten().abs().topk(count).indices
            expected = torch.zeros(before.numel())
            expected[largest] = before.flatten()[largest]
            assert torch.equal(optimizer.state[parameter][key].flatten(), expected)
        assert optimizer.state[parameter]["step"] == 3


@pytest.mark.parametrize(("how", "counter"), [("zero", 3), ("delete", 0)])
def test_zero_keeps_the_step_counter_and_delete_does_not(how, counter):
    mine, others = nn.Parameter(torch.zeros(4, 5)), nn.Parameter(torch.zeros(3))
    optimizer = stepped_optimizer(mine, others)
    reset_moments(optimizer, [mine], how, 0.5, torch.Generator())
    state = optimizer.state[mine]
    assert not state["exp_avg"].any()
    assert not state["exp_avg_sq"].any()
    assert state["step"] == counter
    assert optimizer.state[others]["exp_avg"].all()
    assert optimizer.state[others]["step"] == 3


def test_a_deleted_state_trains_like_a_new_optimizer():
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.zeros(4, 5))
    optimizer = stepped_optimizer(parameter)
    reset_moments(optimizer, [parameter], "delete", 0.5, torch.Generator())
    fresh = nn.Parameter(parameter.detach().clone())
    parameter.grad = fresh.grad = torch.randn(4, 5)
    optimizer.step()
    torch.optim.AdamW([fresh], lr=0.1).step()
    assert torch.equal(parameter, fresh)


@pytest.mark.parametrize("q", [0.0, 0.3, 0.8, 0.9, 1.0])
def test_quantile_is_torchs(q):
    x = torch.randn(13, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(quantile(x, q), torch.quantile(x, q))


def test_training_resets_the_moments_at_each_merge_and_counts_on(kit, build):
    method, layer, adapter = build(60, 100, random=False, merge_every=5)
    kept = {}

    def on_step(step, optimizer):
        state = optimizer.state[adapter.a]
        kept[step] = (state["exp_avg"] != 0).float().mean().item()
        assert state["step"] == step

    kit.train_restarting(method, layer, adapter, 20, on_step)
    # While B is zero (before the first rate above 0, right after a merge) A has no gradient, so no moments.
    assert all(kept[step] < 0.05 for step in (1, 2, 6, 7, 11, 12, 16, 17))
    assert all(kept[step] == 1 for step in (3, 5, 8, 10, 13, 15, 18, 20))


@pytest.mark.parametrize(("timing", "late"), [("official", 1), ("mora_repo", 0)])
def test_merges_and_resets_may_have_periods_of_their_own(kit, build, timing, late):
    method, layer, adapter = build(12, 20, random=False, merge_every=4, reset_every=10, reset="delete", timing=timing)
    merged, forgotten, last = [], [], [adapter.merged.clone()]

    def on_step(step, optimizer):
        if not torch.equal(adapter.merged, last[0]):
            merged.append(step)
            last[0] = adapter.merged.clone()
        if optimizer.state[adapter.b]["step"] == 0:
            forgotten.append(step)

    kit.train_restarting(method, layer, adapter, 30, on_step)
    assert merged == [each + late for each in (4, 8, 12, 16, 20, 24, 28)]
    assert forgotten == [10 + late, 20 + late]
    rates = [method.learning_rate_multiplier(step, 30, lambda _: 1.0) for step in range(30)]
    assert [step for step, rate in enumerate(rates) if rate == 0] == [0, 10, 20], "it warms up after resets"
    with pytest.raises(ConfigError, match="reset_every=1 is not allowed"):
        ReLoRAConfig(reset_every=1)


@pytest.mark.parametrize("scope", ["adapters", "all"])
def test_a_reset_may_take_in_what_trains_besides(build, scope):
    method, _, adapter = build(12, 20, merge_every=2, timing="mora_repo", reset="delete", reset_scope=scope)
    head = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = torch.optim.AdamW([{"params": adapter.parameters()}, {"params": [head]}])
    for step in (1, 2):
        (sum(p.sum() for p in adapter.parameters()) + head.sum()).backward()
        optimizer.step()
        method.after_step(StepInfo(step, 10, {"layer": adapter}, optimizer, torch.Generator()))
    assert optimizer.state[adapter.a]["step"] == 0
    assert optimizer.state[head]["step"] == (0 if scope == "all" else 2)


def test_the_same_generator_gives_the_same_run(kit, build):
    def run():
        method, layer, adapter = build(12, 20, random=False, merge_every=5)
        kit.train_restarting(method, layer, adapter, 20)
        return adapter.delta_weight()

    assert torch.equal(run(), run())


def test_it_is_registered():
    assert harness_register_methods() == [ReLoRA]
