"""The speed benchmarks that need nothing but a CPU still run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SPEED = Path(__file__).parents[2] / "benchmarks" / "speed"


def test_large_sweeps_are_timed_without_training(tmp_path):
    command = [sys.executable, SPEED / "planning.py", "--trials", "100", "200", "--output", tmp_path / "seconds.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split("|")[1].strip() for line in done.stdout.splitlines()[2:]] == ["100", "200"]
    seconds = json.loads((tmp_path / "seconds.json").read_text())
    for found in seconds.values():
        assert found["together"] == sum(found[part] for part in ("plan", "group", "list"))
