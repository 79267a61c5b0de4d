"""The command that a trial's page gives makes that trial, and no other."""

import shlex

import click
import pytest

from harness.cli.options import build_suite_from_options, suite_options
from harness.planning.plan import plan_cells
from harness.planning.registry import build_registry
from harness.results.catalogue import describe_method, read_catalogue, write_catalogue
from harness.results.reproduce import command
from harness.results.store import Store


@pytest.fixture(scope="module")
def registry():
    return build_registry()


def trials(registry, words):
    """Return the reported trials that a command line asks for."""
    seen = {}

    @click.command()
    @suite_options
    def parse(**options):
        seen.update(options)

    parse(words, standalone_mode=False)
    suite, data_dir = build_suite_from_options(registry, seen)
    cells = plan_cells(suite, registry, data_dir, "float32")
    return [cell.trial(rate, seed, "report") for cell in cells for rate in cell.rates for seed in cell.seeds]


@pytest.mark.parametrize(
    "asked",
    [
        "--methods lora --task uuid --steps 3 --seeds 2,5 --lr 0.0003,0.001",
        "--methods mora:operator=rotation,dora --task uuid --budget lora:r=4 --set batch_size=3 --seeds 7,",
        "--methods melora --task uuid --budget 20k --tolerance 0.2 --targets *q_proj --set evaluate_at=2+4 --steps 9",
        "--methods full --task uuid --scale small",
    ],
)
def test_the_command_makes_the_same_trial(registry, asked):
    for trial in trials(registry, shlex.split(asked)):
        knob = describe_method(registry.method(trial.method))["budget_knob"]
        words = shlex.split(command(trial, knob))
        assert words[:2] == ["harness", "run"]
        assert [each.id for each in trials(registry, words[2:])] == [trial.id]


@pytest.mark.parametrize(
    ("name", "rows", "asked"),
    [
        ("reviews.csv", 'text,label\n{i},"{j}"\n', ""),
        ("c++.csv", "my text,lang+uage\n{i},C++{j}\n", "--columns 'text=my text,label=lang+uage' --metric matthews"),
        ("commas.csv", 'text,label\n{i},"a, {j}"\n', ""),
        ("folder/train.csv", "prompt,response\n{i},a {j}\n", "--metric word:error --lower-is-better"),
    ],
)
def test_the_command_of_a_trial_on_a_users_own_data_makes_it_again(registry, tmp_path, monkeypatch, name, rows, asked):
    head, row = rows.split("\n", 1)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([head, *(row.strip("\n").format(i=f"t {i}", j=i % 2) for i in range(40))]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("harness_benchmarks.tasks.own.scores.by_module", lambda *_: (1.0, []))
    (trial,) = trials(registry, shlex.split(f"--data {name.split('/')[0]} --methods lora --seeds 1 --steps 2 {asked}"))
    words = shlex.split(command(trial, "r"))
    assert [each.id for each in trials(registry, words[2:])] == [trial.id]


def test_a_runs_methods_and_tasks_are_described_beside_its_records(registry, tmp_path):
    store = Store(str(tmp_path))
    write_catalogue(store, registry, trials(registry, ["--methods", "lora", "--task", "uuid"]))
    found = read_catalogue(store)
    assert found["methods"]["lora"]["formula"] == registry.method("lora").formula
    assert {each["name"] for each in found["methods"]["lora"]["settings"]} >= {"r", "alpha"}
    assert found["tasks"]["uuid"]["main_metric"] == registry.task("uuid").main_metric
    assert set(found["tasks"]["uuid"]["recipes"]) == set(registry.task("uuid").recipes)
