"""``harness track rebuild`` tells the trackers about every record again."""

from __future__ import annotations

import json

from harness.cli.exit_codes import TRACKING_INCOMPLETE
from harness.results.store import Store


def test_trackers_are_told_again_and_a_failing_one_exits_with_3(
    trouble, make_record, make_trial, command, tmp_path, monkeypatch
):
    store = Store(str(tmp_path / "results"))
    store.prepare()
    trials = [make_trial(seed=seed) for seed in (0, 1)]
    for trial in trials:
        store.write(make_record(trial))
    rebuild = ["--block", "trackers:mlflow", "track", "rebuild", "--results", store.root]

    monkeypatch.setenv("TROUBLE_RAISE", "finished")
    assert command(*rebuild).code == TRACKING_INCOMPLETE

    monkeypatch.delenv("TROUBLE_RAISE")
    monkeypatch.setenv("TROUBLE_LOG", str(tmp_path / "log"))
    done = command(*rebuild)
    assert (done.code, done.err) == (0, "2 records told to the trackers\n")
    assert json.loads(command(*rebuild, "--json").out) == {"results": store.root, "records": 2, "failures": 0}
    told = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [each["hook"] for each in told[:5]] == ["started", "finished", "started", "finished", "sweep finished"]
    assert {each["trial"] for each in told[:4]} == {trial.id for trial in trials}
