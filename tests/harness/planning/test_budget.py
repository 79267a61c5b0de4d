"""Budgets: what the user's text asks for, and the settings with which each method spends it."""

from __future__ import annotations

import itertools
import re
import time
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from harness.contract.method import Method, MethodTraits
from harness.contract.setting import MethodConfig, setting
from harness.errors import BudgetError, ConfigError, PluginLoadError, TrialDivergedError, UsageError
from harness.planning.budget import budget_parameters, solve
from harness.planning.counting import count_on_layers
from harness.planning.registry import build_registry
from harness.planning.settings import parse_settings, parse_settings_but_knob, parse_value
from harness.testing.language import on_meta

REGISTRY = build_registry()
SOLVED = [name for name, method in REGISTRY.methods.items() if method.traits.budget_knob]
LAYERS = {"a": (10, 6), "b": (4, 4)}  # LoRA: r (16 + 8)
LLAMA_7B = {
    f"layers.{layer}.{name}": shape
    for layer in range(32)
    for name, shape in {
        **dict.fromkeys(("q", "k", "v", "o"), (4096, 4096)),
        **dict.fromkeys(("gate", "up"), (4096, 11008)),
        "down": (11008, 4096),
    }.items()
}


@dataclass(frozen=True)
class CoarseConfig(MethodConfig):
    r: int = setting(3, "size", minimum=1, maximum=40)
    only: int = setting(1, "r must be a multiple of this", minimum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r % self.only:
            raise ConfigError(f"CoarseConfig: r={self.r} is no multiple of only={self.only}")


class Coarse(Method):
    """r O parameters; refuses layers with one input."""

    name = "coarse"
    paper = "https://example.org"
    Config = CoarseConfig

    def trainable_parameters(self, in_features: int, out_features: int) -> int:
        if in_features == 1:
            raise ConfigError(f"coarse: in_features={in_features} is too small")
        return int(self.config.r) * out_features


def count(method, solution, layers):
    """Count layer by layer, with each layer's own settings."""
    return sum(
        method(replace(solution.config, **solution.layer_settings.get(name, {}))).final_parameters(*shape)
        for name, shape in layers.items()
    )


# --- what is asked for ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lora:r=2", 48),
        ("lora", 8 * 24),
        ("mora:r=8", None),
        ("0.5%", 50),
        ("12 %", 1200),
        ("300k", 300_000),
        ("1.5M", 1_500_000),
        ("2b", 2_000_000_000),
        (" 77 ", 77),
    ],
)
def test_budget_is_read(text, expected):
    found = budget_parameters(text, LAYERS, 10_000, REGISTRY)
    if expected is None:  # MoRA has its own formula, square matrices
        expected = sum(REGISTRY.method("mora")().trainable_parameters(*shape) for shape in LAYERS.values())
    assert found == expected


@pytest.mark.parametrize(
    "text", ["", "5 apples", "-3", "1e5", "k", "%", "lora r=8", "0", "0%", "lora,r=8", "12kk", "١٢x"]
)
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(UsageError, match=re.escape(repr(text.strip()))):
        budget_parameters(text, LAYERS, 10_000, REGISTRY)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lorra:r=8", "did you mean lora"),
        ("lora:rank=8", r"cannot read setting 'rank=8'.*fields: r,"),
        ("lora:r=eight", r"r='eight' cannot be read; give a whole number, as the default 8"),
        ("lora:r=0", r"r=0 is not allowed; give an int >= 1"),
        ("full", "reference outside every budget"),
        ("melora:n=3", r"layer 'a'.*n=3"),
        ("all:r=3", "'all' stands for several methods, each of its own size; name one"),
        ("everything", "'everything' stands for several methods"),
        ("-5", "comes to -5 parameters; give at least 1"),
        ("-20%", "comes to -2,000 parameters; give at least 1"),
        ("-lora", r"is not a budget; write a method with settings \(lora:r=8\)"),
    ],
)
def test_a_mistake_in_a_budget_says_what_is_allowed(text, said):
    with pytest.raises(BudgetError, match=f"^--budget {text!r}.*{said}"):
        budget_parameters(text, LAYERS, 10_000, REGISTRY)


def test_values_are_read_as_the_type_of_the_default():
    assert parse_value("3", 1, "x") == 3
    assert parse_value("3", 1.0, "x") == 3.0
    assert isinstance(parse_value("3", 1.0, "x"), float)
    assert parse_value("True", False, "x") is True
    assert parse_value("30+50", (), "x") == (30, 50)
    assert parse_value("30+50", (1,), "x") == (30, 50)
    assert parse_value("", (1,), "x") == ()
    assert parse_value("text/c4+text/2", ("text/c4",), "x") == ("text/c4", "text/2")
    assert parse_value("7", ("a", "b"), "x") == ("7",)
    assert parse_value("cosine", "linear", "x") == "cosine"
    for raw, default in (("x", 1), ("1.5", 1), ("x", 1.0), ("maybe", True), ("1+x", ()), ("1+x", (2,))):
        with pytest.raises(ConfigError, match="recipe: y"):
            parse_value(raw, default, "recipe: y")


def test_the_knob_is_the_budgets():
    with pytest.raises(ConfigError, match=r"lora: r=4 cannot be set, the budget decides it.*--budget lora:r=4"):
        parse_settings_but_knob("r=4", REGISTRY.method("lora"))
    assert parse_settings_but_knob("only=5", Coarse).only == 5  # though r=3, the default, does not go with it
    with pytest.raises(ConfigError, match="only=0"):
        parse_settings_but_knob("only=0", Coarse)


# --- how it is spent ------------------------------------------------------------------------------------------------


def reachable(method, config, layers):
    """Every total that one knob value, or two neighbouring ones mixed over the layers, can make; by brute force."""
    totals: set[int] = set()
    values = []
    for r in range(1, 50):
        try:
            instance = method(replace(config, **{method.traits.budget_knob: r}))
            count_on_layers(method, instance.config, layers)
        except ConfigError:
            continue
        values.append(instance)
    counts = [tuple(each.final_parameters(*shape) for shape in layers.values()) for each in values]
    counts = sorted(set(counts), key=sum)
    for low, high in itertools.pairwise(counts):
        for choice in itertools.product(*zip(low, high, strict=True)):
            totals.add(sum(choice))
    return totals or {sum(counts[0])}


SHAPES = st.lists(st.tuples(st.sampled_from([8, 12, 16, 24]), st.sampled_from([8, 12, 16, 24])), min_size=1, max_size=5)


@given(shapes=SHAPES, budget=st.integers(1, 6000), tolerance=st.sampled_from([1e-9, 0.01, 0.05]))
@settings(deadline=None, max_examples=60)
def test_every_method_reaches_a_budget_or_names_the_two_nearest_counts(shapes, budget, tolerance):
    layers = {f"layer{number}": shape for number, shape in enumerate(shapes)}
    for name in SOLVED:
        method = REGISTRY.method(name)
        try:
            solution = solve(method, method.Config(), budget, layers, tolerance)
        except BudgetError as error:
            check_refusal(str(error), method, budget, layers, tolerance)
        else:
            assert solution.parameters == count(method, solution, layers)
            near = abs(solution.parameters - budget) <= tolerance * budget
            is_end = budget > solution.parameters == max(reachable(method, method.Config(), layers))
            assert (near, solution.largest) in ((True, False), (False, is_end))
            assert set(solution.layer_settings) <= set(layers)


def check_refusal(message, method, budget, layers, tolerance):
    assert message.startswith(f"{method.name}: a budget of {budget:,} adapter parameters cannot be reached")
    named = [int(n.replace(",", "")) for n in re.search(r"nearest counts: (.*?)\. ", message)[1].split(" and ")]
    assert all(abs(each - budget) > tolerance * budget for each in named)
    totals = reachable(method, method.Config(), layers)
    if budget < max(totals):
        below, above = [t for t in totals if t < budget], [t for t in totals if t > budget]
        assert named == ([max(below), min(above)] if below else sorted(totals)[:2])
    for each in named:  # what the message offers is true
        assert solve(method, method.Config(), each, layers, 1e-9).parameters == each


@given(shapes=SHAPES, only=st.sampled_from([1, 3, 7]), budget=st.integers(1, 3000))
@settings(deadline=None, max_examples=100)
def test_values_that_a_method_refuses_are_passed_over(shapes, only, budget):
    layers = {f"layer{number}": shape for number, shape in enumerate(shapes)}
    config = CoarseConfig(r=only, only=only)
    totals = reachable(Coarse, config, layers)
    best = min(abs(total - budget) for total in totals)
    try:
        solution = solve(Coarse, config, budget, layers, 1e-9)
    except BudgetError:
        assert best > 0
    else:
        assert count(Coarse, solution, layers) == (max(totals) if solution.largest else budget)
        assert solution.largest == (budget > max(totals))


def test_melora_gives_every_mini_a_whole_rank():
    method = REGISTRY.method("melora")
    config = parse_settings_but_knob("n=4,rank_convention=equivalent", method)
    layers = {"a": (16, 8), "b": (8, 8)}  # equivalent rank R: R/4 (24 + 16)
    solution = solve(method, config, 5 * 40, layers)
    assert (solution.config.r, solution.parameters, solution.layer_settings) == (20, 200, {})


def test_a_layer_that_a_method_cannot_adapt_is_named():
    method = REGISTRY.method("melora")
    with pytest.raises(ConfigError, match=r"layer 'odd': melora: n=2 .*in_features=9"):
        solve(method, method.Config(), 100, {"even": (8, 8), "odd": (9, 8)})
    with pytest.raises(ConfigError, match="layer 'thin': coarse: in_features=1"):
        solve(Coarse, CoarseConfig(), 100, {"wide": (8, 8), "thin": (1, 8)})


def test_a_budget_named_by_a_method_is_met_exactly_by_it():
    for name in SOLVED:
        method = REGISTRY.method(name)
        budget = budget_parameters(name, LLAMA_7B, 1, REGISTRY)
        solution = solve(method, method.Config(), budget, LLAMA_7B, 1e-9)
        assert (solution.parameters, solution.layer_settings) == (budget, {})


class Pruned(Coarse):
    """Ends with half of what it starts with."""

    def final_parameters(self, in_features, out_features):
        return self.trainable_parameters(in_features, out_features) // 2


def test_a_method_that_prunes_is_matched_where_it_ends():
    layers = {f"layer{number}": (8, 8) for number in range(8)}
    solution = solve(Pruned, CoarseConfig(), 208, layers)  # 4 layers end with 8 x 7 / 2, the others with 8 x 6 / 2
    assert (solution.parameters, solution.trained) == (208, 416)
    assert (solution.config.r, solution.layer_settings) == (6, {f"layer{n}": {"r": 7} for n in (1, 3, 5, 7)})
    assert count_on_layers(Pruned, solution.config, layers, formula="trainable_parameters") == 8 * 48
    assert count_on_layers(Pruned, solution.config, layers) == 8 * 24


def test_adalora_at_loras_budget_of_rank_8_goes_from_12_to_8():
    method = REGISTRY.method("adalora")
    budget = budget_parameters("lora:r=8", LLAMA_7B, 1, REGISTRY)
    free = solve(method, method.Config(), budget, LLAMA_7B)
    given = solve(method, method.Config(target_r=8), budget, LLAMA_7B)  # the end is given, so the start stays as it is
    for solution in (free, given):
        assert (solution.config.r, solution.config.target_r, solution.layer_settings) == (12, 8, {})
        assert solution.parameters == budget + 8 * len(LLAMA_7B)
        assert solution.trained == budget * 12 // 8 + 12 * len(LLAMA_7B)
    with pytest.raises(BudgetError, match=r"adalora: .*cannot be reached"):
        solve(method, method.Config(target_r=3), budget, LLAMA_7B)


def test_a_method_without_a_knob_fits_or_does_not():
    fixed = type("Fixed", (Coarse,), {"name": "fixed", "traits": MethodTraits(budget_knob=None)})
    assert solve(fixed, CoarseConfig(), 30, LAYERS).parameters == 30  # 3 (6 + 4)
    with pytest.raises(BudgetError, match=r"fixed: .* 20 .*nearest counts: 30"):
        solve(fixed, CoarseConfig(), 20, LAYERS)
    small = solve(fixed, CoarseConfig(), 40, LAYERS)  # it cannot be larger
    assert (small.parameters, small.largest) == (30, True)


def test_the_largest_value_ends_the_search():
    largest = solve(Coarse, CoarseConfig(), 500, LAYERS)  # r=40 is the most that the config allows
    assert (largest.config.r, largest.parameters, largest.largest) == (40, 400, True)
    assert not solve(Coarse, CoarseConfig(), 400, LAYERS).largest


def test_a_budget_beyond_every_number_that_can_be_made_names_what_can():
    with pytest.raises(BudgetError, match=r"lora: a budget of 10(,000)+ .*cannot be reached .*nearest counts: "):
        solve(REGISTRY.method("lora"), REGISTRY.method("lora").Config(), 10**25, LAYERS)


def test_layers_that_get_more_are_spread_over_the_depth():
    layers = {f"layer{number}": (8, 8) for number in range(8)}
    solution = solve(Coarse, CoarseConfig(), 8 * 8 * 3 + 2 * 8, layers)  # two layers at r=4, the others at r=3
    assert solution.layer_settings == {"layer2": {"r": 4}, "layer6": {"r": 4}}
    assert solution.config.r == 3


@pytest.mark.parametrize("name", SOLVED)
def test_a_large_model_is_solved_at_once(name):
    method = REGISTRY.method(name)
    start = time.perf_counter()
    for budget in (budget_parameters("lora:r=8", LLAMA_7B, 1, REGISTRY), 1_234_567, 160_000_000):
        try:
            solution = solve(method, method.Config(), budget, LLAMA_7B)
        except BudgetError:
            continue
        assert count(method, solution, LLAMA_7B) == solution.parameters
        assert abs(solution.parameters - budget) <= 0.01 * budget
    assert time.perf_counter() - start < 2


def test_lora_at_rank_8_of_llama_7b_by_hand():
    # 32 layers of 4 x 8 (4096 + 4096) + 3 x 8 (4096 + 11008)
    assert budget_parameters("lora:r=8", LLAMA_7B, 1, REGISTRY) == 32 * (4 * 65_536 + 3 * 120_832) == 19_988_480
    assert parse_settings("r=8", REGISTRY.method("lora")).r == 8


# --- formulas that fail ---------------------------------------------------------------------------------------------


def formula(said):
    """Return a method whose formula gives, or raises, what is said."""

    class Broken(Coarse):
        name = "broken"

        def trainable_parameters(self, in_features: int, out_features: int) -> int:
            if isinstance(said, Exception):
                raise said
            return said

    return Broken


@pytest.mark.parametrize(
    ("said", "reported"),
    [
        (ZeroDivisionError("on purpose"), "raises ZeroDivisionError: on purpose"),
        (AssertionError(), "raises AssertionError"),
        (60.0, r"returns 60\.0"),
        (None, "returns None"),
        (True, "returns True"),
        (-1, "returns -1"),
    ],
)
def test_a_formula_that_fails_names_the_method_and_the_layer(said, reported):
    broken = formula(said)
    shape = r"broken: trainable_parameters\(in_features=10, out_features=6\) "
    for call in (
        lambda: count_on_layers(broken, CoarseConfig(), LAYERS),
        lambda: solve(broken, CoarseConfig(), 100, LAYERS),
    ):
        with pytest.raises(PluginLoadError, match=rf"{shape}{reported}.*must return an int >= 0") as caught:
            call()
        assert caught.value.exit_code == 2


def test_what_the_harness_itself_raises_in_a_formula_is_kept():
    with pytest.raises(TrialDivergedError, match="as it was"):
        count_on_layers(formula(TrialDivergedError("as it was")), CoarseConfig(), LAYERS)
    assert count_on_layers(formula(0), CoarseConfig(), LAYERS) == 0


class Rows(Method):
    """Attaches as many vectors as its knob says, and refuses more than a hundred."""

    name = "rows"
    Config = CoarseConfig
    traits = MethodTraits(budget_knob="r")

    def attach(self, model, generator):
        if self.config.r > 100:
            raise ConfigError(f"rows: r={self.config.r} is more than 100")
        model.rows = nn.Parameter(torch.randn(self.config.r, 32, generator=generator).to(model.device))


def test_the_knob_of_a_method_that_attaches_is_solved_by_counting_on_the_model():
    solution = solve(Rows, CoarseConfig(), 640, LAYERS, skeleton=on_meta())
    assert (solution.config.r, solution.parameters) == (20, 640)
    with pytest.raises(BudgetError, match="nearest counts: 640 and 672"):
        solve(Rows, CoarseConfig(), 655, LAYERS, skeleton=on_meta())


def test_an_attach_that_fails_without_weights_is_explained():
    class NeedsWeights(Rows):
        def attach(self, model, generator):
            model.rows = nn.Parameter(model.lm_head.weight[0].cpu() * 2)

    with pytest.raises(PluginLoadError, match=r"attach\(\) raises .*without weights"):
        solve(NeedsWeights, CoarseConfig(), 640, LAYERS, skeleton=on_meta())
