"""``harness plan`` tells what a run would do, and does nothing."""

from __future__ import annotations

import json

SMALL = ["--task", "uuid", "--steps", "2", "--set", "pairs=2", "--set", "batch_size=2"]


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
