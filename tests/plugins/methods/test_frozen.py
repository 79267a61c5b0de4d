"""The frozen base trains nothing: its trials do no step, and only a task's own head moves."""

import json
import re

import torch
from torch import nn

from harness import run
from harness.results.frame import render_list
from harness.results.store import Store
from harness_leaderboard.command import view_of
from harness_leaderboard.load import load
from harness_leaderboard.write.terminal import document
from harness_plugins.methods.frozen import FrozenBase, harness_register_methods


def test_nothing_trains():
    model = nn.Linear(4, 3).requires_grad_(False)
    FrozenBase().attach(model, torch.Generator())
    assert not any(p.requires_grad for p in model.parameters())
    assert FrozenBase().trainable_parameters(12, 20) == 0
    assert harness_register_methods() == [FrozenBase]


def test_a_trial_is_the_base_model_scored_without_a_step_and_without_a_search(tmp_path):
    run(
        methods=["frozen"], tasks=["uuid"], scale="smoke", seeds=2, tune=3, results=tmp_path, device="cpu", workers=1,
        quiet=True,
    )  # fmt: skip
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert len(records) == 2
    for record in records:
        assert (record["state"], record["trial"]["purpose"], record["history"]) == ("complete", "report", [])
        assert record["trial"]["adapter_parameters"] == 0
        assert record["metrics"]["character_accuracy"] < 0.3  # of sixteen digits, at random
        assert record["metrics"]["bits_per_parameter"] is None
        assert "no parameter" in record["reasons"]["bits_per_parameter"]
        assert "nothing trains" in record["reasons"]["step_seconds_solo"]
    shown = view_of(load([str(tmp_path)]), None).boards[0]
    assert shown.values[0]["learning_rate"] is None
    assert re.search(r"frozen .* 2 +— +0 ", document([shown], []), re.MULTILINE)  # seeds, rate, parameters
    assert re.search(r" frozen +reference +0 +- +0 ", render_list(Store(str(tmp_path)).records()))
