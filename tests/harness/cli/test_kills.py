"""Commands and workers that are stopped or killed: nothing is lost, hardly anything done twice, no number changes."""

from __future__ import annotations

import json
import random
import signal
import time
from dataclasses import dataclass, replace
from functools import cache

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


FEW = Load(("worker", "command"), 1, 1, 120, 0.05, 0.2)
MANY = Load(FIFTY, 2, 12, 3000, 0.02, 0.2)


@pytest.fixture(scope="module")
def undisturbed(trouble, process, tmp_path_factory):
    """Return what gives the result root of a load that nothing disturbed, trained once for all that is compared."""

    @cache
    def root_of(load):
        root = tmp_path_factory.mktemp("undisturbed") / "results"
        running = process(*load.arguments(root))
        said = running.communicate(timeout=1200)
        assert running.returncode == 0, said
        return root

    return root_of


@pytest.mark.parametrize(
    "load",
    [
        pytest.param(FEW, id="few"),
        pytest.param(MANY, id="fifty", marks=[pytest.mark.exhaustive, pytest.mark.timeout(5400)]),
    ],
)
def test_whatever_is_killed_and_however_often_nothing_is_lost_and_hardly_anything_repeated(
    process, undisturbed, tmp_path, load
):
    log, steps = tmp_path / "log", tmp_path / "steps"

    def start():
        return process(
            *load.arguments(tmp_path / "killed"),
            TROUBLE_SECONDS=str(load.step_seconds), TROUBLE_LOG=str(log), TROUBLE_STEPS=str(steps),
        )  # fmt: skip

    killer = Killer(start, log, random.Random(0))
    for what in load.kills:
        killer.kill(what)
    killer.finish()
    all_steps = load.trials * load.steps
    repeated = steps.stat().st_size - all_steps
    print(f"{killer.done}: {repeated} of {all_steps} steps repeated, {repeated / all_steps:.2%}")
    assert report(tmp_path / "killed") == report(undisturbed(load))
    assert 0 <= repeated <= (MOST_REPEATED * all_steps if load.kills == FIFTY else all_steps / 4)
    left = [path.name for path in (tmp_path / "killed").rglob("*") if path.suffix in (".tmp", ".beat")]
    assert left == []
    assert not list((tmp_path / "killed" / "checkpoints").glob("*"))


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.exhaustive)])
def test_a_trial_that_was_stopped_goes_on_where_it_was_and_ends_the_same(process, undisturbed, tmp_path, how):
    log, again = tmp_path / "log", tmp_path / "again"
    arguments = replace(FEW, checkpoint_seconds=60.0).arguments(tmp_path / "stopped")  # saved where it is stopped
    running = process(*arguments, TROUBLE_SECONDS="0.1", TROUBLE_LOG=str(log))
    end = time.monotonic() + 120
    while '"step": 6' not in (log.read_text() if log.exists() else "") and time.monotonic() < end:
        time.sleep(0.05)
    running.send_signal(how)
    begin = time.monotonic()
    running.communicate(timeout=60)
    assert time.monotonic() - begin < 30
    checkpoint = tmp_path / "stopped" / "checkpoints"
    while not list(checkpoint.glob("*.safetensors")) and time.monotonic() < end:
        time.sleep(0.05)  # the worker of a killed command is on its own
    running = process(*arguments, TROUBLE_LOG=str(again))
    said = running.communicate(timeout=240)
    assert running.returncode == 0, said
    told = [json.loads(line) for line in again.read_text().splitlines()]
    steps = [each["step"] for each in told if each["hook"] == "progress"]
    assert steps == list(range(steps[0], FEW.steps + 1))
    assert steps[0] > 6, "what was done is not done again"
    (ours,) = Store(str(tmp_path / "stopped")).records()
    (theirs,) = Store(str(undisturbed(FEW))).records()
    assert ours.history == theirs.history, "every loss, to the last bit"
    assert report(tmp_path / "stopped") == report(undisturbed(FEW))
    assert [each["state"] for each in ours.attempts] == (["interrupted"] if how == signal.SIGTERM else [])
    assert list(checkpoint.iterdir()) == []
