"""PEFT's methods: found by name without PEFT, attached by its own code, solved for a budget, exported."""

from __future__ import annotations

import copy
import sys
from dataclasses import asdict

import pytest
import torch
from peft import PeftModel

from harness.cli import app
from harness.engine.attached import attach
from harness.errors import ConfigError, UsageError
from harness.planning.budget import solve
from harness.planning.choices import resolve_methods
from harness.planning.registry import build_registry
from harness.testing import ALL_CHECKS, check_method, parametrize_with_checks
from harness.testing.language import LanguageProblem, on_meta

REGISTRY = build_registry()
FAMILY = REGISTRY.families["peft"]
# PSOFT decomposes weights in float32 only, and these checks compute in float64.
IN_FLOAT32 = dict.fromkeys(
    ("check_identity_at_init", "check_attached_decodes_with_a_cache", "check_attached_merge_preserves_output"),
    "PSOFT needs float32",
)


def chosen(*names):
    return [(each.method.name, each.configs[0]) for each in resolve_methods(names, REGISTRY, with_knob=True)]


def test_one_is_named_after_its_family_with_settings_behind_a_comma_or_a_colon():
    for written in ("peft:oft,oft_block_size=8", "peft:oft:oft_block_size=8"):
        ((name, config),) = chosen(written)
        assert (name, config.oft_block_size) == ("peft:oft", 8)
    assert {name for name, _ in chosen("peft:all")} == {f"peft:{each}" for each in FAMILY}
    assert {name for name, _ in chosen("peft:all", "-peft:oft")} == {f"peft:{each}" for each in FAMILY if each != "oft"}
    with pytest.raises(UsageError, match="no method of peft is called 'oftt'; did you mean oft"):
        chosen("peft:oftt")


def test_they_run_only_where_they_are_named():
    assert not {name for name, _ in chosen("everything") if name.startswith("peft")}


def test_without_peft_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"peft:vera: .* pip install 'peft-harness\[peft\]'$"):
        attach(FAMILY["vera"](), on_meta(), LAYERS, torch.Generator())


def test_describe_knows_one(capsys):
    assert app(["describe", "peft:oft"], standalone_mode=False) in (0, None)
    assert "oft_block_size" in capsys.readouterr().out


LAYERS = {name: (layer.in_features, layer.out_features) for name, layer in LanguageProblem().linears()}


@pytest.mark.parametrize("member", ["loha", "vera", "prompt_tuning"])
def test_its_size_is_solved_by_counting(member):
    method = FAMILY[member]
    solution = solve(method, method.Config(), 2048, LAYERS, 0.1, skeleton=on_meta())
    model = attach(method(solution.config), LanguageProblem().model, LAYERS, torch.Generator().manual_seed(0))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == solution.parameters
    assert not solution.largest


def test_what_cannot_be_larger_is_the_largest_that_it_can_be():
    for member, count in (("ia3", 2 * (32 + 16 + 16 + 32 + 48 + 48 + 32)), ("prompt_tuning", 256 // 4 * 32)):
        method = FAMILY[member]
        solution = solve(method, method.Config(), 10**6, LAYERS, skeleton=on_meta())
        assert (solution.largest, solution.parameters) == (True, count)


def test_a_scale_follows_the_rank():
    method = FAMILY["loha"]
    for given, scale in ((method.Config(r=2), 1.0), (method.Config(r=2, alpha=8.0), 4.0)):
        model = attach(method(given), LanguageProblem().model, LAYERS, torch.Generator().manual_seed(0))
        assert model.model.layers[0].mlp.up_proj.scaling["default"] == scale
        assert asdict(given)["alpha"] in ("auto", 8.0)


@pytest.mark.parametrize("member", ["loha", "oft", "vera", "prompt_tuning"])
def test_its_checkpoint_gives_the_same_logits_in_peft(member, tmp_path):
    problem = LanguageProblem()
    plain = copy.deepcopy(problem.model)
    method = FAMILY[member](FAMILY[member].Config(**FAMILY[member].traits.check_config))
    model = attach(method, problem.model, LAYERS, torch.Generator().manual_seed(5))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    problem.model = model
    expected, before = problem.output().detach(), LanguageProblem().output()
    assert (expected - before).abs().max() > 0.01
    assert "PEFT" in method.export_attached(model, tmp_path)
    loaded = PeftModel.from_pretrained(plain, tmp_path).eval()
    tokens = problem.batches[0][0]
    with torch.no_grad():
        actual = loaded(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    assert torch.allclose(actual[:, -tokens.shape[1] :], expected, atol=1e-5)


def test_one_keeps_the_contract():
    check_method(FAMILY["prompt_tuning"])


@pytest.mark.exhaustive
@parametrize_with_checks(FAMILY.values(), {"peft:psoft": IN_FLOAT32})
def test_every_one_keeps_the_contract(method, check):
    assert check in ALL_CHECKS
    check(method)
