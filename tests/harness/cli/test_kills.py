"""Commands and workers that are killed at random: nothing is lost, hardly anything is done twice, no number changes."""

from __future__ import annotations

import json
import random
import signal
import time
from dataclasses import dataclass

import psutil
import pytest

from harness.results.store import Store

MOST_REPEATED = 0.02  # of all steps
FIFTY = tuple(random.Random(14).choices(["command", "worker", "worker", "SIGTERM"], k=50))
OF_ITS_OWN_TIME = ("started_at", "finished_at", "cost", "attempts", "environment", "digest")


@dataclass(frozen=True)
class Load:
    """A sweep long enough to be killed so often."""

    kills: tuple[str, ...]
    workers: int
    trials: int
    steps: int
    step_seconds: float
    checkpoint_seconds: float

    def arguments(self, root):
        return [
            "run", "--budget", "quick", "--device", "cpu", "--no-mlflow", "--task", "uuid", "--methods", "slow",
            "--set", "pairs=2", "--set", "batch_size=2", "--seeds", f"{self.trials}", "--steps", f"{self.steps}",
            "--checkpoint-seconds", f"{self.checkpoint_seconds}", "--workers", f"{self.workers}", "--results", root,
            "--retry", "lost",
        ]  # fmt: skip


def report(root):
    """Return what trials came to, as bytes: their records but for times and tries, and their adapters."""
    store = Store(str(root))
    found = {}
    for record in store.records():
        body = {key: value for key, value in record.to_json().items() if key not in OF_ITS_OWN_TIME}
        found[record.trial_id] = json.dumps(body, sort_keys=True), store.read_artifact(record.artifacts["adapter"])
    return found


class Killer:
    """Runs a command until it is through, and kills it or one of its workers again and again while it trains."""

    def __init__(self, start, log, draw):
        self.start, self.log, self.draw = start, log, draw
        self.running = None
        self.done = {"command": 0, "worker": 0, "SIGTERM": 0}

    def progress(self):
        return self.log.read_text().count('"progress"') if self.log.exists() else 0

    def ensure_it_trains(self):
        """Wait until the command, started again if it has ended, has come further than before."""
        before, end = self.progress(), time.monotonic() + 120
        while self.progress() == before:
            if self.running is None or self.running.poll() is not None:
                assert self.running is None or self.running.returncode in (130, -signal.SIGKILL, 4), self.said()
                self.running = self.start()
            assert time.monotonic() < end, "it does not go on"
            time.sleep(0.05)

    def said(self):
        return self.running.communicate(timeout=60)

    def kill(self, what):
        """Kill something at a random moment."""
        self.ensure_it_trains()
        time.sleep(self.draw.uniform(0.0, 2.0))
        workers = psutil.Process(self.running.pid).children() if self.running.poll() is None else []
        if what == "worker" and workers:
            self.draw.choice(workers).kill()
        elif what == "command":
            self.running.kill()
        else:
            what = "SIGTERM"
            self.running.send_signal(signal.SIGTERM)
        self.done[what] += 1
        if what != "worker":
            self.said()

    def finish(self):
        """Let the command come to its end."""
        while self.running is None or self.running.poll() is None or self.running.returncode:
            if self.running is None or self.running.poll() is not None:
                self.running = self.start()
            self.running.communicate(timeout=1200)


@pytest.mark.parametrize(
    "load",
    [
        pytest.param(Load(("worker", "command"), 1, 1, 240, 0.02, 0.2), id="few"),
        pytest.param(
            Load(FIFTY, 2, 12, 3000, 0.02, 0.2), id="fifty", marks=[pytest.mark.exhaustive, pytest.mark.timeout(5400)]
        ),
    ],
)
def test_whatever_is_killed_and_however_often_nothing_is_lost_and_hardly_anything_repeated(
    trouble, process, tmp_path, load
):
    log, steps = tmp_path / "log", tmp_path / "steps"
    undisturbed = process(*load.arguments(tmp_path / "undisturbed"))

    def start():
        return process(
            *load.arguments(tmp_path / "killed"),
            TROUBLE_SECONDS=str(load.step_seconds), TROUBLE_LOG=str(log), TROUBLE_STEPS=str(steps),
        )  # fmt: skip

    killer = Killer(start, log, random.Random(0))
    for what in load.kills:
        killer.kill(what)
    killer.finish()
    said = undisturbed.communicate(timeout=1200)
    assert undisturbed.returncode == 0, said
    all_steps = load.trials * load.steps
    repeated = steps.stat().st_size - all_steps
    print(f"{killer.done}: {repeated} of {all_steps} steps repeated, {repeated / all_steps:.2%}")
    assert report(tmp_path / "killed") == report(tmp_path / "undisturbed")
    assert 0 <= repeated <= (MOST_REPEATED * all_steps if load.kills == FIFTY else all_steps / 4)
    left = [path.name for path in (tmp_path / "killed").rglob("*") if path.suffix in (".tmp", ".beat")]
    assert left == []
    assert not list((tmp_path / "killed" / "checkpoints").glob("*"))
