"""The live display of a run: trial, step, loss, time left; plain lines where the output is not a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from harness.contract.record import Record, State
from harness.contract.trial import Trial

MARKS = {
    State.COMPLETE: ("done", "green"),
    State.INTERRUPTED: ("interrupted", "yellow"),
    State.LOST: ("lost", "yellow"),
}  # others: red
TELL_EVERY = 30.0  # seconds: a line on how far a trial is, where no bar shows it


class Display:
    """Shows events of the scheduler.

    Args:
        quiet: Show nothing but failures.
        console: Where to show it; standard error, so that standard output stays a command's product.
    """

    def __init__(self, quiet: bool = False, console: Console | None = None) -> None:
        self.total, self.finished, self.quiet = 0, 0, quiet
        self.console = console or Console(stderr=True)
        self.live = (self.console.is_terminal or self.console.is_jupyter) and not quiet
        self._bars: dict[str, TaskID] = {}
        self._parts: dict[str, float] = {}  # of the running trials, how much is done
        self._start: float | None = None  # when the first trial began: loading libraries is no trial's time
        self._trained: tuple[float, float] | None = None  # the same of its first updates, and how much was done by then
        self._told = 0.0
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.live,
        )
        self._overall = self._progress.add_task("all trials", total=1, note="")

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Show a line about the sweep."""
        if not self.quiet:
            self.console.print(Text(text), soft_wrap=True)

    def expect(self, more: int) -> None:
        """Count trials that are to run, also those that an earlier round's results asked for."""
        self.total += more
        self._progress.update(self._overall, total=self.total)

    def __call__(self, event: str, trial: Trial, payload: Mapping[str, Any]) -> None:
        """Show one event."""
        if event == "started":
            self._start = self._told = self._start or time.monotonic()
            self._parts[trial.id] = 0.0
            self._remove_bar(trial.id)  # one that starts again: its pack failed, or its worker died
            self._bars[trial.id] = self._progress.add_task(trial.label, total=1, note="preparing")
        elif event == "progress":
            bar = self._bars.get(trial.id)
            loss = payload["metrics"].get("train/loss")
            note = "" if loss is None else f"loss {loss:.4g}"
            self._parts[trial.id] = payload["step"] / max(1, payload["steps"])
            self._trained = self._trained or (time.monotonic(), self._done())
            if bar is not None:
                self._progress.update(bar, completed=payload["step"], total=payload["steps"], note=note)
            if not self.live and not self.quiet and time.monotonic() - self._told >= TELL_EVERY:
                self._told = time.monotonic()
                steps = f"step {payload['step']}/{payload['steps']}"
                rest = "  ".join(filter(None, [trial.label, steps, note, self._left()]))
                self.console.print(Text(f"[{self.finished}/{self.total}] {rest}"), soft_wrap=True)
        elif event == "finished":
            self._finish(payload["record"])

    def _remove_bar(self, trial_id: str) -> None:
        bar = self._bars.pop(trial_id, None)
        if bar is not None:
            self._progress.remove_task(bar)

    def _finish(self, record: Record) -> None:
        self._remove_bar(record.trial_id)
        self.finished += 1
        self._parts.pop(record.trial_id, None)
        self._told = time.monotonic()
        self._progress.update(self._overall, completed=self.finished)
        failed = record.state is not State.COMPLETE
        if self.quiet and not failed:
            return
        score = "" if record.score is None else f"{record.main_metric} {record.score:.4g}"
        seconds = record.cost.get("train_seconds")
        cost = "" if seconds is None else f"{seconds:.1f} s"
        why = "" if record.error is None else f"{record.error['type']}: {record.error['message']}"
        left = self._left()
        mark = MARKS.get(record.state, (record.state.value, "red"))
        rest = "  ".join(filter(None, [record.trial.label, score, cost, why, left]))
        # One piece: under a live display every print is a line of its own.
        self.console.print(Text.assemble(f"[{self.finished}/{self.total}] ", mark, f" {rest}"), soft_wrap=True)

    def _done(self) -> float:
        """Return how many trials are done, parts of them counted."""
        return self.finished + sum(self._parts.values())

    def _left(self) -> str:
        """Return the estimated time left, in words; nothing on a terminal, where a bar shows it.

        Until a trial has finished, the pace is that of updates: preparing the first takes long beside its first few.
        """
        since, before = (self._start, 0.0) if self.finished else (self._trained or (None, 0.0))
        done = self._done()
        rest = self.total - done
        if self.live or rest <= 0 or done <= before or since is None:
            return ""
        seconds = (time.monotonic() - since) / (done - before) * rest
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"
