"""What a suite says of a paper reaches the records of exactly the trials that it is of, and mistakes are named."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from harness.cli import app
from harness.errors import UsageError
from harness.planning.plan import plan_cells, resolve_recipe
from harness.planning.published import read_published
from harness.planning.registry import build_registry
from harness.planning.suite import build_suite
from harness.results.store import Store

REGISTRY = build_registry()
ENTRY = {
    "method": "mora:operator=rotation", "budget": "lora:r=8", "metric": "character_accuracy", "value": 0.5,
    "unit": "fraction", "model": "someone/large", "source": "a paper, table 2",
}  # fmt: skip


def suite(entries, **changes):
    return build_suite({"tasks": ["uuid"], "published": {"uuid": entries}, **changes})


def quoted(*methods, entries=(ENTRY,), **changes):
    """Return, for each planned (method, operator, budget), how many numbers stand beside it."""
    given = suite(list(entries), methods=list(methods), **changes)
    published = read_published(given, REGISTRY)
    trials = [cell.template for cell in plan_cells(given, REGISTRY, None, "float32")]
    return {(t.method, t.config.get("operator"), t.budget): len(published.beside(t)) for t in trials}


def test_a_number_is_of_one_method_with_its_settings_at_one_budget():
    found = quoted("mora:operator=rotation", "mora", "lora", budgets=["lora:r=8", "lora:r=4"])
    assert found == {
        ("mora", "rotation", "lora:r=8"): 1, ("mora", "rotation", "lora:r=4"): 0,
        ("mora", "sharing", "lora:r=8"): 0, ("mora", "sharing", "lora:r=4"): 0,
        ("lora", None, "lora:r=8"): 0, ("lora", None, "lora:r=4"): 0,
    }  # fmt: skip


def test_settings_are_compared_and_not_how_they_are_written():
    entries = [{**ENTRY, "method": "mora:operator=sharing,dropout=0"}, {**ENTRY, "method": "full", "budget": ""}]
    assert quoted("mora", "full", entries=entries) == {("mora", "sharing", "lora:r=8"): 1, ("full", None, ""): 1}


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"lora": 0.5}, "'uuid' must be a list of tables, each with method, budget"),
        ([{key: value for key, value in ENTRY.items() if key != "model"}], "has no 'model'; needed: method"),
        ([{**ENTRY, "page": 3}], "unknown key 'page'; known: method"),
        ([{**ENTRY, "value": "0.5"}], "value='0.5' is not of the right type"),
        ([{**ENTRY, "value": True}], "value=True is not of the right type"),
        ([{**ENTRY, "metric": "accuracy"}], "no metric 'accuracy'; it has character_accuracy"),
        ([{**ENTRY, "unit": "percent"}], "unit='percent', but the metric's is 'fraction'"),
        ([{**ENTRY, "method": "morra"}], "did you mean mora"),
        ([{**ENTRY, "method": "mora:r=8"}], "the budget decides it"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(entries, said):
    with pytest.raises(UsageError, match=said):
        read_published(suite(entries), REGISTRY)


def test_the_papers_recipe_is_the_paper_scales_with_the_suites_settings_there_and_no_others():
    given = {"paper": {"batch_size": 500, "epochs": 50}, "smoke": {"pairs": 9}, "steps": 7}
    found = suite([], scale="smoke", recipe=given)
    paper = read_published(found, REGISTRY).recipes["uuid"]
    assert (paper["batch_size"], paper["epochs"], paper["steps"], paper["pairs"]) == (500, 50.0, "auto", 10_000)
    assert paper["evaluate_at"] == [300, 500, 700, 900]  # plain JSON, as in records
    ours = resolve_recipe(REGISTRY.task("uuid")(), found)
    assert (ours.batch_size, ours.epochs, ours.steps, ours.pairs) == (16, 0.0, 7, 9)


def test_what_is_said_of_every_scale_wins_at_each():
    task = REGISTRY.task("uuid")()
    both = suite([], scale="paper", recipe={"paper": {"steps": 9, "epochs": 1, "pairs": 5}, "pairs": 6})
    assert (resolve_recipe(task, both).steps, resolve_recipe(task, both).pairs) == (9, 6)
    passes = suite([], scale="paper", recipe={"paper": {"steps": 9}, "epochs": 2})  # as --set epochs=2 does
    assert (resolve_recipe(task, passes).steps, resolve_recipe(task, passes).epochs) == ("auto", 2.0)


def test_a_table_of_no_scale_is_refused():
    with pytest.raises(UsageError, match=r"recipe\.huge names no scale; it has smoke, small, paper"):
        resolve_recipe(REGISTRY.task("uuid")(), suite([], recipe={"huge": {"steps": 3}}))


def test_a_run_writes_them_into_the_record(tmp_path, monkeypatch):
    (tmp_path / "small.toml").write_text(
        """
        tasks = ["uuid"]
        methods = ["lora:alpha=4"]
        [recipe.paper]
        batch_size = 500
        [published]
        uuid = [
            { method = "lora:alpha=4", budget = "lora:r=8", metric = "exact_match", value = 0.5, unit = "fraction", model = "someone/large", source = "a paper" },
            { method = "lora", budget = "lora:r=8", metric = "exact_match", value = 0.7, unit = "fraction", model = "someone/large", source = "a paper" },
        ]
        """  # noqa: E501
    )
    options = "--steps 1 --set pairs=2 --workers 1 --device cpu --no-mlflow --quiet --results out"
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["run", "--suite", "small.toml", *options.split()], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (record,) = Store(str(tmp_path / "out")).records()
    assert [(each["method"], each["value"]) for each in record.published] == [("lora:alpha=4", 0.5)]
    assert (record.paper_recipe["batch_size"], record.trial.recipe["batch_size"]) == (500, 16)
