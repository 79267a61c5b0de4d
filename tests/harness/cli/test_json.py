"""Every command that prints can print JSON."""

from __future__ import annotations

import json

import click
import pytest

from harness.cli import app
from harness.results.store import Store


def leaves(group, *path):
    """Yield every command below a group, with the words that call it; of a group that acts alone, that too."""
    if not isinstance(group, click.Group) or group.invoke_without_command:
        yield path, group
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            yield from leaves(group.get_command(context, name), *path, name)


def test_every_command_takes_json():
    found = dict(leaves(app))
    assert {("run",), ("plan",), ("export",), ("results", "show"), ("leaderboard", "diff"), ("recommend",)} <= set(
        found
    )
    without = [path for path, each in found.items() if "--json" not in {o for p in each.params for o in p.opts}]
    assert without == []


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["describe", "lora"], "name"),
        (["describe", "uuid"], "name"),
        (["describe", "glue"], None),
        (["base", "list"], "nano"),
        (["check", "lora"], "checks"),
        (["list", "methods"], None),
    ],
)
def test_what_is_printed_is_json(command, arguments, key):
    told = command(*arguments, "--json")
    found = json.loads(told.out)
    assert found if key is None else key in found
    assert told.code == 0


def test_records_are_printed_as_json(command, tmp_path, make_trial, make_record):
    root = str(tmp_path / "results")
    store = Store(root)
    store.prepare()
    record = make_record(make_trial(seed=0))
    store.write(record)
    (listed,) = json.loads(command("results", "list", "--results", root, "--json").out)
    assert listed["trial_id"] == record.trial_id
    shown = json.loads(command("results", "show", record.trial_id[:6], "--results", root, "--json").out)
    assert shown["trial_id"] == record.trial_id


def test_what_is_made_of_records_is_told_as_json(command, tmp_path, make_trial, make_record):
    root = str(tmp_path / "results")
    store = Store(root)
    store.prepare()
    records = [make_record(make_trial(seed=seed)) for seed in range(2)]
    for record in records:
        store.write(record)
    ids = sorted(record.trial_id for record in records)

    def told(*arguments):
        done = command(*arguments, "--json")
        assert done.code == 0, done.err
        return json.loads(done.out)

    exported = told("results", "export", tmp_path / "all.csv", "--results", root)
    assert exported == {"records": 2, "path": str(tmp_path / "all.csv")}
    assert records[0].trial.method in told("results", "describe", "--results", root)["described"]
    verified = told("verify", root)
    assert [each["trial_id"] for each in verified["records"]] == ids
    assert {each["verdict"] for each in verified["records"]} == {"sound"}
    assert told("leaderboard", "--results", root)["record_count"] == 2
    before = Store(str(tmp_path / "before"))
    before.prepare()
    before.write(records[0])
    (changed,) = told("leaderboard", "diff", before.root, root)
    assert (changed["what"], changed["rank_before"], changed["seeds"]) == ("1 trials more", None, "1 → 2")
    (advice,) = told("recommend", "--results", root)
    assert advice["trial_id"] in ids
    told("track", "rebuild", "--results", root)


def test_a_new_package_is_told_as_json(command, tmp_path):
    done = command("new", "method", "my-own", "-o", tmp_path / "mine", "--json")
    told = json.loads(done.out)
    assert told["check"] == "harness check my-own"
    assert sorted(told["files"]) == sorted(path.name for path in (tmp_path / "mine").iterdir())
