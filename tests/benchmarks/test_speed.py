"""The speed benchmarks that need nothing but a CPU still run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SPEED = Path(__file__).parents[2] / "benchmarks" / "speed"


def test_large_sweeps_are_timed_without_training(tmp_path):
    command = [sys.executable, SPEED / "planning.py", "--trials", "100", "200", "--output", tmp_path / "seconds.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split("|")[1].strip() for line in done.stdout.splitlines()[2:]] == ["100", "200"]
    seconds = json.loads((tmp_path / "seconds.json").read_text())
    for found in seconds.values():
        assert found["together"] == sum(found[part] for part in ("plan", "group", "list"))


@pytest.mark.exhaustive
def test_a_divided_model_trains_on_random_weights(tmp_path):
    command = [
        sys.executable, SPEED / "divided.py", "--ranks", "2", "--shape", "tiny", "--device", "cpu", "--length", "32",
        "--precision", "float32", "--json", tmp_path / "seen.json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["kept"] < seen["parameters"]
    assert seen["methods"].keys() == {"lora", "mora"}
    for each in seen["methods"].values():
        assert each["losses"][-1] < each["losses"][0]
