"""What a run shows where the output is not a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from harness.contract.record import State
from harness.running.progress import Display


@pytest.fixture
def show(make_trial, make_record):
    """Return a function that runs three trials past a display and returns its lines."""
    trials = [make_trial(seed=seed) for seed in range(3)]
    error = {"type": "ValueError", "message": "[bold]r=0[/]", "traceback": "", "step": None}
    records = [
        make_record(trials[0]),
        make_record(trials[1], state=State.FAILED, metrics={"accuracy": None}, error=error, cost={}),
        make_record(trials[2], state=State.INTERRUPTED, metrics={}, error=None, cost={}),
    ]

    def run(quiet=False, terminal=False):
        file = io.StringIO()
        console = Console(file=file, width=200, force_terminal=terminal, color_system=None)
        with Display(quiet, console) as display:
            display.expect(2)
            for number, (trial, record) in enumerate(zip(trials, records, strict=True)):
                if number == 1:
                    display.expect(1)  # a later round
                display("started", trial, {})
                display("progress", trial, {"step": 1, "steps": 2, "metrics": {"train/loss": 2.5}})
                display("finished", trial, {"record": record})
        return file.getvalue()

    return run


def test_one_line_per_trial_with_state_score_and_reason(show):
    first, second, third = show().splitlines()
    assert first.startswith("[1/2] done toy/lora/lr0.001/s0  accuracy 0.75  12.5 s  about 0 s left")
    assert second.startswith("[2/3] failed toy/lora/lr0.001/s1  ValueError: [bold]r=0[/]")  # text, not markup
    assert third == "[3/3] interrupted toy/lora/lr0.001/s2"


def test_quiet_shows_failures_only(show):
    assert [line.split()[1] for line in show(quiet=True).splitlines()] == ["failed", "interrupted"]


def test_a_terminal_shows_the_running_trial_and_the_same_lines(show):
    text = show(terminal=True)
    assert "[1/2] done toy/lora/lr0.001/s0  accuracy 0.75  12.5 s" in text
    assert "all trials" in text
