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


def test_a_trial_that_starts_again_has_one_bar(make_trial):
    file = io.StringIO()
    with Display(console=Console(file=file, width=200, force_terminal=True, color_system=None)) as display:
        display.expect(1)
        for _ in range(2):  # its pack failed, or its worker died
            display("started", make_trial(seed=0), {})
        display.say("now")
    assert file.getvalue().rpartition("all trials")[2].count(" preparing ") == 1


def test_off_a_terminal_a_long_trial_is_told_of_now_and_then(make_trial, monkeypatch):
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr("harness.running.progress.time.monotonic", lambda: float(next(clock)))
    file = io.StringIO()
    display = Display(console=Console(file=file, width=200))
    trial = make_trial(seed=0)
    display.expect(1)
    display("started", trial, {})
    for step in range(1, 5):
        display("progress", trial, {"step": step, "steps": 100, "metrics": {"train/loss": 2.5}})
    lines = file.getvalue().splitlines()
    assert 0 < len(lines) < 4
    assert lines[0].startswith("[0/1] toy/lora/lr0.001/s0  step ")
    assert "loss 2.5" in lines[0]
    assert "left" not in lines[0], "one update says nothing of the pace"
    assert "left" in lines[-1]


def test_time_left_does_not_count_how_long_the_first_trial_was_prepared(make_trial, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("harness.running.progress.time.monotonic", lambda: now[0])
    file = io.StringIO()
    display = Display(console=Console(file=file, width=200))
    trial = make_trial(seed=0)
    display.expect(3)
    display("started", trial, {})
    for now[0], step in ((200.0, 1), (220.0, 11), (240.0, 21)):
        display("progress", trial, {"step": step, "steps": 101, "metrics": {"train/loss": 2.5}})
    assert "about 9 min left" in file.getvalue().splitlines()[-1], "3 * 101 - 21 updates of two seconds"


def test_time_left_does_not_count_what_came_before_the_first_trial(make_trial, make_record, monkeypatch):
    times = iter([1000.0] * 3 + [1010.0] * 20)
    monkeypatch.setattr("harness.running.progress.time.monotonic", lambda: next(times))
    file = io.StringIO()
    display = Display(console=Console(file=file, width=200))
    trial = make_trial(seed=0)
    display.expect(3)
    display("started", trial, {})
    for _ in range(2):
        next(times)
    display("finished", trial, {"record": make_record(trial)})
    assert "about 20 s left" in file.getvalue()
