"""From suites to trials: names, budgets, identities, and rounds of learning-rate search."""

from __future__ import annotations

import re

import pytest

from harness.contract.method import Purpose
from harness.contract.record import Record, State
from harness.errors import UsageError
from harness.planning.choices import resolve_methods, split_names
from harness.planning.plan import plan_cells
from harness.planning.registry import build_registry
from harness.planning.search import MOST_EXTENSIONS, TUNE_SEED, pending, wanted
from harness.planning.suite import build_suite

REGISTRY = build_registry()


def cells(**suite):
    return plan_cells(build_suite({"tasks": ["uuid"], "methods": ["lora"], **suite}), REGISTRY, None, "float32")


def trials(**suite):
    return [trial for cell in cells(**suite) for trial in wanted(cell, lambda trial: None)]


def ids(**suite):
    return [trial.id for trial in trials(**suite)]


class Results:
    """Records by trial, as a finished worker would have left them; a score per learning rate."""

    def __init__(self, score):
        self.score, self.records = score, {}

    def __call__(self, trial):
        return self.records.get(trial.id)

    def finish(self, some):
        for trial in some:
            outcome = self.score(trial.learning_rate)
            state = outcome if isinstance(outcome, State) else State.COMPLETE
            self.records[trial.id] = Record(
                trial=trial, state=state, main_metric="character_accuracy", higher_is_better=True,
                metrics={"character_accuracy": None if isinstance(outcome, State) else outcome},
                started_at="2026-01-01T00:00:00+00:00", finished_at="2026-01-01T00:00:01+00:00",
            )  # fmt: skip


def search(score, tune=5, **suite):
    """Run rounds to their end; return the searched rates, and the reported (rate, seed) pairs."""
    cell, results, rounds = cells(tune=tune, **suite), Results(score), 0
    while todo := pending(cell, results):
        results.finish(todo)
        rounds += 1
        assert rounds < 30
    done = [record.trial for record in results.records.values()]
    assert pending(cell, results) == []
    assert {trial.id for trial in done} == {trial.id for trial in wanted(cell[0], results)}
    searched = sorted(t.learning_rate for t in done if t.purpose == "tune")
    return searched, sorted((t.learning_rate, t.seed) for t in done if t.purpose == "report")


# --- crossing -------------------------------------------------------------------------------------------------------


def test_methods_budgets_rates_and_seeds_are_crossed():
    found = trials(
        methods=["lora", "mora"], budgets=["lora:r=2", "lora:r=4"], learning_rates=[1e-3, 3e-3], seeds=[0, 7]
    )
    assert len({t.id for t in found}) == len(found) == 2 * 2 * 2 * 2
    assert {t.config["r"] for t in found if t.method == "lora"} == {2, 4}
    for budget in ("lora:r=2", "lora:r=4"):
        (asked,) = {t.budget_parameters for t in found if t.budget == budget}
        assert all(abs(t.adapter_parameters - asked) <= 0.01 * asked for t in found if t.budget == budget)
    assert {(t.task, t.scale, t.model, t.precision, t.purpose) for t in found} == {
        ("uuid", "smoke", "nano", "float32", "report")
    }
    assert found[0].plugins["method"].startswith("peft-harness==")


def test_where_nothing_trains_there_is_one_rate():
    found = trials(methods=["frozen"], learning_rates=[1e-3, 3e-3], seeds=[0, 7])
    assert [t.seed for t in found] == [0, 7]


def test_the_same_suite_gives_the_same_ids():
    assert ids(methods=["all"], seeds=[0, 1]) == ids(methods=["all"], seeds=[0, 1])
    assert ids(learning_rates=[1]) == ids(learning_rates=[1.0])
    assert ids(recipe={"clip_norm": 1}) == ids(recipe={"clip_norm": "1.0"}) == ids()
    assert ids(recipe={"evaluate_at": list(REGISTRY.task("uuid").recipes["smoke"].evaluate_at)}) == ids()
    assert ids(recipe={"steps": 7}) != ids()


@pytest.mark.parametrize("budgets", [["lora", "lora:r=8"], ["80k", "20k", "80000"]])
def test_one_budget_that_is_written_in_two_ways_is_not_trained_twice(budgets):
    with pytest.raises(UsageError, match=r"are both 8[01],[90][20]0 parameters for task 'uuid'.*give one of them"):
        cells(budgets=budgets)


def test_a_reference_stands_outside_every_budget_and_runs_once():
    (full,) = trials(methods=["full"], budgets=["lora:r=2", "lora:r=4"])
    assert (full.budget, full.budget_parameters) == ("", None)
    assert full.adapter_parameters > 900_000  # the whole of nano


def test_rates_without_a_search_are_the_recipes_times_the_methods_factor():
    (lora,), (full,) = trials(methods=["lora"]), trials(methods=["full"])
    recipe = REGISTRY.task("uuid").recipes["smoke"]
    assert lora.learning_rate == recipe.learning_rate
    assert full.learning_rate == pytest.approx(
        recipe.learning_rate * REGISTRY.method("full").traits.learning_rate_factor
    )
    (own,) = trials(recipe={"learning_rate": 1.23456e-3})
    assert own.learning_rate == 1.23456e-3


def test_methods_are_chosen_by_name_group_settings_and_exclusion():
    def names(*given):
        return [(each.method.name, *each.configs) for each in resolve_methods(given, REGISTRY)]

    default = {name for name, method in REGISTRY.methods.items() if method.traits.in_all}
    assert {name for name, _ in names("all")} == default
    assert {name for name, _ in names("everything")} == set(REGISTRY.methods)
    assert {name for name, _ in names("all", "-lora", "-full")} == default - {"lora", "full"}
    assert len(names("lora", "all")) == len(default)  # named twice, run once
    (_, config), = names("lora:alpha=4")  # fmt: skip
    assert config.alpha == 4.0
    assert [name for name, _ in names("lora", "lora:alpha=4")] == ["lora", "lora"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["lorra"], "did you mean lora"),
        (["all", "-lorra"], "did you mean lora"),
        (["lora", "-lora"], "leaves nothing to run"),
        (["lora:colour=3"], "cannot read setting 'colour=3'"),
        (["lora:r=3"], "the budget decides it"),
        (["lora:alpha=-1"], "alpha=-1.0 is not allowed"),
    ],
)
def test_methods_that_do_not_exist_or_do_not_fit_are_refused(given, said):
    with pytest.raises(UsageError, match=said):
        resolve_methods(given, REGISTRY)


def test_commas_between_settings_stay_with_their_method():
    assert split_names("lora, mora:operator=rotation,r=3,dora") == ["lora", "mora:operator=rotation,r=3", "dora"]
    assert split_names("*q_proj,*v_proj") == ["*q_proj", "*v_proj"]


# --- overrides ------------------------------------------------------------------------------------------------------


def test_recipe_fields_are_overridden_and_later_evaluations_fall_away():
    given = {"steps": "40", "pairs": 3, "schedule": "constant", "evaluate_at": [30, 40, 50]}
    (trial,) = trials(recipe=given)
    assert (trial.recipe["steps"], trial.recipe["pairs"], trial.recipe["schedule"]) == (40, 3, "constant")
    assert trial.recipe["evaluate_at"] == (30,)
    (trial,) = trials(recipe={"epochs": 2})
    assert (trial.recipe["steps"], trial.recipe["epochs"]) == ("auto", 2.0)


@pytest.mark.parametrize(
    ("suite", "said"),
    [
        ({"recipe": {"colour": 3}}, r"the recipe has no 'colour'; it has steps, .*pairs"),
        ({"recipe": {"steps": "many"}}, "task 'uuid': steps='many' cannot be read; give a whole number"),
        ({"recipe": {"steps": -1}}, "steps=-1 is not allowed; give 'auto' or an int >= 1"),
        ({"recipe": {"steps": 0}}, "neither steps nor epochs are given"),
        ({"recipe": {"steps": "auto"}}, "neither steps nor epochs are given"),
        ({"scale": "huge"}, "no scale 'huge'; it has smoke, small, paper"),
        ({"tasks": ["uid"]}, "did you mean uuid"),
        ({"budgets": ["lots"]}, "no method is called 'lots'"),
        ({"targets": ["*qq_proj"]}, r"'\*qq_proj' matches no linear layer.*q_proj"),
        ({"targets": ["q_proj", "none"]}, "'none' matches no linear layer"),
        ({"methods": ["melora:n=7"]}, r"uuid: layer 'model\.layers\.0\.self_attn\.q_proj': melora: n=7.*--exclude"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_what_is_allowed(suite, said):
    with pytest.raises(UsageError, match=f"(?s){said}"):
        cells(**suite)


def test_a_task_that_trains_modules_which_the_model_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(REGISTRY.task("uuid"), "trains", ("clasifier", "scores"))
    with pytest.raises(UsageError, match=r"task 'uuid': trains=clasifier, scores matches no module.*model, lm_head"):
        cells()


def test_one_name_of_those_that_a_task_trains_is_enough(monkeypatch):
    monkeypatch.setattr(REGISTRY.task("uuid"), "trains", ("classifier", "lm_head"))
    assert len(cells()) == 1


def test_every_method_that_cannot_reach_the_budget_is_named_at_once():
    with pytest.raises(UsageError) as caught:
        cells(methods=["lora", "mora", "full"], budgets=["7"])
    text = str(caught.value)
    assert "uuid: lora: a budget of 7" in text
    assert "uuid: mora: a budget of 7" in text
    assert "full" not in text


def test_targets_narrow_the_layers_and_the_budget():
    (wide,), (narrow,) = trials(), trials(targets=["q_proj"])
    assert narrow.budget_parameters < wide.budget_parameters
    assert narrow.config["r"] == wide.config["r"] == 8


# --- learning-rate search -------------------------------------------------------------------------------------------

CENTRE = REGISTRY.task("uuid").recipes["smoke"].learning_rate
GRID = [float(f"{CENTRE * 10 ** (step / 2):.3g}") for step in range(-2, 3)]


def test_a_rank_beyond_the_width_of_every_layer_is_said():
    notes = [note for cell in cells(methods=["vera", "lora"], budgets=["lora:r=8"]) for note in cell.notes]
    (said,) = [note for note in notes if "width" in note]
    assert re.match(
        r"vera: this budget means r=2,\d{3}, beyond the width of every layer \(128\): a step costs more", said
    )
    assert not [note for cell in cells(methods=["vera"], budgets=["own"]) for note in cell.notes if "width" in note]


def test_a_trial_says_with_how_many_parameters_it_starts_and_ends():
    (adalora,) = trials(methods=["adalora"], budgets=["lora:r=8"], seeds=[0])
    (lora,) = trials(methods=["lora"], budgets=["lora:r=8"], seeds=[0])
    assert adalora.config["r"] == 12
    assert adalora.adapter_parameters > 1.4 * adalora.final_parameters
    assert 0 < adalora.budget_deviation_fraction < 0.01
    assert (lora.final_parameters, lora.matched_parameters) == (None, lora.adapter_parameters)
    assert "final_parameters" not in lora.to_json()  # trials from before it keep their ids
    (own,) = trials(methods=["adalora:r=12,target_r=8"], budgets=["own"], seeds=[0])
    assert (own.adapter_parameters, own.final_parameters) == (adalora.adapter_parameters, adalora.final_parameters)
    assert own.budget_deviation_fraction is None


def test_a_best_rate_inside_the_grid_is_reported_with_fresh_seeds():
    searched, reported = search(lambda rate: 1.0 if rate == GRID[3] else 0.5, seeds=[0, 1])
    assert searched == GRID
    assert reported == [(GRID[3], 0), (GRID[3], 1)]
    assert TUNE_SEED not in (0, 1)


def test_the_seed_of_the_search_cannot_be_reported():
    with pytest.raises(UsageError, match=f"seeds: {TUNE_SEED} is the seed on which rates are searched"):
        cells(tune=3, seeds=[0, TUNE_SEED])
    assert cells(seeds=[TUNE_SEED]), "without a search it is a seed like others"


def test_reports_wait_for_the_whole_search():
    cell, results = cells(tune=5), Results(lambda rate: rate)
    assert [t.learning_rate for t in pending(cell, results)] == GRID
    assert {(t.purpose, t.seed) for t in pending(cell, results)} == {("tune", TUNE_SEED)}
    results.finish(pending(cell, results)[:4])
    assert [t.learning_rate for t in pending(cell, results)] == GRID[4:]


@pytest.mark.parametrize(("sign", "end"), [(1, -1), (-1, 0)])
def test_a_best_rate_on_the_edge_extends_the_grid_up_to_a_limit(sign, end):
    searched, reported = search(lambda rate: sign * rate)
    assert len(searched) == 5 + MOST_EXTENSIONS
    assert reported == [(searched[end], 0)]


def test_the_grid_stops_growing_once_the_best_lies_inside():
    peak = CENTRE * 10**1.5
    searched, reported = search(lambda rate: -abs(rate - peak))
    assert len(searched) == 7  # two more above: one finds the best, the next shows that it is
    assert reported[0][0] == pytest.approx(peak, rel=1e-2)


@pytest.mark.parametrize("bad", [State.DIVERGED, State.FAILED, State.OUT_OF_MEMORY, State.TIMED_OUT])
def test_rates_that_came_to_nothing_are_not_chosen(bad):
    searched, reported = search(lambda rate: bad if rate > GRID[2] else rate)
    assert searched == GRID
    assert reported == [(GRID[2], 0)]


def test_where_nothing_trains_the_centre_is_reported():
    searched, reported = search(lambda rate: State.DIVERGED)
    assert (searched, reported) == (GRID, [(GRID[2], 0)])


def test_a_flat_grid_does_not_grow():
    searched, reported = search(lambda rate: 0.5)
    assert (searched, reported) == (GRID, [(GRID[2], 0)])


def test_interrupted_trials_are_pending_again():
    cell, results = cells(), Results(lambda rate: State.INTERRUPTED)
    results.finish(pending(cell, results))
    assert len(pending(cell, results)) == 1
    results.score = lambda rate: State.FAILED
    results.finish(pending(cell, results))
    assert pending(cell, results) == []


def test_cells_of_different_methods_are_searched_apart():
    both, results = cells(methods=["lora", "full"], tune=3), Results(lambda rate: 1.0)
    rates = {
        method: [t.learning_rate for t in pending(both, results) if t.method == method] for method in ("lora", "full")
    }
    factor = REGISTRY.method("full").traits.learning_rate_factor
    assert rates["full"] == pytest.approx([factor * rate for rate in rates["lora"]], rel=1e-2)


# --- settings that are left to the method ----------------------------------------------------------------------------


def settings(method, tmp_path, **changes):
    suite = build_suite({"tasks": ["uuid"], "methods": [method], **changes})
    return [cell.template for cell in plan_cells(suite, REGISTRY, tmp_path, "float32")]


@pytest.mark.parametrize(
    ("purpose", "rank", "operator"),
    [
        (Purpose.FINE_TUNING, 8, "rotation"),
        (Purpose.FINE_TUNING, 64, "sharing"),
        (Purpose.MEMORISING, 8, "sharing"),
        (Purpose.PRETRAINING, 8, "sharing"),
    ],
)
def test_mora_runs_what_its_paper_ran_for_such_a_task_at_such_a_rank(purpose, rank, operator, tmp_path, monkeypatch):
    monkeypatch.setattr(REGISTRY.task("uuid"), "purpose", purpose)
    (trial,) = settings("mora", tmp_path, budgets=[f"lora:r={rank}"])
    assert trial.config["operator"] == operator
    (asked,) = settings(f"mora:operator={operator}", tmp_path, budgets=[f"lora:r={rank}"])
    assert (trial.id, trial.adapter_parameters) == (asked.id, asked.adapter_parameters)
    (other,) = settings("mora:operator=decoupling", tmp_path, budgets=[f"lora:r={rank}"])
    assert other.config["operator"] == "decoupling"


def test_the_papers_purposes_are_the_tasks():
    purposes = {name: task.purpose for name, task in REGISTRY.tasks.items()}
    assert purposes["uuid"] is Purpose.MEMORISING
    assert all((purpose is Purpose.PRETRAINING) == (name.split("/")[0] == "c4") for name, purpose in purposes.items())
    assert purposes["math"] is purposes["continual/biomed"] is purposes["glue/rte"] is Purpose.FINE_TUNING


def test_layers_with_another_rank_have_what_follows_from_it(tmp_path):
    (trial,) = settings("pissa", tmp_path, budgets=["64000"])
    assert trial.config["alpha"] == trial.config["r"] == 6
    assert trial.layer_settings
    assert all(each == {"r": 7, "alpha": 7.0} for each in trial.layer_settings.values())
    (fixed,) = settings("pissa:alpha=12", tmp_path, budgets=["64000"])
    assert fixed.config["alpha"] == 12
    assert all(each == {"r": 7} for each in fixed.layer_settings.values())


def test_periods_are_those_of_the_runs_length_where_it_is_known(tmp_path):
    names = ("merge_every", "reset_every", "warmup", "restart_warmup")

    def periods(method="relora", **recipe):
        (trial,) = settings(method, tmp_path, recipe=recipe)
        return tuple(trial.config[name] for name in names)

    assert periods(steps=100) == (25, 25, 10, 6)
    assert periods("remora", steps=100) == (25, 25, 10, 6)
    assert periods("relora:merge_every=40,warmup=0", steps=100) == (40, 40, 0, 10)
    assert periods(epochs=2) == ("auto",) * 4, "the data says how many updates that is"
    assert periods(steps=2) == ("auto",) * 4, "nothing merges in a run this short"


def test_a_checkpoint_by_loss_needs_a_task_that_names_its_validation_rows(monkeypatch):
    asked = {"checkpoint": "best-loss", "evaluate_at": (2,), "steps": 4}
    (cell,) = plan_cells(
        build_suite({"tasks": ["uuid"], "methods": ["lora"], "recipe": asked}), REGISTRY, None, "float32"
    )
    assert cell.template.recipe["checkpoint"] == "best-loss"
    monkeypatch.delattr(REGISTRY.task("uuid"), "validation_examples")
    with pytest.raises(
        UsageError, match="checkpoint=best-loss has no loss to choose by; give checkpoint=best, which goes"
    ):
        plan_cells(build_suite({"tasks": ["uuid"], "methods": ["lora"], "recipe": asked}), REGISTRY, None, "float32")
