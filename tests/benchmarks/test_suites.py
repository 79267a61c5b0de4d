"""The built-in suites: every one expands to trials, and its published numbers are of things that exist."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import transformers

import harness_benchmarks.suites
from harness.plan import plan_cells, resolve_methods, wanted
from harness.registry import build_registry
from harness.suite import read_suite
from harness.task import ModelKind

FILES = sorted(Path(harness_benchmarks.suites.__file__).parent.glob("*.toml"))
CONFIDENCE = {
    "read from the published table",
    "quoted in an issue thread",
    "third-party copy, which does not say at what size or n",
    "recalled, not checked",
}
# The real widths with two layers: what a plan needs of a model that is not here.
CONFIGS = {
    "meta-llama/Llama-2-7b-hf": transformers.LlamaConfig(num_hidden_layers=2),
    "meta-llama/Meta-Llama-3-8B": transformers.LlamaConfig(
        vocab_size=128_256, intermediate_size=14_336, num_key_value_heads=8, num_hidden_layers=2
    ),
    "FacebookAI/roberta-base": transformers.RobertaConfig(vocab_size=50_265, num_hidden_layers=2),
    "FacebookAI/roberta-large": transformers.RobertaConfig(
        vocab_size=50_265, hidden_size=1_024, intermediate_size=4_096, num_attention_heads=16, num_hidden_layers=2
    ),
    "microsoft/deberta-v3-base": transformers.DebertaV2Config(
        hidden_size=768, intermediate_size=3_072, num_attention_heads=12, num_hidden_layers=2
    ),
}


@cache
def registry():
    return build_registry()


@pytest.fixture
def no_data(monkeypatch):
    """Let a plan be made without data: it only has to be named."""
    for task in registry().tasks.values():
        monkeypatch.setattr(task, "data_identity", lambda *_: "not read")


def test_there_are_suites_and_they_are_registered():
    assert {path.stem for path in FILES} == set(registry().suites)
    assert {"mora-table2", "mora-table3", "melora-table2", "melora-table3", "milora-table8"} <= set(registry().suites)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_suite_expands(path, no_data, tmp_path):
    suite = read_suite(path)
    if suite.model is not None:
        CONFIGS[suite.model].save_pretrained(tmp_path)
        suite = replace(suite, model=str(tmp_path))
    if any(registry().task(name).model_kind is ModelKind.FROM_SCRATCH for name in suite.tasks):
        # The papers' tokenizer is not here; it decides nothing about the adapted layers.
        suite = replace(suite, recipe={**suite.recipe, "tokenizer": "nano", "vocabulary": 259})
    cells = plan_cells(suite, registry(), None, "bfloat16")
    budgets = {(cell.template.task, cell.template.budget) for cell in cells if cell.template.budget}
    assert budgets == {(task, budget) for task in suite.tasks for budget in suite.budgets}
    methods = {(cell.template.method, repr(sorted(cell.template.config.items()))) for cell in cells}
    assert {method for method, _ in methods} == {kind.name for kind, _ in resolve_methods(suite.methods, registry())}
    for cell in cells:
        trials = wanted(cell, lambda trial: None)
        assert len(trials) == (suite.tune or len(suite.seeds) * max(1, len(suite.learning_rates)))


def test_the_table_of_forgetting_measures_forgetting_on_all_of_the_text():
    suite = read_suite(registry().suite("milora-table8"))
    for name in suite.tasks:
        assert {"forgetting", "forgetting_excess"} <= set(registry().task(name).metrics)
    assert suite.recipe["forgetting_windows"] * 512 > 341_000  # tokens of WikiText-2's test split for Llama 2


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_published_numbers_name_their_method_budget_metric_and_source(path):
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    seen = set()
    for task_name, entries in data.get("published", {}).items():
        assert task_name in data["tasks"]
        task = registry().task(task_name)
        for entry in entries:
            assert set(entry) - {"step"} == {"method", "budget", "metric", "value", "source", "confidence"}
            assert entry["method"] in data["methods"]
            is_reference = registry().method(entry["method"].partition(":")[0]).traits.reference
            assert entry["budget"] in ([""] if is_reference else data["budgets"])
            unit = task.metrics[entry["metric"]].unit
            assert 0 < entry["value"] <= (1 if unit in ("fraction", "correlation") else 1_000)
            assert entry["source"].split()[0] in ("MoRA", "MELoRA", "MiLoRA", "PiSSA")
            assert entry["confidence"] in CONFIDENCE
            key = (task_name, entry["method"], entry["budget"], entry["metric"], entry.get("step"))
            assert key not in seen
            seen.add(key)
