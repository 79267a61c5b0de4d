"""The conformance kit passes a good method and catches one method broken on purpose per check, by that check."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from harness import Adapter, Dropout, LowRankAdapter, Method, MethodConfig, MethodTraits, UsageError, setting
from harness.testing import ALL_CHECKS, CheckFailed, check_method, parametrize_with_checks

CHECKS = {check.__name__: check for check in ALL_CHECKS}
ON_LAYERS = [name for name in CHECKS if not name.startswith("check_attached_")]


# --- a method without a fault, with one of everything: randomness, dropout, a buffer, every hook ------------


class GoodAdapter(Adapter):
    def __init__(self, layer: nn.Linear, r: int, dropout: float, generator: torch.Generator) -> None:
        super().__init__(layer)
        a = torch.randn(r, self.in_features, generator=generator) / self.in_features**0.5
        self.a = nn.Parameter(a.to(self.device, self.dtype))
        self.b = nn.Parameter(torch.zeros(self.out_features, r, device=self.device, dtype=self.dtype))
        self.register_buffer("scale", torch.ones((), device=self.device, dtype=self.dtype))
        self.dropout = Dropout(dropout, generator, self.device)

    def forward(self, x: Tensor, base_output: Tensor) -> Tensor:
        return base_output + self.scale * linear(linear(self.dropout(x), self.a), self.b)

    def delta_weight(self) -> Tensor:
        return self.scale * self.b @ self.a


@dataclass(frozen=True)
class GoodConfig(MethodConfig):
    r: int = setting(4, "rank of the update", minimum=1)
    dropout: float = setting(0.1, "probability of dropping an input element", minimum=0, maximum=0.99)
    order: str = setting("ab", "nothing at all", choices=("ab", "ba"))


class Good(Method):
    name = "good"
    paper = "https://example.org/good"
    Config: Any = GoodConfig
    Adapter: Any = GoodAdapter

    def trainable_parameters(self, in_features: int, out_features: int) -> int:
        return self.config.r * (in_features + out_features)

    def adapter(self, linear, generator):
        return self.Adapter(linear, self.config.r, self.config.dropout, generator)

    def calibrate(self, adapters, calibration):
        gradients = calibration.weight_gradients()
        assert {name: g.shape for name, g in gradients.items()} == {
            name: adapter.pretrained_weight.shape for name, adapter in adapters.items()
        }

    def learning_rate_multiplier(self, step, total_steps, default):
        return default(step) * (1 - step / total_steps)

    def extra_loss(self, adapters):
        return 1e-6 * torch.stack([adapter.a.square().sum() for adapter in adapters.values()]).sum()

    def after_step(self, info):
        for adapter in info.adapters.values():
            adapter.scale.mul_(1.001)


class GoodFull(Method):
    """Attaches to the whole model."""

    name = "good-full"
    paper = "https://example.org/full"
    traits = MethodTraits(budget_knob=None, reference=True, mergeable=False, learning_rate_factor=0.1)

    def attach(self, model, generator):
        model.requires_grad_(True)


class GoodBias(Method):
    """Attaches a vector that is added to what the model's body puts out, and is put back into the head's bias."""

    name = "good-bias"
    paper = "https://example.org/bias"
    Config = GoodConfig
    traits = MethodTraits(budget_knob="r")
    calls = 0

    def attach(self, model, generator):
        like = model.lm_head.weight
        model.shift = nn.Parameter(torch.zeros(self.config.r * 4, dtype=like.dtype, device=like.device))

        def add(head, inputs):
            rest = like.shape[1] - len(model.shift)
            return (inputs[0] + torch.cat([model.shift, model.shift.new_zeros(rest)]),)

        model.hook = (model.lm_head.register_forward_pre_hook(add),)

    def merge_attached(self, model):
        model.hook[0].remove()
        shift = model.shift.detach()
        del model.shift, model.hook
        wide = torch.cat([shift, shift.new_zeros(model.lm_head.in_features - len(shift))])
        model.model.norm.register_forward_hook(lambda module, inputs, output: output + wide)
        return model


class GoodUpdateAdapter(LowRankAdapter):
    """A low-rank update whose scale trains."""

    keep_float32 = ("scale",)

    def __init__(self, layer: nn.Linear, r: int, dropout: float, generator: torch.Generator) -> None:
        super().__init__(layer)
        self.dropout = Dropout(dropout, generator, self.device)
        a = torch.randn(r, self.in_features, generator=generator) / self.in_features**0.5
        self.a = nn.Parameter(a.to(self.device, self.dtype))
        self.b = nn.Parameter(torch.zeros(self.out_features, r, device=self.device, dtype=self.dtype))
        self.scale = nn.Parameter(torch.ones(r, device=self.device, dtype=self.dtype))

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.a, self.b


class GoodUpdate(Good):
    Adapter = GoodUpdateAdapter

    def trainable_parameters(self, in_features: int, out_features: int) -> int:
        return self.config.r * (in_features + out_features + 1)

    def after_step(self, info):
        pass


@pytest.mark.parametrize("good", [Good, GoodFull, GoodBias, GoodUpdate, Good(GoodConfig(r=2, dropout=0.0))])
def test_a_good_method_passes_every_check(good):
    results = []
    check_method(good, results.append)
    assert [each.check for each in results] == list(CHECKS)
    assert {each.state for each in results} <= {"passed", "not applicable"}


def test_every_check_applies_to_a_method_on_linear_layers_or_to_one_that_attaches():
    passed = set()
    for method in (Good, GoodBias):
        results = []
        check_method(method, results.append)
        passed |= {each.check for each in results if each.state == "passed"}
    assert passed == set(CHECKS)


def test_checks_of_adapters_do_not_apply_to_a_method_that_attaches():
    results = {}
    check_method(GoodFull, lambda result: results.update({result.check: result}))
    assert results["check_merge_preserves_output"].state == "not applicable"
    assert "attaches" in results["check_merge_preserves_output"].reason
    for check in ("check_loss_falls", "check_only_declared_tensors_move", "check_same_seed_same_weights"):
        assert results[check].state == "passed"


# --- one broken method per sin, under the check that must catch it ------------------------------------------

BROKEN: dict[str, list[type[Method]]] = {}


def fails(check):
    """Say which check must catch the method."""

    def register(method):
        BROKEN.setdefault(check, []).append(method)
        return method

    return register


def with_adapter(**members):
    """Return a class body's ``Adapter``: the good one with other members."""
    return type("BrokenAdapter", (GoodAdapter,), members)


@fails("check_declares_name_paper_config")
class ShoutsItsName(Good):
    name = "Good Method"


@fails("check_declares_name_paper_config")
class HasNoName(Method):
    paper = "https://example.org"


@fails("check_declares_name_paper_config")
class CitesNothing(Good):
    paper = "see the appendix"


@fails("check_declares_name_paper_config")
class HasAMutableConfig(Good):
    @dataclass
    class Config:
        r: int = setting(4, "rank", minimum=1)


@fails("check_declares_name_paper_config")
class HasAFieldWithoutDefault(Good):
    @dataclass(frozen=True)
    class Config:
        r: int = field(metadata={"help": "rank"})


@fails("check_declares_name_paper_config")
class HasAnUndocumentedField(Good):
    @dataclass(frozen=True)
    class Config(MethodConfig):
        r: int = 4


@fails("check_declares_name_paper_config")
class ConfiguresATuple(Good):
    @dataclass(frozen=True)
    class Config(GoodConfig):
        betas: tuple = setting((0.9, 0.999), "lists and tuples are not told apart by JSON")


@fails("check_declares_name_paper_config")
class TurnsAKnobItLacks(Good):
    traits = MethodTraits(budget_knob="rank")


@fails("check_declares_name_paper_config")
class ChecksWithAFieldItLacks(Good):
    traits = MethodTraits(check_config={"period": 3})


@fails("check_builds_and_runs")
class HasNoForward(Good):
    Adapter = with_adapter(forward=Adapter.forward)


@fails("check_builds_and_runs")
class HasNoFactors(GoodUpdate):
    class Adapter(GoodUpdateAdapter):
        factors = LowRankAdapter.factors


@fails("check_builds_and_runs")
class SwapsItsFactors(GoodUpdate):
    class Adapter(GoodUpdateAdapter):
        def factors(self):
            return self.b, self.a


@fails("check_init_only_stores")
class PrecomputesInInit(Good):
    def __init__(self, config=None):
        super().__init__(config)
        self.projection = torch.zeros(3)


@fails("check_init_only_stores")
class DrawsInInit(Good):
    def __init__(self, config=None):
        super().__init__(config)
        torch.rand(1)


@fails("check_init_only_stores")
class ReplacesItsConfig(Good):
    def __init__(self, config=None):
        super().__init__(dataclasses.replace(config) if config else None)


@fails("check_bad_config_is_named")
class AcceptsAnyConfig(Good):
    @dataclass(frozen=True)
    class Config:
        r: int = setting(4, "rank", minimum=1)
        dropout: float = setting(0.0, "probability", minimum=0, maximum=1)


@fails("check_bad_config_is_named")
class RefusesWithoutAName(Good):
    @dataclass(frozen=True)
    class Config(GoodConfig):
        def __post_init__(self):
            from harness import ConfigError

            if self.r is not None and (not isinstance(self.r, int) or self.r < 1):
                raise ConfigError("bad config")


@fails("check_budget_knob_is_monotone")
class ShrinksWithItsKnob(Good):
    def trainable_parameters(self, in_features, out_features):
        return 1000 - self.config.r


@fails("check_budget_knob_is_monotone")
class IgnoresItsKnob(Good):
    def trainable_parameters(self, in_features, out_features):
        return in_features + out_features


@fails("check_trainable_count_matches_formula")
class ForgetsToCountB(Good):
    def trainable_parameters(self, in_features, out_features):
        return self.config.r * in_features


@fails("check_trainable_count_matches_formula")
class CountsInFractions(Good):
    def trainable_parameters(self, in_features, out_features):
        return super().trainable_parameters(in_features, out_features) * 1.0


def starts_at_random(self, layer, r, dropout, generator):
    GoodAdapter.__init__(self, layer, r, dropout, generator)
    self.b.data.normal_(generator=generator)


@fails("check_identity_at_init")
class StartsElsewhere(Good):
    Adapter = with_adapter(__init__=starts_at_random)


@fails("check_identity_at_init")
class CalibratesAway(Good):
    def calibrate(self, adapters, calibration):
        for adapter in adapters.values():
            adapter.b.data.fill_(0.01)


@fails("check_only_declared_tensors_move")
class MovesAFrozenParameter(Good):
    class Adapter(GoodAdapter):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)

    def after_step(self, info):
        for adapter in info.adapters.values():
            adapter.frozen.add_(1)


@fails("check_only_declared_tensors_move")
class AttachesAndMovesMore(GoodFull):
    """Trains the norm, and changes a weight that it did not declare."""

    def attach(self, model, generator):
        model.model.norm.requires_grad_(True)

        def shrink(*_):
            model.model.layers[0].mlp.up_proj.weight.data.mul_(0.99)

        model.model.norm.register_forward_hook(shrink)


@fails("check_attached_count_without_weights")
class CountsAnother(GoodBias):
    def attach(self, model, generator):
        super().attach(model, generator)
        if model.device.type == "meta":
            model.more = nn.Parameter(torch.zeros(1))


class Prompt(GoodBias):
    """A prompt before every text; each way in which one goes wrong is a flag."""

    cuts, extends, once, merge_attached = True, True, True, Method.merge_attached
    traits = MethodTraits(budget_knob="r", identity_at_init=False, learning_rate_factor=10.0)

    def attach(self, model, generator):
        table = model.get_input_embeddings()
        n, added = self.config.r, 0
        rows = torch.randint(table.num_embeddings, (n,), generator=generator).to(table.weight.device)
        model.prompt = nn.Parameter(table(rows).detach().clone())

        def before(body, args, given):
            nonlocal added
            ids, mask, cache = given.pop("input_ids"), given.get("attention_mask"), given.get("past_key_values")
            added = n if not self.once or cache is None or cache.get_seq_length() == 0 else 0
            given["inputs_embeds"] = torch.cat([model.prompt[:added].expand(len(ids), -1, -1), table(ids)], 1)
            given["position_ids"] = None
            if mask is not None and self.extends:
                given["attention_mask"] = torch.cat([mask.new_ones(len(mask), n), mask], 1)
                given["position_ids"] = given["attention_mask"].cumsum(1)[:, -(ids.shape[1] + added) :] - 1
            return args, given

        def after(body, args, output):
            output.last_hidden_state = output.last_hidden_state[:, added if self.cuts else 0 :]
            return output

        model.base_model.register_forward_pre_hook(before, with_kwargs=True)
        model.base_model.register_forward_hook(after)


@fails("check_attached_output_is_the_texts")
class LeavesThePromptInTheOutput(Prompt):
    cuts = False


@fails("check_attached_decodes_with_a_cache")
class AddsThePromptAtEveryToken(Prompt):
    once = False


@fails("check_attached_decodes_with_a_cache")
class ForgetsTheMask(Prompt):
    extends = False


@fails("check_attached_half_precision")
class AddsAnotherDtype(GoodBias):
    def attach(self, model, generator):
        super().attach(model, generator)
        model.shift.data = model.shift.data.double()


@fails("check_attached_state_round_trip")
class DrawsFromNowhere(GoodBias):
    def attach(self, model, generator):
        super().attach(model, generator)
        type(self).calls += 1
        calls = type(self).calls
        model.lm_head.register_forward_hook(lambda module, inputs, output: output + calls)


@fails("check_attached_merge_preserves_output")
class MergesNothing(GoodBias):
    def merge_attached(self, model):
        model.hook[0].remove()
        del model.shift, model.hook
        return model


@fails("check_only_declared_tensors_move")
class UnfreezesLater(Good):
    class Adapter(GoodAdapter):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.a.requires_grad_(False)

    def after_step(self, info):
        for adapter in info.adapters.values():
            adapter.a.requires_grad_(True)


@fails("check_every_trainable_tensor_moves")
class DetachesA(Good):
    Adapter = with_adapter(forward=lambda self, x, y: y + linear(linear(x, self.a.detach()), self.b))

    def extra_loss(self, adapters):
        return None


@fails("check_every_trainable_tensor_moves")
class StartsWithTwoZeroFactors(Good):
    class Adapter(GoodAdapter):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.a.data.zero_()


@fails("check_pretrained_model_untouched")
class SubtractsFromThePretrainedWeight(Good):
    class Adapter(GoodAdapter):
        def __init__(self, layer, *arguments):
            super().__init__(layer, *arguments)

        def absorb(self):
            self.pretrained_weight.sub_(0.01)

    def after_step(self, info):
        for adapter in info.adapters.values():
            adapter.absorb()


@fails("check_pretrained_model_untouched")
class LeavesAHookBehind(Good):
    def calibrate(self, adapters, calibration):
        calibration.model.register_forward_hook(lambda *_: None)


@fails("check_pretrained_model_untouched")
class LeavesWeightsTrainable(Good):
    def calibrate(self, adapters, calibration):
        calibration.model.requires_grad_(True)


@fails("check_tensors_change_in_place")
class RedrawsIntoANewParameter(Good):
    def after_step(self, info):
        for adapter in info.adapters.values():
            adapter.b = nn.Parameter(adapter.b * 0.9)


@fails("check_tensors_change_in_place")
class RepointsData(Good):
    def calibrate(self, adapters, calibration):
        for adapter in adapters.values():
            adapter.a.data = adapter.a.data * 0.5


@fails("check_tensors_change_in_place")
class ReplacesABuffer(Good):
    def after_step(self, info):
        for adapter in info.adapters.values():
            adapter.scale = adapter.scale * 1.001


@fails("check_tensors_stay_finite")
class DividesByZero(Good):
    def after_step(self, info):
        for adapter in info.adapters.values():
            adapter.b.div_(adapter.scale - adapter.scale)


@fails("check_tensors_stay_finite")
class PoisonsAMoment(Good):
    def after_step(self, info):
        for adapter in info.adapters.values():
            if info.step == info.total_steps:
                info.optimizer.state[adapter.a]["exp_avg"].fill_(float("nan"))


@fails("check_loss_falls")
class ClimbsTheLoss(Good):
    class Adapter(GoodAdapter):
        def forward(self, x, base_output):
            # The value of the good update with the sign of its gradient turned.
            update = super().forward(x, torch.zeros_like(base_output))
            return base_output + 2 * update.detach() - update


@fails("check_same_seed_same_weights")
class DrawsFromTheOperatingSystem(Good):
    class Adapter(GoodAdapter):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.a.data.mul_(1 + random.SystemRandom().random())


@fails("check_same_seed_same_weights")
class RemembersOnTheMethod(Good):
    def after_step(self, info):
        self.steps = getattr(self, "steps", 0) + 1
        for adapter in info.adapters.values():
            adapter.scale.fill_(1 + 0.001 * self.steps)


@fails("check_different_seed_differs")
class ReseedsTheGenerator(Good):
    def adapter(self, linear, generator):
        return super().adapter(linear, generator.manual_seed(42))


@fails("check_global_rng_untouched")
class DrawsGlobally(Good):
    class Adapter(GoodAdapter):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            nn.init.kaiming_uniform_(self.a)


@fails("check_global_rng_untouched")
class SeedsGlobally(Good):
    def calibrate(self, adapters, calibration):
        random.seed(0)


@fails("check_global_rng_untouched")
class DropsWithTorchDropout(Good):
    Adapter = with_adapter(forward=lambda self, x, y: y + linear(linear(nn.functional.dropout(x, 0.1), self.a), self.b))


@fails("check_optimizer_hooks")
class ForgetsAParameter(Good):
    def parameter_groups(self, adapters, learning_rate, weight_decay):
        return [{"params": [each.b for each in adapters.values()], "lr": learning_rate, "weight_decay": weight_decay}]


@fails("check_optimizer_hooks")
class RepeatsAParameter(Good):
    def parameter_groups(self, adapters, learning_rate, weight_decay):
        return super().parameter_groups(adapters, learning_rate, weight_decay) * 2


@fails("check_optimizer_hooks")
class FixesItsLearningRate(Good):
    def parameter_groups(self, adapters, learning_rate, weight_decay):
        return super().parameter_groups(adapters, 1e-3, weight_decay)


@fails("check_optimizer_hooks")
class GoesBackwards(Good):
    def learning_rate_multiplier(self, step, total_steps, default):
        return -0.1 if step == total_steps - 1 else default(step)


@fails("check_optimizer_hooks")
class NeverStarts(Good):
    def learning_rate_multiplier(self, step, total_steps, default):
        return 0.0


@fails("check_optimizer_hooks")
class AddsAVectorToTheLoss(Good):
    def extra_loss(self, adapters):
        return torch.stack([each.a.square().sum() for each in adapters.values()])


@fails("check_state_round_trip")
class ForgetsABuffer(Good):
    class Adapter(GoodAdapter):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.register_buffer("scale", self.scale, persistent=False)


@fails("check_state_round_trip")
class SavesAnObject(Good):
    class Adapter(GoodAdapter):
        def get_extra_state(self):
            return {"rank": 4}

        def set_extra_state(self, state):
            pass


@fails("check_merge_preserves_output")
class ForgetsTheScaleWhenMerging(Good):
    Adapter = with_adapter(delta_weight=lambda self: self.b @ self.a)


@fails("check_merge_preserves_output")
class MergesTransposed(Good):
    Adapter = with_adapter(delta_weight=lambda self: (self.scale * self.b @ self.a).T)


@fails("check_forward_is_pure")
class CountsItsCalls(Good):
    class Adapter(GoodAdapter):
        def forward(self, x, base_output):
            self.scale.mul_(1.0001)
            return super().forward(x, base_output)


@fails("check_forward_is_pure")
class AddsIntoTheBaseOutput(Good):
    class Adapter(GoodAdapter):
        def forward(self, x, base_output):
            return base_output.add_(super().forward(x, torch.zeros_like(base_output)))


@fails("check_leading_shapes")
class InsistsOnThreeDimensions(Good):
    Adapter = with_adapter(forward=lambda self, x, y: y + torch.einsum("bti,ri,or->bto", x, self.a, self.b))


@fails("check_leading_shapes")
class MixesTokens(Good):
    Adapter = with_adapter(
        forward=lambda self, x, y: y + linear(linear(x - x.flatten(0, -2).mean(0) if x.ndim > 2 else x, self.a), self.b)
    )


@fails("check_odd_shapes")
class NeedsMultiplesOfEight(Good):
    class Adapter(GoodAdapter):
        def forward(self, x, base_output):
            x.unflatten(-1, (8, -1))
            return super().forward(x, base_output)


@fails("check_odd_shapes")
class RefusesWithoutTheShape(Good):
    def trainable_parameters(self, in_features, out_features):
        from harness import ConfigError

        if in_features % 16:
            raise ConfigError("this layer does not suit")
        return super().trainable_parameters(in_features, out_features)


@fails("check_odd_shapes")
class CountsWhatItRefuses(Good):
    def adapter(self, linear, generator):
        assert linear.in_features % 16 == 0
        return super().adapter(linear, generator)


@fails("check_odd_shapes")
class BuildsWhatItRefusesToCount(Good):
    def trainable_parameters(self, in_features, out_features):
        from harness import ConfigError

        if in_features % 16:
            raise ConfigError(f"does not suit in_features={in_features}, out_features={out_features}")
        return super().trainable_parameters(in_features, out_features)


@fails("check_half_precision")
class KeepsParametersInHalfPrecision(Good):
    class Adapter(GoodAdapter):
        @property
        def dtype(self):
            return self.pretrained_weight.dtype


@fails("check_half_precision")
class FixesFloat32InForward(Good):
    class Adapter(GoodAdapter):
        def forward(self, x, base_output):
            return base_output + self.scale * linear(linear(x.float(), self.a), self.b)


@fails("check_half_precision")
class MultipliesByTheRawWeight(Good):
    class Adapter(GoodAdapter):
        def forward(self, x, base_output):
            return super().forward(x, base_output) + 0.0 * linear(x, self.pretrained_weight)


@fails("check_half_precision")
class MixesWhatIsKeptWithWhatIsRounded(GoodUpdate):
    class Adapter(GoodUpdateAdapter):
        def factors(self):
            return self.a, self.b @ self.scale.diag()


@fails("check_half_precision")
class KeepsWhatItLacks(Good):
    Adapter = with_adapter(keep_float32=("scales",))


@fails("check_stacks_under_vmap")
class ScalesByItsSeed(GoodUpdate):
    class Adapter(GoodUpdateAdapter):
        def __init__(self, layer, r, dropout, generator):
            super().__init__(layer, r, dropout, generator)
            self.factor = float(torch.rand((), generator=generator))

        def factors(self):
            return self.factor * self.a, self.b


@fails("check_stacks_under_vmap")
class BranchesOnAValue(Good):
    class Adapter(GoodAdapter):
        def forward(self, x, base_output):
            if self.b.abs().sum() == 0:
                return base_output
            return super().forward(x, base_output)


@fails("check_stacks_under_vmap")
class HidesATensor(Good):
    class Adapter(GoodAdapter):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.hidden = [self.a.detach().sign()]

        def forward(self, x, base_output):
            return base_output + linear(linear(x, self.a * self.hidden[0].to(x.dtype)), self.b)


@fails("check_stacks_under_vmap")
class TrainsAPythonNumber(Good):
    class Adapter(GoodAdapter):
        gain = 1.0

        def forward(self, x, base_output):
            return base_output + self.gain * linear(linear(x, self.a), self.b)

    def after_step(self, info):
        for adapter in info.adapters.values():
            adapter.gain *= 1.01


class Identity(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient


@fails("check_stacks_under_vmap")
class HasItsOwnAutogradFunction(Good):
    Adapter = with_adapter(forward=lambda self, x, y: y + linear(linear(Identity.apply(x), self.a), self.b))


CASES = [
    pytest.param(CHECKS[check], kind, id=f"{check}-{kind.__name__}")
    for check, kinds in BROKEN.items()
    for kind in kinds
]


@pytest.mark.parametrize(("check", "broken"), CASES)
def test_a_broken_method_fails_its_check(check, broken):
    with pytest.raises(CheckFailed) as failure:
        check(broken)
    message = str(failure.value)
    assert failure.value.check == check.__name__
    assert check.__name__ in message
    assert "Try: " in message


def test_every_check_has_a_broken_method():
    assert set(BROKEN) == set(CHECKS)


# --- the doors ----------------------------------------------------------------------------------------------


def test_a_failure_names_the_method_what_was_seen_and_what_to_try():
    with pytest.raises(CheckFailed, match="method 'good' fails check_trainable_count_matches_formula") as failure:
        CHECKS["check_trainable_count_matches_formula"](ForgetsToCountB)
    # 4 (32) by the formula, 4 (32 + 48) on the first layer.
    assert "the formula says 128, the adapter on a layer with I=32, O=48 has 320" in str(failure.value)


def test_a_method_that_raises_fails_with_its_error_as_the_cause():
    class Raises(Good):
        def adapter(self, linear, generator):
            raise ZeroDivisionError("no reason")

    with pytest.raises(CheckFailed, match="ZeroDivisionError: no reason") as failure:
        CHECKS["check_loss_falls"](Raises)
    assert isinstance(failure.value.__cause__, ZeroDivisionError)


def test_a_method_that_vmap_cannot_run_is_told_about_vmap():
    with pytest.raises(CheckFailed, match=r"Try: operations that torch\.func\.vmap knows, and no branch on the value"):
        CHECKS["check_stacks_under_vmap"](BranchesOnAValue)


def test_check_method_reports_all_failures_and_raises_them_together():
    class TwoSins(ForgetsTheScaleWhenMerging):
        def trainable_parameters(self, in_features, out_features):
            return self.config.r * in_features

    states = {}
    with pytest.raises(CheckFailed) as failure:
        check_method(TwoSins, lambda result: states.update({result.check: result.state}))
    failed = {check for check, state in states.items() if state == "failed"}
    assert {"check_trainable_count_matches_formula", "check_merge_preserves_output"} <= failed
    assert set(states) == set(CHECKS)
    for check in failed:
        assert check in str(failure.value)


def test_check_method_stops_at_wrong_declarations():
    class HasNoTraits(Good):
        traits: Any = None

    results = []
    with pytest.raises(CheckFailed, match="traits is None"):
        check_method(HasNoTraits, results.append)
    assert [each.check for each in results] == ["check_declares_name_paper_config"]


def test_a_method_that_does_not_run_is_told_so_once():
    results = []
    with pytest.raises(CheckFailed, match=r"SwapsItsFactors|factors\(\) returned \(48, 4\) and \(4, 32\) on a layer"):
        check_method(SwapsItsFactors, results.append)
    assert [each.check for each in results if each.state == "failed"] == ["check_builds_and_runs"]
    assert results[-1].state == "failed", "nothing is checked after that"


def test_a_class_is_built_from_its_check_config():
    class NeedsASetting(Good):
        traits = MethodTraits(check_config={"r": 2})

        def adapter(self, linear, generator):
            assert self.config.r == 2
            return super().adapter(linear, generator)

    check_method(NeedsASetting)
    with pytest.raises(CheckFailed, match="AssertionError"):
        check_method(NeedsASetting(GoodConfig(r=3)))


def test_parametrize_gives_one_named_case_per_method_and_applicable_check():
    values = parametrize_with_checks([Good, GoodFull]).args[1]
    ids = [each.id for each in values]
    assert "good-check_loss_falls" in ids
    assert "good-full-check_loss_falls" in ids
    assert "good-full-check_merge_preserves_output" not in ids
    assert len(ids) == len(set(ids))
    assert len([each for each in ids if each.startswith("good-check_")]) == len(ON_LAYERS)


def test_an_expected_failure_is_a_strict_xfail_with_its_reason():
    expected = {"good": {"check_loss_falls": "known"}}
    values = parametrize_with_checks([Good], expected).args[1]
    marks = {each.id: each.marks for each in values}
    (mark,) = marks["good-check_loss_falls"]
    assert mark.name == "xfail"
    assert mark.kwargs == {"reason": "known", "raises": CheckFailed, "strict": True}
    assert [each for each, m in marks.items() if m] == ["good-check_loss_falls"]


@pytest.mark.parametrize(
    "expected",
    [
        {"nobody": {"check_loss_falls": "?"}},
        {"good-full": {"check_merge_preserves_output": "?"}},
        {"good-full": {"typo": "?"}},
    ],
)
def test_an_expected_failure_that_is_not_run_is_refused(expected):
    with pytest.raises(UsageError, match="not run"):
        parametrize_with_checks([GoodFull], expected)


def test_the_kit_does_not_import_pytest():
    code = "import sys, harness.testing; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (
            lambda self, x, base_output: base_output,
            "no parameter that it trains takes part in the loss. Try",
        ),
        (
            lambda self, x, base_output: None,
            r"forward\(x, base_output\) returned NoneType; return what takes the place",
        ),
        (lambda self, x, base_output: x[..., :1], r"forward\(x, base_output\) returned \(\d+, .*1\); return"),
        (lambda self, x, base_output: 1 / 0, r"ZeroDivisionError: division by zero \(test_testing\.py, line \d+\)"),
    ],
)
def test_what_a_forward_does_wrong_is_said_with_its_place(forward, said):
    adapter = type("WrongAdapter", (GoodAdapter,), {"forward": forward})
    method = type("Wrong", (Good,), {"Adapter": adapter, "extra_loss": lambda self, adapters: None})
    with pytest.raises(CheckFailed, match=said):
        CHECKS["check_loss_falls"](method)
