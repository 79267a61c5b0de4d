"""``harness list`` and ``harness describe`` say what there is and what can be set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.mark.parametrize(("kind", "name"), [("methods", "lora"), ("tasks", "uuid"), ("executors", "local")])
def test_list_as_table_and_as_json(command, kind, name):
    table = command("list", kind)
    assert (table.code, table.err) == (0, "")
    assert any(line.split()[0] == name for line in table.out.splitlines())
    rows = json.loads(command("list", kind, "--json").out)
    (row,) = (row for row in rows if row["name"] == name)
    assert row["distribution"] == "peft-harness"
    assert Path(row["file"]).is_file()
    assert json.loads(command("--block", "peft-harness", "list", kind, "--json").out) == []


def test_describe_says_what_can_be_set(command):
    method = command("describe", "lora").out
    for part in ("LoRA (lora)", "solved by r", "an int >= 1", "arxiv.org", "alpha", "r (I + O)"):
        assert part in method
    task = command("describe", "uuid").out
    for part in ("character_accuracy *", "generated", "smoke", "paper", "batch_size"):
        assert part in task


def test_describe_lists_a_family(command):
    done = command("describe", "glue")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("glue is a family of tasks: --task glue takes them all, --task glue/cola takes one.\n")
    lines = [line.split() for line in done.out.splitlines()]
    for name, title, metric in (("glue/cola", "CoLA", "matthews"), ("glue/stsb", "STS-B", "pearson")):
        assert [name, "GLUE", title, metric, "smoke,", "small,", "paper"] in lines
    assert sum(line[:1] != [] and line[0].startswith("glue/") for line in lines) == 8


def test_a_task_that_is_also_the_start_of_others_is_described_itself(command):
    done = command("describe", "c4")
    assert done.code == 0
    assert "family" not in done.out
    assert "(c4)" in done.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["describe", "lorra"], "no method or task is called 'lorra'; did you mean lora"),
        (["list", "colours"], "'colours' is not one of"),
    ],
)
def test_what_does_not_exist_exits_with_2(command, arguments, said):
    done = command(*arguments)
    assert said in done.err
    assert done.code == 2
