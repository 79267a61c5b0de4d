"""``harness plan`` tells what a run would do, and does nothing."""

from __future__ import annotations

import json
import random
import re
from statistics import fmean

import pytest

from harness import Looks, Record, Trial
from harness.contract.record import State
from harness.results.store import Store

SMALL = ["--task", "uuid", "--steps", "2", "--set", "pairs=2", "--set", "batch_size=2", "--seeds", "1"]


def test_plan_prints_a_table_or_json_and_writes_nothing(command, tmp_path):
    arguments = ["plan", *SMALL, "--methods", "lora,full", "--seeds", "2", "--results", tmp_path / "none"]
    table = command(*arguments)
    assert table.code == 0
    assert "4 trials, 4 to do" in table.out
    assert "+0.00%" in table.out
    assert "reference" in table.out
    trials = json.loads(command(*arguments, "--json").out)
    assert {(t["method"], t["seed"], t["state"]) for t in trials} == {
        (method, seed, "to do") for method in ("lora", "full") for seed in (0, 1)
    }
    assert len({t["id"] for t in trials}) == 4
    assert not (tmp_path / "none").exists()
    tuned = command(*arguments, "--tune", "3")
    assert "6 trials, 6 to do (more follow" in tuned.out


def test_hook_harness_forecast(command, tmp_path):
    arguments = ["plan", *SMALL, "--results", tmp_path / "none", "--seeds"]
    few = command(*arguments, "3", "--methods", "lora,mora,dora").out.splitlines()[-1]
    assert few.startswith("uuid: 3 seeds of 3 methods will tell differences of about ")
    assert few.endswith("if the score is a share of right answers among 256 items and seeds vary by 2 points.")
    alone = command(*arguments, "1", "--methods", "lora,mora,full").out
    assert "uuid: 1 seed of 2 methods can tell nothing apart; run two methods or more, with two seeds or more." in alone


def test_a_forecast_is_in_the_metrics_own_unit_or_says_nothing(command, tmp_path):
    (tmp_path / "mine.jsonl").write_text("".join(f'{{"text": "Some text, number {i}."}}\n' for i in range(60)))
    asked = ["plan", "--data", tmp_path / "mine.jsonl", "--methods", "lora,mora", "--seeds", "3", "--scale", "smoke"]
    asked += ["--results", tmp_path / "results", "--until-separated", "2"]
    (tmp_path / "results").mkdir()
    done = command(*asked)
    assert done.code == 0
    assert "points" not in done.out
    assert "may differ by 2 (perplexity)." in done.out
    assert "3 seeds of 2 methods: what they tell apart in Perplexity can be said once" in done.out
    for trial in json.loads(command(*asked, "--json").out):
        draw = random.Random(trial["id"])
        losses = [3 + item / 10 + draw.gauss(0, 0.05) for item in range(20)]
        answered(tmp_path / "results", trial, "perplexity", losses)
    done = command(*asked)
    assert re.search(
        r"will tell differences of about [0-9.]+ \(perplexity\) apart .*by the trials that are fin", done.out
    )


@pytest.mark.parametrize(
    ("asked", "left"),
    [
        (["--steps", "35"], [30]),  # of the recipe's own 30, 40 and 50
        (["--suite", "{tmp}/late.toml", "--steps", "35"], [20]),  # of the suite's own 20 and 40
        (["--suite", "{tmp}/late.toml", "--set", "steps=45"], [20, 40]),
        (["--set", "evaluate_at=7+60"], [7]),  # the last of 60, which is always scored
        (["--set", "evaluate_at="], []),
    ],
)
def test_evaluations_that_nobody_asked_for_by_hand_give_way_to_fewer_steps(command, tmp_path, asked, left):
    (tmp_path / "late.toml").write_text('tasks = ["uuid"]\n[recipe]\nevaluate_at = [20, 40]')
    options = ["--task", "uuid", "--methods", "lora", "--results", tmp_path / "none", "--json", "--seeds", "1"]
    done = command("plan", *options, *(each.replace("{tmp}", str(tmp_path)) for each in asked))
    assert (done.code, done.err) == (0, "")
    (trial,) = json.loads(done.out)
    assert trial["recipe"]["evaluate_at"] == left


def answered(folder, trial, metric, items, **environment):
    """Write the record of a planned trial with some items' scores."""
    unit = {"character_accuracy": "fraction", "perplexity": "perplexity"}[metric]
    record = Record(
        trial=Trial.from_json({name: value for name, value in trial.items() if name not in ("id", "state")}),
        state=State.COMPLETE, metrics={metric: fmean(items)}, main_metric=metric, items={metric: items},
        higher_is_better=unit == "fraction", metric_details={metric: {"unit": unit}}, started_at="", finished_at="",
        environment=environment,
    )  # fmt: skip
    Store(str(folder)).write(record)


def right(count):
    """Return the metric and the items of a trial that answered so many of a hundred right."""
    return "character_accuracy", [1.0] * count + [0.0] * (100 - count)


def test_hook_harness_undecided(command, tmp_path):
    looks = ["--until-separated", "5", "--max-seeds", "6"]
    asked = ["plan", *SMALL[:-1], "2", "--methods", "lora,mora,dora", "--results", tmp_path, *looks]
    table = command(*asked).out
    assert "6 trials, 6 to do" in table
    assert "Looks after 2, 3, 5 and 6 seeds, with 45 %, 17 %, 27 %, 11 % of the level" in table
    assert "At most 18 trials." in table
    first = json.loads(command(*asked, "--json").out)
    for trial in first:
        answered(tmp_path, trial, *right({"lora": 5, "mora": 50, "dora": 52}[trial["method"]] + trial["seed"]))
    second = json.loads(command(*asked, "--json").out)
    todo = {(each["method"], each["seed"]) for each in second if each["state"] == "to do"}
    assert {("mora", 2), ("dora", 2)} == todo or {("mora", 2), ("dora", 2), ("lora", 2)} == todo


def test_hook_harness_uncompared(command, tmp_path):
    looks = ["--until-separated", "5", "--max-seeds", "6"]
    asked = [*SMALL[:-1], "2", "--methods", "lora", "--results", tmp_path, *looks]
    for trial in json.loads(command("plan", *asked, "--json").out):
        answered(tmp_path, trial, *right(50))
    done = command("run", *asked, "--no-mlflow", "--device", "cpu")
    assert done.code == 0
    assert "after 2 seeds no two methods are left that are compared" in done.err
    assert "uuid lora: not compared, nothing to compare with" in done.err


def test_a_plan_of_looks_is_not_changed_on_the_way(command, tmp_path):
    asked = ["plan", *SMALL[:-1], "2", "--methods", "lora,mora", "--results", tmp_path, "--until-separated", "5"]
    (trial, *_) = json.loads(command(*asked, "--json").out)
    answered(tmp_path, trial, *right(50), looks=Looks.plan(5, (0, 1), 10).to_json())
    assert command(*asked).code == 0
    refused = command(*asked, "--max-seeds", "20")
    assert refused.code == 2
    assert "a plan is fixed before the first seed" in refused.err
    blocked = command("--block", "leaderboard", *asked)
    assert blocked.code == 2
    assert "no plug-in says which methods are separated" in blocked.err


def test_a_suites_methods_may_be_excluded_and_the_head_says_every_precision(command, tmp_path):
    (tmp_path / "mine.toml").write_text(
        'methods = ["lora", "mora", "full"]\ntasks = ["uuid"]\n[precisions]\nfull = "bfloat16"\n'
    )
    told = command("plan", "--suite", tmp_path / "mine.toml", "--exclude", "mora", "--device", "cpu").out.splitlines()
    assert told[0] == "model nano, float32 and bfloat16, budget lora:r=8"
    assert [line.split()[1] for line in told if line.startswith("uuid ")] == ["lora", "full"]
