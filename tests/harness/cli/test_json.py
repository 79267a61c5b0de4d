"""Every command that prints can print JSON."""

from __future__ import annotations

import json

import pytest

from harness.results.store import Store


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
