"""AdaLoRA against its formula, PEFT's rank allocator step by step, and itself stacked."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness import ConfigError, StepInfo
from harness_plugins.methods.adalora import AdaLoRA, AdaLoRAConfig


def check_dense(kit, shape, generator, alpha, scale):
    layer = kit.build_layer(*shape)

    def dense(t, weight, x):
        return x @ (weight + scale * t["p"] @ torch.diag(t["values"]) @ t["q"]).T

    kit.check_against_dense(AdaLoRA(AdaLoRAConfig(r=5, alpha=alpha)).adapter(layer, generator), layer, dense)


@pytest.mark.parametrize(("alpha", "scale"), [("auto", 1.0), (12.0, 12 / 5.00001)])
def test_output_gradients_and_merge_follow_the_formula(kit, shape, alpha, scale, generator):
    check_dense(kit, shape, generator, alpha, scale)


def test_size_and_identity_at_the_start(kit, shape, generator):
    method = AdaLoRA(AdaLoRAConfig(r=3))
    kit.check_size_and_identity(method, kit.build_layer(*shape), generator)
    assert method.trainable_parameters(60, 100) == 483


def test_p_and_q_start_small_and_random(kit, generator):
    adapter = AdaLoRA().adapter(kit.build_layer(400, 500), generator)
    assert adapter.p.std().item() == pytest.approx(0.02, rel=0.05)
    assert adapter.q.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_stacked_equals_alone(kit, dropout):
    layer = kit.build_layer(60, 100)
    method = AdaLoRA(AdaLoRAConfig(r=4, dropout=dropout))
    kit.check_stacks(lambda seed: method.adapter(layer, torch.Generator().manual_seed(seed)))


def test_low_precision(kit):
    kit.check_low_precision(AdaLoRA())


@pytest.mark.parametrize("penalty", ["norm", "square"])
def test_the_penalty_is_the_mean_over_all_p_and_q(kit, penalty, generator):
    method = AdaLoRA(AdaLoRAConfig(r=4, gamma=0.3, penalty=penalty))
    adapters = {n: kit.disturb(method.adapter(kit.build_layer(*s), generator)) for n, s in SHAPES.items()}
    norms = []
    for adapter in adapters.values():
        for gram in (adapter.p.T @ adapter.p, adapter.q @ adapter.q.T):
            norms.append((gram - torch.eye(4)).square().sum().sqrt())
    expected = 0.3 * sum(n if penalty == "norm" else n * n for n in norms) / 4
    torch.testing.assert_close(method.extra_loss(adapters), expected)


SHAPES = {"first": (8, 6), "second": (6, 10)}


class Run:
    """A two-layer problem in float64, trained by AdamW in the harness's order of calls."""

    def __init__(self, kit, **settings):
        self.method = AdaLoRA(AdaLoRAConfig(**settings))
        self.layers = {n: kit.build_layer(*s, seed=i) for i, (n, s) in enumerate(SHAPES.items())}
        generator = torch.Generator().manual_seed(0)
        self.adapters = {n: self.method.adapter(layer, generator) for n, layer in self.layers.items()}
        parameters = [p for a in self.adapters.values() for p in a.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=0.02)

    def forward(self, x):
        for name, layer in self.layers.items():
            x = self.adapters[name](x, x @ layer.weight.T).tanh()
        return x

    def step(self, step, total_steps):
        x = torch.randn(16, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        loss = (self.forward(x) - x[:, :1]).square().mean()
        (loss + self.method.extra_loss(self.adapters)).backward()
        self.optimizer.step()
        info = StepInfo(step, total_steps, self.adapters, self.optimizer, torch.Generator())
        self.method.after_step(info)
        self.optimizer.zero_grad()

    def ranks(self):
        return [int(a.values.count_nonzero()) for a in self.adapters.values()]


def test_training_matches_pefts_rank_allocator_step_by_step(kit):
    """Every parameter at every step, against PEFT's layers and allocator; the penalty is written out."""
    peft = pytest.importorskip("peft")
    total_steps, tinit, tfinal = 40, 5, 12
    run = Run(kit, r=5, target_r=2, alpha=10.0, t_i=float(tinit), t_f=float(tfinal), delta_t=3, gamma=0.1)

    model = nn.Module()
    for name, layer in run.layers.items():
        model.add_module(name, kit.build_layer(layer.in_features, layer.out_features))
        getattr(model, name).weight.data.copy_(layer.weight)
    config = peft.AdaLoraConfig(
        target_modules=list(SHAPES),
        init_r=5,
        target_r=2,
        lora_alpha=10,
        lora_dropout=0.0,
        tinit=tinit,
        tfinal=tfinal,
        deltaT=3,
        beta1=0.85,
        beta2=0.85,
        total_step=total_steps,
    )
    tuner = peft.get_peft_model(model, config, autocast_adapter_dtype=False).double().base_model
    theirs = {n: getattr(tuner.model, n) for n in SHAPES}
    pairs = []
    for name, adapter in run.adapters.items():
        for ours, factor in (("p", "lora_B"), ("values", "lora_E"), ("q", "lora_A")):
            parameter = getattr(theirs[name], factor)["default"]
            parameter.data.copy_(adapter.get_parameter(ours).reshape(parameter.shape))
            pairs.append((adapter.get_parameter(ours), parameter))
    # PEFT 0.21 leaves the constant that it divides the scale by trainable; the method has no such parameter.
    optimizer = torch.optim.AdamW([parameter for _, parameter in pairs], lr=0.02)

    seen = set()
    for step in range(1, total_steps + 1):
        run.step(step, total_steps)
        x = torch.randn(16, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        y = theirs["second"](theirs["first"](x).tanh()).tanh()
        loss, penalty = (y - x[:, :1]).square().mean(), 0.0
        for layer in theirs.values():
            q, p = layer.lora_A["default"], layer.lora_B["default"]
            for gram in (q @ q.T, p.T @ p):
                penalty = penalty + torch.norm(gram - torch.eye(5), p="fro")
        (loss + 0.1 * penalty / 4).backward()
        optimizer.step()
        # The allocator itself, the published loop; PEFT's model adds a mask of its own at one step.
        tuner.rankallocator.update_and_allocate(tuner.model, step)
        optimizer.zero_grad()
        for ours, parameter in pairs:
            torch.testing.assert_close(ours.reshape(parameter.shape), parameter, rtol=1e-8, atol=1e-10)
        seen.add(sum(run.ranks()))
    assert sum(run.ranks()) == 4
    assert {10, 4} < seen, "the run must pass through ranks between the first and the last"


def test_the_budget_falls_along_the_cubic_by_hand():
    method = AdaLoRA(AdaLoRAConfig(t_i=10.0, t_f=30.0))
    budgets = {t: method.budget(t, 100, 24, 16) for t in (1, 10, 11, 25, 40, 55, 70, 71, 100)}
    # Middle phase of 60 steps: 16 + 8 (1 - (t - 10) / 60)^3, cut to an integer.
    # At t = 25: 16 + 8 * 0.421875 = 19.375.
    assert budgets == {1: 24, 10: 24, 11: 23, 25: 19, 40: 17, 55: 16, 70: 16, 71: 16, 100: 16}


def test_fractions_of_the_run_count_as_steps():
    by_fraction = AdaLoRA(AdaLoRAConfig(t_i=0.1, t_f=0.3))
    by_steps = AdaLoRA(AdaLoRAConfig(t_i=20.0, t_f=60.0))
    for step in range(1, 201):
        assert by_fraction.budget(step, 200, 24, 16) == by_steps.budget(step, 200, 24, 16)


@pytest.mark.parametrize("total_steps", [1, 2, 3, 7, 20])
def test_a_short_run_ends_at_the_target_if_there_is_a_step_to_score(kit, total_steps):
    run = Run(kit, r=6)  # the target is 6 / 1.5 = 4 a layer
    for step in range(1, total_steps + 1):
        run.step(step, total_steps)
    assert sum(run.ranks()) == (8 if total_steps > 2 else 12)


def test_pruned_lambdas_may_return_in_the_middle_phase_and_never_in_the_last(kit):
    run = Run(kit, r=6, target_r=2, t_i=0.0, t_f=20.0, delta_t=5)
    zeros = []
    for step in range(1, 61):
        run.step(step, 60)
        zeros.append(torch.cat([a.values.detach() == 0 for a in run.adapters.values()]))
    assert zeros[4].any()
    assert not zeros[5].any(), "one step after a pruning every lambda has moved again"
    for step in range(42, 61):
        assert torch.equal(zeros[step - 1], zeros[40]), "the last phase prunes the same triplets at every step"


def test_scores_stand_still_in_the_last_phase(kit):
    run = Run(kit, r=4, t_i=0.0, t_f=5.0)
    scores = []
    for step in range(1, 11):
        run.step(step, 10)
        scores.append(torch.cat([a.scores() for a in run.adapters.values()]).clone())
    assert not torch.equal(scores[2], scores[3])
    assert all(torch.equal(scores[3], later) for later in scores[4:])


def test_a_saved_adapter_holds_its_parameters_only(kit, generator):
    assert set(AdaLoRA().adapter(kit.build_layer(60, 100), generator).state_dict()) == {"p", "values", "q"}


def test_a_run_that_leaves_nothing_to_prune_in_is_refused(kit):
    run = Run(kit, r=4, t_i=800.0, t_f=3500.0)
    with pytest.raises(ConfigError, match=r"t_i=800 and t_f=3500.*100 steps"):
        run.step(1, 100)


@pytest.mark.parametrize("bad", [{"target_r": 13}, {"t_i": 0.5, "t_f": 0.5}])
def test_settings_that_contradict_each_other_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        AdaLoRAConfig(**bad)


def test_only_runs_when_asked_for():
    assert not AdaLoRA.traits.in_all
