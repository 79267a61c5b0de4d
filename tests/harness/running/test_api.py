"""The functions for notebooks mean what the command line means."""

from __future__ import annotations

import pytest

import harness
from harness import HarnessError, UsageError

SMALL = {"steps": 2, "recipe": {"pairs": 2, "batch_size": 2}, "methods": "lora", "tasks": "uuid", "device": "cpu"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("api") / "results"
    return root, harness.run(**SMALL, results=root, seeds=2, workers=1, quiet=True)


def test_a_run_returns_its_records_as_a_table_and_they_are_found_again(trained):
    root, table = trained
    assert table["state"].tolist() == ["complete"] * 2
    assert table["seed"].tolist() == [0, 1]
    again = harness.read_results(root)
    assert sorted(again["trial_id"]) == sorted(table["trial_id"])
    assert harness.results(root).equals(again), "the room is called as its function"


def test_a_plan_says_what_is_there_and_what_is_to_do(trained):
    root, table = trained
    planned = harness.plan(**{**SMALL, "methods": ["lora", "mora"]}, results=root, seeds=2)
    assert planned.set_index("id")["state"].to_dict().items() >= dict.fromkeys(table["trial_id"], "complete").items()
    assert planned["state"].tolist() == ["complete", "complete", "to do", "to do"]
    assert planned["method"].tolist() == ["lora", "lora", "mora", "mora"]


def test_the_command_line_finds_what_a_notebook_trained(trained, tmp_path):
    from click.testing import CliRunner

    from harness.cli import app

    root, _ = trained
    asked = ["plan", "--task", "uuid", "--methods", "lora", "--seeds", "2", "--steps", "2", "--set", "pairs=2"]
    done = CliRunner().invoke(app, [*asked, "--set", "batch_size=2", "--device", "cpu", "--results", str(root)])
    assert "2 trials, 0 to do" in done.output


def test_own_data_may_be_given_by_dictionary(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("body,stars\n" + "".join(f"text {i},{i % 2}\n" for i in range(40)))
    planned = harness.plan(data=path, columns={"text": "body", "label": "stars"}, methods="lora", seeds=1)
    assert planned["task"].tolist() == ["classification/mine"]
    assert planned["recipe"][0]["labels"] == ["0", "1"]


def test_what_is_none_is_not_given_and_one_value_need_be_no_list():
    names = ("recipe", "columns", "labels", "metric", "data_kind", "data_dir", "model", "seeds", "budgets", "targets")
    assert len(harness.plan(tasks="uuid", methods="lora", device="cpu", steps=None, **dict.fromkeys(names))) == 3
    planned = harness.plan(**SMALL, seeds=range(1, 3), learning_rates=1e-3, budgets="lora:r=4", targets="q_proj,v_proj")
    (found,) = {(each.learning_rate, each.budget, tuple(each.targets)) for each in planned.itertuples()}
    assert (found, planned["seed"].tolist()) == ((1e-3, "lora:r=4", ("q_proj", "v_proj")), [1, 2])


def test_one_plugin_to_leave_out_need_be_no_list():
    with pytest.raises(UsageError, match="no method is called 'lora'"):
        harness.plan(**SMALL, block="methods:lora")


def test_mistakes_are_the_command_lines(tmp_path):
    with pytest.raises(UsageError, match="no method is called 'lorra'; did you mean lora"):
        harness.plan(**{**SMALL, "methods": "lorra"})
    with pytest.raises(UsageError, match="request: unknown key 'modle'"):
        harness.plan(**SMALL, modle="nano")
    with pytest.raises(UsageError, match="--columns is about --data"):
        harness.plan(**SMALL, columns="text=body")
    for read in (harness.compare, harness.read_results, harness.results):
        with pytest.raises(UsageError, match="no records in"):
            read(tmp_path / "nothing")


def test_the_environments_data_folder_counts_for_tasks_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_DATA_DIR", str(tmp_path))
    with pytest.raises(UsageError, match=f"there is no {tmp_path}/glue/rte/train"):
        harness.plan(tasks="glue/rte", methods="lora", device="cpu")
    (tmp_path / "mine.csv").write_text("text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(40)))
    assert len(harness.plan(data=tmp_path / "mine.csv", methods="lora", seeds=1, device="cpu")) == 1


def test_a_run_of_which_nothing_is_left_raises(tmp_path):
    with pytest.raises(HarnessError, match="every trial failed; "):
        harness.run(
            **{**SMALL, "recipe": {"pairs": 2, "batch_size": 2, "learning_rate": 1e30}},
            results=tmp_path / "results", workers=1, quiet=True,
        )  # fmt: skip
