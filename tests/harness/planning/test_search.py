"""What is chosen on validation: rates that a suite lists, and settings of a method; and sizes that nothing matches."""

from __future__ import annotations

import pytest

from harness.contract.record import Record, State
from harness.errors import UsageError
from harness.planning.plan import plan_cells
from harness.planning.published import read_published
from harness.planning.registry import build_registry
from harness.planning.search import TUNE_SEED, pending, wanted
from harness.planning.suite import build_suite, read_suite

REGISTRY = build_registry()


def cells(**suite):
    return plan_cells(build_suite({"tasks": ["uuid"], "methods": ["lora"], **suite}), REGISTRY, None, "float32")


def run(score, found):
    """Run rounds to their end, with a score for each trial; return the searched and the reported trials."""
    records: dict[str, Record] = {}
    for _ in range(30):
        todo = pending(found, lambda trial: records.get(trial.id))
        if not todo:
            break
        for trial in todo:
            value = score(trial)
            records[trial.id] = Record(
                trial=trial, state=State.COMPLETE if value is not None else State.DIVERGED,
                main_metric="character_accuracy", higher_is_better=True, metrics={"character_accuracy": value},
                started_at="2026-01-01T00:00:00+00:00", finished_at="2026-01-01T00:00:01+00:00",
            )  # fmt: skip
    done = [record.trial for record in records.values()]
    return [t for t in done if t.purpose == "tune"], [t for t in done if t.purpose == "report"]


# --- settings -------------------------------------------------------------------------------------------------------


def test_one_setting_of_several_is_chosen_on_validation_and_reported_on_other_seeds():
    found = cells(methods=["melora:n=2|4|8"], seeds=[0, 1])
    searched, reported = run(lambda trial: -abs(trial.config["n"] - 4), found)
    assert [(t.config["n"], t.seed) for t in searched] == [(n, TUNE_SEED) for n in (2, 4, 8)]
    assert [(t.config["n"], t.seed) for t in reported] == [(4, 0), (4, 1)]
    assert len({t.adapter_parameters for t in reported + searched}) == 1  # each of the three matches the budget
    assert len({t.search for t in searched + reported}) == 1  # one choice, whose effort is counted together
    assert len({t.cell for t in searched}) == 3
    assert {t.searched for t in reported} == {"melora:n=2|4|8"}


def test_settings_are_searched_with_the_same_grid_of_rates_each():
    found = cells(methods=["lora+:ratio=2|4"], tune=3, seeds=[0])
    middle = found[0].grid()[1]
    best = {(2.0, middle): 0.5, (4.0, middle): 0.7}
    searched, (reported,) = run(lambda t: best.get((t.config["ratio"], t.learning_rate), 0.1), found)
    assert len(searched) == 6
    assert (reported.config["ratio"], reported.learning_rate) == (4, middle)


def test_of_equal_settings_and_rates_the_middle_ones_are_chosen():
    found = cells(methods=["melora:n=2|4|8"], tune=3, seeds=[0])
    _, (reported,) = run(lambda trial: 0.5, found)
    assert (reported.config["n"], reported.learning_rate) == (4, found[0].grid()[1])


def test_every_combination_of_several_settings_is_one_to_choose():
    (cell,) = cells(methods=["lora:alpha=8|16,dropout=0|0.1"])
    assert len(wanted(cell, lambda trial: None)) == 4


def test_where_no_setting_trains_one_is_reported_as_it_is():
    searched, reported = run(lambda trial: None, cells(methods=["melora:n=2|4"], seeds=[0]))
    assert len(searched) == 2
    assert [t.config["n"] for t in reported] == [2]


def test_a_trial_without_search_keeps_the_id_that_it_had_before_there_were_searches():
    (trial,) = wanted(cells()[0], lambda trial: None)
    assert "searched" not in trial.to_json()
    assert trial.search == trial.cell


def test_a_value_given_twice_is_refused():
    with pytest.raises(UsageError, match="twice"):
        cells(methods=["melora:n=2|2"])


# --- rates and precisions of single methods -------------------------------------------------------------------------


def test_rates_of_a_method_are_searched_as_they_are_and_never_extended():
    found = cells(methods=["lora", "mora", "full"], rates={"lora": [1e-4, 2e-4, 3e-4], "full": [3e-5]}, seeds=[0])
    searched, reported = run(lambda trial: trial.learning_rate, found)
    assert [(t.method, t.learning_rate) for t in searched] == [("lora", rate) for rate in (1e-4, 2e-4, 3e-4)]
    rates = {t.method: t.learning_rate for t in reported}
    assert (rates["lora"], rates["full"]) == (3e-4, 3e-5)
    assert rates["mora"] == cells(methods=["mora"])[0].rates[0]


def test_a_method_without_rates_of_its_own_is_tuned_where_others_are():
    found = cells(methods=["lora", "full"], rates={"full": [3e-5]}, tune=3, seeds=[0])
    searched, reported = run(lambda trial: -abs(trial.learning_rate - 1e-3), found)
    assert {t.method for t in searched} == {"lora"}
    assert {t.method for t in reported} == {"lora", "full"}


def test_a_method_has_the_precision_that_the_suite_gives_it():
    found = cells(methods=["lora", "full"], precisions={"full": "bfloat16"})
    assert {c.template.method: c.template.precision for c in found} == {"lora": "float32", "full": "bfloat16"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rates": {"mora": [1e-3]}}, "rates: 'mora' is not among the methods"),
        ({"rates": {"lora": []}}, "at least one"),
        ({"rates": {"lora": [1e-3, 1e-3]}}, "different numbers"),
        ({"rates": {"lora": ["fast"]}}, "not a list of numbers"),
        ({"precisions": {"lora": "half"}}, "'half' is not known; give float32 or bfloat16"),
        ({"rates": {"lora": [1e-3, 2e-3]}, "seeds": [TUNE_SEED]}, "is the seed on which rates are searched"),
    ],
)
def test_mistakes_are_named(given, said):
    with pytest.raises(UsageError, match=said):
        cells(**given)


def test_the_command_line_wins_over_rates_and_leaves_out_what_is_not_asked_for(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('tasks = ["uuid"]\nmethods = ["lora", "mora"]\n[rates]\nmora = [1e-4, 2e-4]\nlora = [1e-3]\n')
    assert read_suite(path, {"methods": ["lora"]}).rates == {"lora": (1e-3,)}
    assert read_suite(path, {"learning_rates": [5e-4]}).rates == {}
    assert read_suite(path, {"tune": 3}).rates == {}


# --- sizes of their own ---------------------------------------------------------------------------------------------


def test_with_budget_own_every_method_has_the_settings_that_are_written():
    given = {"methods": ["lora:r=8", "dora:r=8", "melora:n=2|4,r=8", "full"], "budgets": ["own"]}
    lora, dora, melora, full = [cell.template for cell in cells(**given)]
    assert (lora.config["r"], dora.config["r"], melora.config["r"]) == (8, 8, 8)
    assert dora.layer_settings == {}
    assert dora.adapter_parameters > lora.adapter_parameters == melora.adapter_parameters
    assert [(t.budget, t.budget_parameters) for t in (lora, dora, full)] == [
        ("own", lora.adapter_parameters), ("own", dora.adapter_parameters), ("", None),
    ]  # fmt: skip
    assert not lora.is_matched
    assert cells()[0].template.is_matched


def test_beside_a_matched_budget_a_size_cannot_be_given():
    with pytest.raises(UsageError, match="r=8 cannot be set, the budget decides it"):
        cells(methods=["lora:r=8"], budgets=["own", "lora:r=8"])


def test_a_published_number_stands_beside_its_own_size_only_and_beside_whichever_setting_was_chosen():
    entry = {"metric": "character_accuracy", "value": 0.5, "unit": "fraction", "model": "m", "source": "s"}
    entries = [
        {**entry, "method": "dora:r=8", "budget": "own"},
        {**entry, "method": "melora:n=2|4,r=8", "budget": "own"},
    ]
    given = build_suite(
        {"tasks": ["uuid"], "methods": ["dora:r=8", "dora:r=4", "melora:n=2|4,r=8", "melora:n=8,r=8"],
         "budgets": ["own"], "published": {"uuid": entries}}
    )  # fmt: skip
    published = read_published(given, REGISTRY)
    found = [
        (t.method, t.config["r"], len(published.beside(t)))
        for cell in plan_cells(given, REGISTRY, None, "float32")
        for t in (cell.template, *cell.others)
    ]
    assert found == [("dora", 8, 1), ("dora", 4, 0), ("melora", 8, 1), ("melora", 8, 1), ("melora", 8, 0)]


# --- several seeds of the search ------------------------------------------------------------------------------------


def test_a_rate_is_chosen_by_its_mean_over_the_seeds_of_the_search():
    found = cells(tune=3, tune_seeds=2, seeds=[0])
    low, middle, high = found[0].grid()
    scores = {
        (low, TUNE_SEED): 0.1, (low, TUNE_SEED + 1): 0.1, (middle, TUNE_SEED): 0.6, (middle, TUNE_SEED + 1): 0.6,
        (high, TUNE_SEED): 0.9, (high, TUNE_SEED + 1): 0.2,
    }  # fmt: skip
    searched, (reported,) = run(lambda t: scores.get((t.learning_rate, t.seed)), found)
    assert {(t.learning_rate, t.seed) for t in searched} == set(scores)
    assert reported.learning_rate == middle


def test_a_rate_that_diverges_on_a_seed_of_the_search_comes_after_those_that_never_do():
    found = cells(tune=3, tune_seeds=2, seeds=[0])
    _, middle, high = found[0].grid()
    often = {(high, TUNE_SEED): 0.9, (high, TUNE_SEED + 1): None}
    _, (reported,) = run(lambda t: often.get((t.learning_rate, t.seed), 0.5), found)
    assert reported.learning_rate == middle


def test_a_plan_counts_every_trial_that_a_search_may_take():
    (cell,) = cells(tune=3, tune_seeds=2, seeds=[0, 1])
    searched, reported = run(lambda t: t.learning_rate, [cell])  # always better further up
    assert len(searched) + len(reported) == (3 + 4) * 2 + 2 <= cell.most_trials(2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tune_seeds": 3}, "tune_seeds=3, but nothing is searched"),
        ({"tune": 3, "tune_seeds": 0}, "tune_seeds=0 must be from 1 to 100"),
        ({"tune": 3, "tune_seeds": 2, "seeds": [TUNE_SEED + 1]}, f"{TUNE_SEED + 1} is the seed on which rates"),
    ],
)
def test_seeds_of_a_search_that_cannot_be_are_refused(given, said):
    with pytest.raises(UsageError, match=said):
        cells(**given)


# --- halving --------------------------------------------------------------------------------------------------------


def seeds_by_rate(searched):
    spent: dict[float, int] = {}
    for trial in searched:
        spent[trial.learning_rate] = spent.get(trial.learning_rate, 0) + 1
    return [spent[rate] for rate in sorted(spent)]


def test_a_search_that_halves_stops_the_worse_half_after_each_doubling_of_its_seeds():
    found = cells(tune=5, tune_seeds=4, halving=True, seeds=[0, 1])
    grid = found[0].grid()
    value = dict(zip(grid, (0.1, 0.5, 0.9, 0.7, 0.2), strict=True))
    searched, reported = run(lambda t: value[t.learning_rate], found)
    assert seeds_by_rate(searched) == [1, 2, 4, 4, 1]  # 5 rates on 1 seed, 3 on 2, 2 on 4: 12 trials, not 20
    assert {t.learning_rate for t in reported} == {grid[2]}
    assert [t.seed for t in reported] == [0, 1]


def test_what_halving_leaves_is_chosen_by_the_mean_over_all_of_its_seeds():
    found = cells(tune=3, tune_seeds=4, halving=True, seeds=[0])
    low, middle, high = found[0].grid()
    first = {low: 0.4, middle: 0.7, high: 0.6}
    later = {low: 0.9, middle: 0.3, high: 0.6}  # what the low one would have shown, nobody sees
    _, (reported,) = run(lambda t: (first if t.seed == TUNE_SEED else later).get(t.learning_rate, 0.0), found)
    assert reported.learning_rate == high


def test_a_rate_that_diverges_gets_no_further_seeds_of_a_search_that_halves():
    found = cells(tune=3, tune_seeds=8, halving=True, seeds=[0])
    middle = found[0].grid()[1]
    searched, (reported,) = run(lambda t: 0.5 if t.learning_rate == middle else None, found)
    assert len(searched) == 3
    assert reported.learning_rate == middle
    assert len(run(lambda t: None, cells(tune=3, tune_seeds=8, halving=True, seeds=[0]))[0]) == 3


def test_settings_and_rates_are_halved_together_by_one_rule():
    found = cells(methods=["lora+:ratio=2|4"], tune=3, tune_seeds=4, halving=True, seeds=[0])
    middle = found[0].grid()[1]
    best = {(2.0, middle): 0.5, (4.0, middle): 0.7}
    searched, (reported,) = run(lambda t: best.get((t.config["ratio"], t.learning_rate), 0.1), found)
    assert len(searched) == 6 + 3 + 2 * 2
    assert (reported.config["ratio"], reported.learning_rate) == (4, middle)


def test_a_grid_grows_where_halving_chooses_its_edge():
    found = cells(tune=3, tune_seeds=2, halving=True, seeds=[0])
    low, middle, high = found[0].grid()
    first = {low: 0.1, middle: 0.9, high: 0.8}
    later = {middle: 0.1, high: 0.8}  # by the mean of both seeds the upper edge is best
    searched, (reported,) = run(lambda t: (first if t.seed == TUNE_SEED else later).get(t.learning_rate, 0.2), found)
    assert len({t.learning_rate for t in searched}) == 4
    assert max(t.learning_rate for t in searched) > high == reported.learning_rate


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tune": 3, "halving": True}, "give tune_seeds, e.g. 4"),
        ({"tune": 3, "tune_seeds": 2, "halving": 1}, "halving=1 is not true or false"),
        ({"tune": True}, "tune=True is not a whole number"),
    ],
)
def test_halving_that_cannot_be_is_refused(given, said):
    with pytest.raises(UsageError, match=said):
        cells(**given)
