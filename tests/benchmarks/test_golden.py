"""The comparison of a sweep before and after a change passes over times and ids, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

COMPARE = Path(__file__).parents[2] / "benchmarks" / "golden" / "compare.py"
RECORD = {
    "trial_id": "a1",
    "trial": {"task": "toy", "method": "lora", "seed": 0, "plugins": {"method": "sha256.1"}, "config": {"r": 8}},
    "state": "complete",
    "started_at": "2026-01-02T03:04:05+00:00",
    "cost": {"train_seconds": 1.0},
    "history": [{"step": 1, "metrics": {"train/loss": 2.5}}, {"step": 2, "metrics": {"train/loss": 2.25}}],
    "metrics": {"accuracy": 0.5},
    "artifacts": {"adapter": "adapters/a.safetensors"},
}


def root(folder, record, value=1.0):
    (folder / "adapters").mkdir(parents=True)
    save_file({"q.a": numpy.full(3, value)}, folder / "adapters" / "a.safetensors")
    (folder / f"{record['trial_id']}.json").write_text(json.dumps(record))
    return folder


def compare(*sides):
    done = subprocess.run([sys.executable, COMPARE, *sides], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def before(tmp_path):
    return root(tmp_path / "before", RECORD)


def test_times_ids_and_what_is_new_are_no_difference(before, tmp_path):
    record = deepcopy(RECORD)
    record |= {"trial_id": "b2", "started_at": "2027-01-02T03:04:05+00:00", "cost": {"train_seconds": 2.0}}
    record["trial"]["plugins"] = {"method": "sha256.2"}
    record["metrics"]["f1"] = 0.25
    code, said = compare(before, root(tmp_path / "after", record))
    assert (code, said.splitlines()) == (
        0, ["said on one side only: metrics.f1", "1 trials on both sides, 0 differences"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("history", 1, "metrics", "train/loss"), 2.125, "history[1].metrics.train/loss: 2.25 -> 2.125"),
        (("history",), RECORD["history"][:1], "history[1].step: 2 -> nothing"),
        (("trial", "config", "r"), 7, "trial.config.r: 8 -> 7"),
        (("state",), "diverged", "state: 'complete' -> 'diverged'"),
        (("trial", "method"), "mora", "no such trial on one side"),
    ],
)
def test_a_difference_is_named_with_its_place(before, tmp_path, path, value, said):
    record = deepcopy(RECORD)
    inside = record
    for name in path[:-1]:
        inside = inside[name]
    inside[path[-1]] = value
    code, printed = compare(before, root(tmp_path / "after", record))
    assert code == 1
    assert said in printed


def test_another_adapter_is_a_difference_and_no_records_are_an_error(before, tmp_path):
    code, said = compare(before, root(tmp_path / "after", RECORD, value=1.5))
    assert code == 1
    assert "adapter[0]: 'q.a: " in said
    code, said = compare(before, tmp_path)
    assert code == 1
    assert "has no records" in said
