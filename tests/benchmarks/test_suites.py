"""The built-in suites: every one expands to trials with its paper's settings, and its published numbers are whole.

Expected settings are typed here from the papers and their authors' repositories, as the comment of each suite says.
"""

from __future__ import annotations

import tomllib
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import pytest
import transformers

import harness_benchmarks.suites
from harness.contract.task import ModelKind
from harness.contract.trial import OWN
from harness.planning.choices import resolve_methods
from harness.planning.plan import plan_cells, resolve_recipe
from harness.planning.published import read_published
from harness.planning.registry import build_registry
from harness.planning.search import wanted
from harness.planning.suite import read_suite

FILES = sorted(Path(harness_benchmarks.suites.__file__).parent.glob("*.toml"))
CONFIDENCE = {
    "read from the published table",
    "stated in the paper's text",
    "read in the authors' repository",
    "quoted in an issue thread",
    "third-party copy",
    "recalled, not checked",
}
UNITS = {"fraction": 1, "correlation": 1, "points of 10": 10}  # the most that there is
# The real widths with two layers: what a plan needs of a model that is not here.
CONFIGS = {
    "meta-llama/Llama-2-7b-hf": transformers.LlamaConfig(num_hidden_layers=2),
    "meta-llama/Meta-Llama-3-8B": transformers.LlamaConfig(
        vocab_size=128_256, intermediate_size=14_336, num_key_value_heads=8, num_hidden_layers=2
    ),
    "meta-llama/Llama-2-13b-hf": transformers.LlamaConfig(
        hidden_size=5_120, intermediate_size=13_824, num_attention_heads=40, num_hidden_layers=2
    ),
    "meta-llama/Meta-Llama-3-70B": transformers.LlamaConfig(
        vocab_size=128_256,
        hidden_size=8_192,
        intermediate_size=28_672,
        num_attention_heads=64,
        num_key_value_heads=8,
        num_hidden_layers=2,
    ),
    "01-ai/Yi-1.5-34B": transformers.LlamaConfig(
        vocab_size=64_000,
        hidden_size=7_168,
        intermediate_size=20_480,
        num_attention_heads=56,
        num_key_value_heads=8,
        num_hidden_layers=2,
    ),
    "mistralai/Mistral-7B-v0.1": transformers.MistralConfig(num_hidden_layers=2),
    "google/gemma-7b": transformers.GemmaConfig(num_hidden_layers=2),
    "Qwen/Qwen1.5-7B": transformers.Qwen2Config(
        vocab_size=151_936, hidden_size=4_096, intermediate_size=11_008, num_hidden_layers=2
    ),
    "mistralai/Mixtral-8x7B-v0.1": transformers.MixtralConfig(num_hidden_layers=2),
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
    monkeypatch.setattr("harness.planning.plan.identify_tables", lambda *_: "not read")
    for check in ("_check_data", "check_fitness", "check_positions"):  # rows and tokenizers are not here either
        monkeypatch.setattr(f"harness.planning.plan.{check}", lambda *_: None)


def test_there_are_suites_and_they_are_registered():
    assert {path.stem for path in FILES} == set(registry().suites)
    assert {"mora-table2", "mora-table3", "melora-table2", "melora-table3", "milora-table8"} <= set(registry().suites)


def plan(suite, folder, layers=2):
    """Return the cells of a suite, with the shapes of its model but ``layers`` of them, and none of its weights."""
    if suite.model is not None:
        config = CONFIGS[suite.model]
        config.num_hidden_layers = layers
        config.save_pretrained(folder)
        suite = replace(suite, model=str(folder))
    if any(registry().task(name).model_kind is ModelKind.FROM_SCRATCH for name in suite.tasks):
        # The papers' tokenizer is not here; it decides nothing about the adapted layers.
        suite = replace(suite, recipe={**suite.recipe, "tokenizer": "nano", "vocabulary": 259})
    return plan_cells(suite, registry(), None, "bfloat16")


def check_cells(cells, suite):
    budgets = {(cell.template.task, cell.template.budget) for cell in cells if cell.template.budget}
    assert budgets == {(task, budget) for task in suite.tasks for budget in suite.budgets}
    methods = {cell.template.method for cell in cells}
    assert methods == {each.method.name for each in resolve_methods(suite.methods, registry(), OWN in suite.budgets)}
    for cell in cells:
        trials = wanted(cell, lambda trial: None)
        templates = 1 + len(cell.others)
        assert len(trials) == (templates * len(cell.grid()) if cell.searches else len(suite.seeds) * len(cell.rates))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_suite_expands_on_the_shapes_of_its_own_model(path, no_data, tmp_path):
    suite = read_suite(path)
    check_cells(plan(suite, tmp_path), suite)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_suite_expands_at_smoke_scale_on_the_shipped_model(path, no_data):
    suite = replace(read_suite(path), scale="smoke")
    if not any(registry().task(name).model_kind is ModelKind.FROM_SCRATCH for name in suite.tasks):
        suite = replace(suite, model="nano")
    if any("asylora:r=256" in each for each in suite.methods):  # its A is orthogonal, which nano is too small for
        suite = replace(suite, methods=(*suite.methods, "-asylora"))
    cells = plan_cells(suite, registry(), None, "float32")
    check_cells(cells, suite)
    if path.stem.startswith("c4"):
        return  # says what to train on at every scale
    for cell in cells:  # what a paper's recipe says holds at the paper scale only
        smoke = resolve_recipe(registry().task(cell.template.task)(), replace(suite, recipe={}))
        assert cell.template.recipe == asdict(smoke)


# --- what the papers did ----------------------------------------------------------------------------------------------

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MILORA = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")
MORA_MATH = {
    "training_set": "metamath", "epochs": 3.0, "steps": "auto", "batch_size": 128, "max_length": 512,
    "learning_rate": 3e-4, "schedule": "cosine", "warmup_steps": "auto", "warmup_fraction": 0.03,
}  # fmt: skip
MORA_DEFAULTS = {"max_length": 2_048, "schedule": "linear", "warmup_steps": 100}
MELORA_INSTRUCTIONS = {
    "training_set": "alpaca", "epochs": 3.0, "batch_size": 128, "max_length": 256, "learning_rate": 3e-4,
    "schedule": "linear", "warmup_steps": 100, "held_out": 2_000,
}  # fmt: skip
MILORA_MATH = {
    "training_set": "metamath", "epochs": 3.0, "steps": "auto", "batch_size": 16, "max_length": 2_048,
    "learning_rate": 3e-4, "schedule": "linear", "warmup_steps": 100,
}  # fmt: skip
MILORA_BEST = {"checkpoint": "best-loss", "evaluate_at": tuple(range(3_000, 31_875, 3_000))}  # 31,875 steps in all
MILORA_COMMONSENSE = {name: MILORA_MATH[name] for name in MILORA_MATH if name not in ("training_set", "max_length")}
MELORA_GLUE = {"weight_decay": 0.1, "warmup_fraction": 0.06, "schedule": "linear"}
PISSA_MATH = {**MORA_MATH, "learning_rate": 2e-5, "steps": 100_000 // 128, "weight_decay": 0.0}
PISSA_GLUE = {
    "learning_rate": 2e-5, "batch_size": 128, "schedule": "cosine", "warmup_fraction": 0.03, "weight_decay": 0.0,
}  # fmt: skip
PISSA_CODE = {name: PISSA_MATH[name] for name in PISSA_MATH if name not in ("training_set", "epochs")}
EXPECTED = {  # targets, ranks, recipe
    "mora-table1-math": (ALL, (8, 256), MORA_MATH),
    "mora-table1-instructions": (ALL, (8, 256), {**MORA_DEFAULTS, "training_set": "tulu-v2", "mmlu_shots": 5}),
    "mora-table1-instructions-zero-shot": (
        ALL, (8, 256), {**MORA_DEFAULTS, "training_set": "tulu-v2", "mmlu_shots": 0},
    ),
    "mora-table1-domains": (ALL, (8, 256), MORA_DEFAULTS),
    "mora-table2": (
        ALL, (8, 256), {"pairs": 10_000, "batch_size": 1_000, "epochs": 100.0, "steps": "auto",
                        "evaluate_at": (300, 500, 700, 900)},
    ),
    "mora-table3": (
        ALL, (128,), {"steps": 10_000, "batch_size": 1_024, "max_length": 512, "learning_rate": 5e-4,
                      "schedule": "cosine", "warmup_steps": 1_000},
    ),
    "mora-table4": (ALL, (8, 256), MORA_MATH),
    "melora-table2": (("q*", "v*"), (8, 12, 1), MELORA_GLUE),
    "melora-table3": (("q_proj", "v_proj"), (8, 16, 32, 64, 128, 256, 1), MELORA_INSTRUCTIONS),
    "melora-table4": (("q*", "v*"), (4, 8, 16), MELORA_GLUE),
    "melora-table5": (("q_proj", "v_proj"), (16, 32, 64), MELORA_INSTRUCTIONS),
    "melora-figure4": (("q*", "v*"), (2, 4), MELORA_GLUE),
    "melora-figure5": (("q*", "v*"), (1, 2, 4, 8, 16), MELORA_GLUE),
    "milora-table6": (MILORA, (64,), {**MILORA_MATH, "epochs": 1.0, "max_length": 512}),
    "milora-table9": (ALL, (128,), PISSA_MATH),
    "mora-figure2": (ALL, (8, 16, 32, 64, 128, 256), {"pairs": 10_000, "batch_size": 1_000, "epochs": 100.0}),
    "pissa-table5": (ALL, (128,), PISSA_MATH),
    "pissa-figure4": (ALL, (128,), {**MORA_MATH, "learning_rate": 2e-5}),
    "pissa-figure5": (ALL, (128,), PISSA_MATH),
    "pissa-figure7": (ALL, (1, 2, 4, 8, 16, 32, 64, 128), PISSA_MATH),
    **{
        f"pissa-figure6-{model}": (ALL[:4] if model == "mixtral-8x7b" else ALL, (128,), PISSA_MATH)
        for model in (
            "llama-2-13b", "llama-3-8b", "llama-3-70b", "mistral-7b", "gemma-7b", "qwen1.5-7b", "yi-1.5-34b",
            "mixtral-8x7b",
        )
    },
    "milora-table1-llama2": (MILORA, (32,), {**MILORA_COMMONSENSE, **MILORA_BEST}),
    "milora-table1-llama3": (MILORA, (32,), {**MILORA_COMMONSENSE, **MILORA_BEST}),
    "milora-table2": (MILORA, (64,), MILORA_MATH),
    "milora-table5": (MILORA, (8, 12), {**MILORA_MATH, "steps": 100_000 // 16}),
    "milora-table3": (MILORA, (32,), {**MILORA_COMMONSENSE, "max_length": 2_048, "judge_model": "gpt-4-0613"}),
    "milora-table5-code": (
        MILORA, (8, 12), {**MILORA_COMMONSENSE, "epochs": 0.0, "steps": 100_000 // 16, "warmup_fraction": 0.0},
    ),
    "milora-table8": (MILORA, (64,), MILORA_MATH),
    "pissa-table1": (ALL, (128,), PISSA_MATH),
    **{f"pissa-table1-{model}": (ALL, (64,), PISSA_MATH) for model in ("mistral-7b", "gemma-7b")},
    **{f"pissa-table1-code-{model}": (ALL, (64,), PISSA_CODE) for model in ("mistral-7b", "gemma-7b")},
    "pissa-table1-conversation-llama-2-7b": (ALL, (128,), PISSA_CODE),
    **{f"pissa-table1-conversation-{model}": (ALL, (64,), PISSA_CODE) for model in ("mistral-7b", "gemma-7b")},
    "pissa-table1-code-llama-2-7b": (ALL, (128,), PISSA_CODE),
    **{
        f"pissa-table2-{model}": (("*",), (8,), PISSA_GLUE)
        for model in ("roberta-large", "deberta-v3-base")
    },
}  # fmt: skip


def test_every_suite_of_a_paper_is_expected_here():
    assert set(EXPECTED) == {path.stem for path in FILES} - {"c4-small"}


@pytest.mark.parametrize("name", EXPECTED)
def test_layers_ranks_and_recipe_are_the_papers(name):
    targets, ranks, recipe = EXPECTED[name]
    suite = read_suite(registry().suite(name))
    assert (suite.scale, suite.targets) == ("paper", targets)
    assert suite.budgets == (OWN,)  # as published: nothing is shrunk to match
    found = {each["r"] for settings in settings_of(name).values() for each in settings if "r" in each}
    assert found == set(ranks)
    for task in suite.tasks:
        found = asdict(resolve_recipe(registry().task(task)(), suite))
        assert {field: found[field] for field in recipe} == recipe


def settings_of(name):
    """Return a suite's settings by method; of those that are searched, every one."""
    found: dict[str, list[dict]] = {}
    suite = read_suite(registry().suite(name))
    for each in resolve_methods(suite.methods, registry(), OWN in suite.budgets):
        found.setdefault(each.method.name, []).extend(map(asdict, each.configs))
    return found


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.startswith("mora-table1")])
def test_mora_table_1_runs_what_was_searched_with_the_repositorys_settings(name):
    found, dropout = settings_of(name), 0.05 if name.endswith("math") else 0.0
    assert {each["alpha"] for method in ("lora", "lora+", "dora", "relora") for each in found[method]} == {16}
    assert {each["dropout"] for method in found if method != "full" for each in found[method]} == {dropout}
    assert [(each["operator"], each["r"]) for each in found["mora"]] == [("rotation", 8), ("sharing", 256)]
    assert [each["ratio"] for each in found["lora+"]] == [2, 4, 2, 4]
    assert [each["merge_every"] for each in found["relora"]] == [1_000, 2_000, 1_000, 2_000]
    assert [each["r"] for each in found["dora"]] == [8, 256]
    assert {each["trains"] for each in found["asylora"]} == {"ab"}
    assert {(each["restart_warmup"], each["timing"], each["reset"]) for each in found["relora"]} == {
        (50, "mora_repo", "delete")
    }


def test_mora_tables_2_to_4_use_their_operators_and_restarts():
    for mora in settings_of("mora-table2")["mora"]:
        assert (mora["operator"], mora["sharing"]) == ("sharing", 1)
    table3 = settings_of("mora-table3")
    (remora,), (relora,) = table3["remora"], table3["relora"]
    assert (remora["groups"], remora["merge_every"], remora["restart_warmup"]) == ("official", 2_000, 50)
    assert remora["reset"] == relora["reset"] == "delete"
    assert table3["mora"][0]["operator"] == "sharing"
    assert table3["lora"][0]["alpha"] == relora["alpha"] == 32
    operators = settings_of("mora-table4")["mora"]
    assert {each["operator"] for each in operators} == {"truncation", "sharing", "decoupling", "rotation"}
    assert {each["dropout"] for each in operators} == {0.05}


@pytest.mark.parametrize(("name", "n"), [("melora-table2", (2, 4, 8)), ("melora-table3", (8, 16, 32, 64))])
def test_melora_searches_n_with_alpha_16_for_every_mini(name, n):
    found = settings_of(name)
    assert tuple(dict.fromkeys(each["n"] for each in found["melora"])) == n
    every = [*found["melora"], *found["lora"]]
    assert {(each["alpha"], each["dropout"]) for each in every} == {(16, 0.05)}
    assert {each["rank_convention"] for each in found["melora"]} == {"mini"}
    assert len(read_suite(registry().suite(name)).seeds) == 5


def test_melora_trains_each_glue_task_as_long_as_its_scripts():
    suite = read_suite(registry().suite("melora-table2"))
    epochs = {"mnli": 30, "mrpc": 30, "qnli": 25, "qqp": 25, "rte": 80, "sst2": 60, "stsb": 40, "cola": 8}
    assert set(suite.tasks) == {f"glue/{task}" for task in epochs}
    for task, count in epochs.items():
        recipe = resolve_recipe(registry().task(f"glue/{task}")(), suite)
        assert (recipe.epochs, recipe.batch_size) == (count, 64 if task == "cola" else 128)
        assert recipe.max_length == (512 if task == "rte" else 256)
        assert recipe.learning_rate == (5e-4 if task in ("mnli", "sst2") else 4e-4)


@pytest.mark.parametrize(
    ("name", "rank"),
    [("milora-table1-llama2", 32), ("milora-table1-llama3", 32), ("milora-table2", 64), ("milora-table8", 64)],
)
def test_milora_compares_alpha_r_with_a_lora_of_alpha_2r(name, rank):
    found = settings_of(name)
    assert [(each["alpha"], each["dropout"]) for each in found["lora"]] == [(2 * rank, 0.05)]
    assert [(each["alpha"], each["dropout"]) for each in found["milora"]] == [("auto", 0.05)]  # auto: r
    assert [each["alpha"] for each in found["pissa"]] == ["auto"]


def test_milora_and_melora_rates_are_the_papers_for_every_adapter(no_data, tmp_path):
    for name in ("milora-table2", "melora-table3"):
        cells = plan(read_suite(registry().suite(name)), tmp_path)
        assert {cell.rates for cell in cells if cell.template.budget} == {(3e-4,)}


def test_mora_table_2_searches_the_papers_rates_and_no_others(no_data, tmp_path):
    rates = {cell.template.method: cell.grid() for cell in plan(read_suite(registry().suite("mora-table2")), tmp_path)}
    assert rates == {"lora": [1e-4, 2e-4, 3e-4], "mora": [5e-5, 1e-4, 2e-4], "full": [3e-5]}


def test_pissa_table_1_trains_full_fine_tuning_in_bfloat16(no_data, tmp_path):
    suite = read_suite(registry().suite("pissa-table1"))
    assert suite.precisions == {"full": "bfloat16"}


def test_pissa_table_1_is_in_float32_with_alpha_r_and_the_scripts_fast_svd():
    suite, found = read_suite(registry().suite("pissa-table1")), settings_of("pissa-table1")
    assert suite.precision == "float32"
    assert suite.learning_rates == (2e-5,)
    assert (found["lora"][0]["alpha"], found["lora"][0]["dropout"]) == (128, 0)
    assert (found["pissa"][0]["alpha"], found["pissa"][0]["niter"]) == ("auto", 16)


@pytest.mark.parametrize(
    ("name", "layers", "counts"),
    [  # adapter parameters by method and rank, on the whole model's shapes
        ("mora-table2", 32, {("lora", 8): 19_988_480, ("lora", 256): 639_631_360,
                             ("mora", 8): 20_014_592, ("mora", 256): 639_433_088}),
        ("mora-table1-math", 32, {("lora", 8): 19_988_480, ("dora", 8): 19_988_480 + 32 * (5 * 4_096 + 2 * 11_008)}),
        ("pissa-table1", 32, {("lora", 128): 319_815_680, ("pissa", 128): 319_815_680}),
        # As the paper counts: 168M of Mistral, 200M of Gemma.
        ("pissa-table1-mistral-7b", 32, {("lora", 64): 167_772_160, ("pissa", 64): 167_772_160}),
        ("pissa-table1-code-gemma-7b", 28, {("lora", 64): 200_015_872, ("pissa", 64): 200_015_872}),
        # 32 (3 (4096 + 4096) + 2 (4096 + 11008)) r
        ("milora-table2", 32, {("lora", 64): 112_197_632, ("milora", 64): 112_197_632}),
        ("melora-table2", 12, {("lora", 8): 294_912, ("melora", 8): 294_912, ("melora", 1): 36_864}),
    ],
)  # fmt: skip
def test_adapters_are_as_large_as_in_the_papers(name, layers, counts, no_data, tmp_path):
    suite = read_suite(registry().suite(name))
    found = plan(replace(suite, tasks=suite.tasks[:1]), tmp_path, layers)
    sizes = {(each.template.method, each.template.config.get("r")): each.template.adapter_parameters for each in found}
    assert {key: sizes[key] for key in counts} == counts


def test_the_table_of_forgetting_measures_forgetting_on_all_of_the_text():
    suite = read_suite(registry().suite("milora-table8"))
    for name in suite.tasks:
        assert {"forgetting", "forgetting_excess"} <= set(registry().task(name).metrics)
    assert suite.recipe["paper"]["forgetting_windows"] * 512 > 341_000  # tokens of WikiText-2's test split for Llama 2


# --- published numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_published_numbers_name_their_method_budget_metric_model_unit_and_table(path):
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    read_published(read_suite(path), registry())  # and so they can be read
    seen = set()
    for task_name, entries in data.get("published", {}).items():
        assert task_name in data["tasks"]
        task = registry().task(task_name)
        is_from_scratch = task.model_kind is ModelKind.FROM_SCRATCH
        for entry in entries:
            needed = {"method", "budget", "metric", "value", "unit", "model", "source", "confidence"}
            assert set(entry) - {"step", "caveat"} == needed
            assert entry["method"] in data["methods"]
            is_reference = registry().method(entry["method"].partition(":")[0]).traits.reference
            assert entry["budget"] == ("" if is_reference else OWN)
            assert entry["model"] == (f"from-scratch/{task_name}" if is_from_scratch else data["model"])
            assert entry["unit"] == task.metrics[entry["metric"]].unit
            assert 0 < entry["value"] <= UNITS.get(entry["unit"], 1_000)
            paper, word, *number = entry["source"].split()
            assert paper in ("MoRA", "MELoRA", "MiLoRA", "PiSSA")
            if word == "table":
                assert path.stem.startswith(f"{paper.lower()}-table{number[0]}")
            else:
                assert (word, number) == ("abstract", [])
                assert path.stem.startswith(f"{paper.lower()}-")
            assert entry["confidence"] in CONFIDENCE
            key = (task_name, entry["method"], entry["budget"], entry["metric"], entry.get("step"))
            assert key not in seen
            seen.add(key)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_published_number_stands_beside_a_trial_of_its_suite(path, no_data, tmp_path):
    suite = read_suite(path)
    published = read_published(suite, registry())
    beside = [id(entry) for cell in plan(suite, tmp_path) for entry in published.beside(cell.template)]
    assert sorted(beside) == sorted(id(quote.entry) for quote in published.quotes)  # each beside exactly one
