"""What is recommended: the cheapest that cannot be told apart from the best, how sure that is, and which adapter."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from harness import UsageError
from harness.contract.record import State
from harness.results.store import Store
from harness_leaderboard.recommend.choose import recommend
from harness_leaderboard.recommend.command import best_trial
from harness_leaderboard.recommend.command import recommend as command
from harness_leaderboard.recommend.words import as_json, as_text, pairs_json
from harness_leaderboard.summary import harness_summarize

SEEDS = range(5)


def at(budget, parameters):
    return {"trial": {"budget": budget, "budget_parameters": parameters, "adapter_parameters": parameters}}


SMALL, LARGE = at("100k", 100_000), at("200k", 200_000)


def one(records):
    (found,) = recommend(records)
    return found


def test_what_is_told_apart_is_never_recommended_however_cheap(make_graded):
    found = one([*make_graded("poor", 0.3, SEEDS, **SMALL), *make_graded("good", 0.8, SEEDS, **LARGE)])
    assert found.choice.method == found.best.method == "good"
    assert [row.method for row in found.tied] == ["good"]


def test_of_what_cannot_be_told_apart_the_smallest_budget_is_recommended(make_graded):
    found = one([*make_graded("small", 0.8, SEEDS, **SMALL), *make_graded("large", 0.801, SEEDS, **LARGE)])
    assert {row.method for row in found.tied} == {"small", "large"}
    assert found.choice.method == "small"
    (larger,) = found.larger
    assert (larger.row.method, larger.difference.is_separated) == ("large", False)


def test_a_choice_among_configurations_that_may_be_guessing_is_not_sure(make_graded):
    details = {"accuracy": {"title": "Accuracy", "unit": "fraction", "chance": 0.5}}

    def why_not(*abilities):
        each = zip("ab", abilities, strict=True)
        return one(
            [r for name, at in each for r in make_graded(name, at, SEEDS, metric_details=details, **SMALL)]
        ).why_not

    assert why_not(0.5, 0.5) == "no configuration is told apart from guessing, which scores 0.5"
    assert why_not(0.5, 0.8) == ""


def test_a_choice_that_may_be_guessing_where_another_is_not_is_not_sure_and_names_it(make_record):
    details = {"accuracy": {"title": "Accuracy", "unit": "fraction", "chance": 0.5}}
    scores = {"quick": (0.3, 1.0, 0.4, 1.0, 0.9), "steady": (0.79, 0.8, 0.81, 0.8, 0.8)}
    found = one(
        [
            make_record(name, seed, score, metric_details=details, cost={"step_seconds_solo": seconds})
            for (name, each), seconds in zip(scores.items(), (0.01, 0.02), strict=True)
            for seed, score in enumerate(each)
        ]
    )
    assert found.choice.method == "quick"
    assert found.why_not == (
        "all looked at together, it is not told apart from guessing, which scores 0.5; "
        "the best that is: steady, budget lora:r=8"
    )


def test_what_is_smaller_than_its_budget_may_be_the_cheapest_and_that_is_said(make_graded):
    tiny = {**SMALL["trial"], "adapter_parameters": 500, "largest": True}
    whole = make_graded("whole", 0.801, SEEDS, **SMALL)
    found = one([*make_graded("tiny", 0.8, SEEDS, trial=tiny), *whole])
    assert found.choice.method == "tiny"
    told, said = as_json(found), as_text(found)
    assert (told["use"]["is_largest_it_can_be"], told["cheapest_at_whole_budget"]["method"]) == (True, "whole")
    assert "Use tiny, the largest it can be, below budget 100k" in said
    assert "It is smaller than the budget asks, with 500 of 100,000 parameters: tiny cannot be larger" in said
    assert "The cheapest at a whole budget is whole, budget 100k" in said
    assert "The whole budget, 100k with whole, brought " in said
    other = one([*make_graded("tiny", 0.3, SEEDS, trial=tiny), *whole])
    assert (other.choice.method, as_json(other)["use"]["is_largest_it_can_be"]) == ("whole", False)
    assert "smaller than the budget" not in as_text(other)
    best = one([*make_graded("tiny", 0.9, SEEDS, trial=tiny), *make_graded("whole", 0.3, SEEDS, **SMALL)])
    assert "No configuration at a whole budget does as well." in as_text(best)
    assert as_json(best)["cheapest_at_whole_budget"] is None


def test_full_fine_tuning_is_no_answer_but_what_it_brings_is_said(make_graded):
    outside = {"trial": {"budget": "", "budget_parameters": None, "adapter_parameters": 10**6}}
    full = make_graded("full", 0.9, SEEDS, **outside)
    found = one([*full, *make_graded("a", 0.5, SEEDS, **SMALL), *make_graded("b", 0.3, SEEDS, **SMALL)])
    assert (found.choice.method, found.best.method, found.loss) == ("a", "a", None)
    assert "It has the best score of the 2 configurations" in as_text(found)
    assert "full, outside every budget with 1,000,000 parameters, brought +0.4" in as_text(found)
    (reference,) = as_json(found)["references"]
    assert (reference["method"], reference["difference"]["is_separated"]) == ("full", True)
    alone = one(full)
    assert (alone.choice.method, alone.references) == ("full", ())


def test_where_nothing_varied_no_interval_is_claimed(make_graded, make_record):
    same = [make_record(name, seed, 1.0) for name in ("a", "b") for seed in range(3)]
    assert "1 over 3 seeds, no interval" in as_text(one(same))


def test_at_one_budget_the_faster_is_recommended_and_a_little_faster_is_not(make_graded):
    def cost(seconds):
        return {"cost": {"train_seconds": 100 * seconds, "step_seconds_solo": seconds}}

    slow = make_graded("slow", 0.81, SEEDS, **SMALL, **cost(1.0))
    assert one([*slow, *make_graded("fast", 0.8, SEEDS, **SMALL, **cost(0.2))]).choice.method == "fast"
    same = one(
        [*make_graded("a", 0.8, SEEDS, **SMALL, **cost(1.01)), *make_graded("b", 0.81, SEEDS, **SMALL, **cost(1.1))]
    )
    assert same.choice is same.best


@pytest.mark.parametrize("fastest", [0.5, 1.0, 1.2, 1.5])
def test_how_much_slower_counts_does_not_depend_on_where_the_fastest_lies(fastest, make_graded):
    def of(name, score, seconds):
        return make_graded(name, score, SEEDS, **SMALL, cost={"train_seconds": 1.0, "step_seconds_solo": seconds})

    little = one([*of("fastest", 0.8, fastest), *of("better", 0.81, 1.2 * fastest)])
    assert little.choice.method == "better"
    assert one([*of("fastest", 0.8, fastest), *of("better", 0.81, 1.3 * fastest)]).choice.method == "fastest"


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_direction_is_the_metrics(higher_is_better, make_graded):
    changes = {**SMALL, "higher_is_better": higher_is_better}
    found = one([*make_graded("low", 0.2, SEEDS, **changes), *make_graded("high", 0.8, SEEDS, **changes)])
    assert found.choice.method == ("high" if higher_is_better else "low")


def test_the_adapter_is_of_the_seed_that_did_best_on_validation(make_graded):
    records = make_graded("lora", 0.8, SEEDS, **SMALL)
    for place, record in enumerate(records):
        object.__setattr__(record, "history", [{"step": 1, "metrics": {"accuracy": 0.9 if place == 3 else 0.1}}])
    assert one(records).record.trial.seed == 3


def test_a_seed_is_judged_by_the_update_that_its_adapter_is_of(make_graded):
    records = make_graded("lora", 0.8, SEEDS, **SMALL)
    for place, record in enumerate(records):
        curve = {10: 0.9 if place == 3 else 0.5, 20: 0.1 if place == 3 else 0.4}
        steps = [{"step": step, "metrics": {"accuracy": score}} for step, score in curve.items()]
        object.__setattr__(record, "history", steps)
        object.__setattr__(record, "counts", {**record.counts, "checkpoint_step": 10})
    assert one(records).record.trial.seed == 3


def test_a_thin_measurement_is_said_to_be_one(make_graded, make_record):
    alone = one(make_graded("lora", 0.8, SEEDS, **SMALL))
    assert "one configuration was tried" in as_text(alone)
    single = one([make_record("a", 0, 0.8, **SMALL), make_record("b", 0, 0.2, **SMALL)])
    assert "one seed cannot tell configurations apart" in as_text(single)
    assert single.loss is None


def test_failures_are_counted_and_what_has_no_score_is_not_compared(make_graded, make_record):
    records = [*make_graded("lora", 0.8, SEEDS, **SMALL), make_record("broken", 0, None, state=State.FAILED, **SMALL)]
    found = one(records)
    assert found.failed == 1
    assert [row.method for row in found.rows] == ["lora"]
    assert "1 trials ended without a score" in as_text(found)
    assert recommend([make_record("broken", 0, None, state=State.FAILED)]) == []


def test_data_sets_models_and_metrics_are_never_mixed(make_graded):
    other = {"trial": {**SMALL["trial"], "data": "another"}}
    found = recommend([*make_graded("lora", 0.8, SEEDS, **SMALL), *make_graded("mora", 0.2, SEEDS, **other)])
    assert [each.choice.method for each in found] == ["lora", "mora"] or [each.choice.method for each in found] == [
        "mora",
        "lora",
    ]
    with pytest.raises(UsageError, match="there are 2 comparisons"):
        best_trial([*make_graded("lora", 0.8, SEEDS, **SMALL), *make_graded("mora", 0.2, SEEDS, **other)])


def test_words_and_json_say_the_same(make_graded):
    found = one([*make_graded("small", 0.8, SEEDS, **SMALL), *make_graded("large", 0.82, SEEDS, **LARGE)])
    text, data = as_text(found, "elsewhere"), as_json(found)
    assert "Use small, budget 100k, learning rate 0.001" in text
    assert "cannot be told apart" in text
    assert text.count("95 % interval for new items") == text.count("95 % interval") > 0
    assert "harness export best --task uuid --results elsewhere --format auto -o adapter" in text
    assert data["use"]["method"] == "small"
    assert data["use"]["interval"][0] < data["use"]["score"] < data["use"]["interval"][1]
    assert data["trial_id"] == found.record.trial_id
    assert data["loss_against_best"]["is_separated"] is False
    (pair,) = pairs_json(found)
    assert {pair["first_method"], pair["second_method"]} == {"small", "large"}
    assert pair["low"] < pair["difference"] < pair["high"]


def test_the_command_to_copy_names_the_root_that_was_read_not_that_of_the_record(make_graded):
    records = make_graded("lora", 0.8, SEEDS, **SMALL, environment={"results_root": "/gone/results"})
    text = harness_summarize(records, "moved here")
    assert "harness export best --task uuid --results 'moved here' " in text
    assert "/gone" not in text


def test_the_command_reads_a_result_root(tmp_path, make_graded):
    root = str(tmp_path / "results")
    store = Store(root)
    store.prepare()
    for record in make_graded("lora", 0.8, SEEDS, **SMALL):
        store.write(record)
    done = CliRunner().invoke(command, ["--results", root])
    assert "Use lora, budget 100k" in done.output
    missing = CliRunner().invoke(command, ["--results", root, "--task", "other"])
    assert isinstance(missing.exception, UsageError)
