"""A stranger's plugin that makes all the trouble a plugin can make, and an observer that notes what it is told.

Every method trains one number per output, so ``--budget quick`` fits them all. ``TROUBLE_SECONDS``, ``TROUBLE_STEPS``,
``TROUBLE_RAISE`` and ``TROUBLE_LOG`` in the environment say how long ``slow`` sleeps at each step and where it counts
them, whether the observer raises, and where it writes.

Its executor is written from nothing but the contract: a worker is a command whose two ends are wired to messages.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from harness import (
    Adapter,
    Evaluation,
    Example,
    Executor,
    ExecutorWorker,
    LocalExecutor,
    Method,
    MethodConfig,
    MethodTraits,
    Metric,
    Recipe,
    Task,
    TaskData,
    hookimpl,
    setting,
)

logger = logging.getLogger(__name__)


class Shift(Adapter):
    def __init__(self, linear):
        super().__init__(linear)
        self.shift = torch.nn.Parameter(torch.zeros(linear.out_features, dtype=self.dtype, device=self.device))

    def forward(self, x, base_output):
        return base_output + self.shift


class Quick(Method):
    name = "quick"
    paper = "https://example.org"
    traits = MethodTraits(in_all=False, budget_knob=None, mergeable=False)

    def trainable_parameters(self, in_features, out_features):
        return out_features

    def adapter(self, linear, generator):
        return Shift(linear)


class Slow(Quick):
    name = "slow"

    def after_step(self, info):
        time.sleep(float(os.environ.get("TROUBLE_SECONDS", "0")))
        if path := os.environ.get("TROUBLE_STEPS"):
            with Path(path).open("a") as file:
                file.write(".")


class Diverging(Quick):
    name = "diverging"

    def after_step(self, info):
        logger.warning("there is no number any more")
        for adapter in info.adapters.values():
            adapter.shift.data.fill_(torch.nan)


class Raising(Quick):
    name = "raising"

    def after_step(self, info):
        raise RuntimeError("raised on purpose")


class Breaking(Quick):
    """Does to its process what an illegal access to a GPU's memory does: whatever it asks of the device fails."""

    name = "breaking"

    def after_step(self, info):
        from harness.engine.shared import Shared
        from harness.running import worker

        def broken(*_, **__):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        worker.fault_of, Shared.lane = lambda device: "CUDA error: an illegal memory access was encountered", broken
        broken()


class Exiting(Quick):
    name = "exiting"

    def after_step(self, info):
        print("last words", flush=True)
        os._exit(3)


class Killed(Quick):
    name = "killed"

    def after_step(self, info):
        os.kill(os.getpid(), signal.SIGKILL)


class OneRaising(Quick):
    name = "one-raising"

    def after_step(self, info):
        if torch.distributed.get_rank() == 1:
            raise RuntimeError("raised on purpose, here only")


class OneKilled(Quick):
    name = "one-killed"

    def after_step(self, info):
        if torch.distributed.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)


class Miscounting(Quick):
    name = "miscounting"

    def adapter(self, linear, generator):
        adapter = Shift(linear)
        adapter.more = torch.nn.Parameter(torch.zeros(1))
        return adapter


class Toy(Task):
    """Four examples, and a score that is no number."""

    name = "toy"
    main_metric = "score"
    metrics: Mapping[str, Metric] = {"score": Metric("Score", "fraction", True, "Nothing.")}
    recipes: Mapping[str, Recipe] = {"smoke": Recipe(steps=2, batch_size=2, learning_rate=1e-3)}

    def load(self, context):
        return TaskData([Example([5, 6, 7, 8], [-100, 6, 7, 8])] * 4, {"validation": None, "test": None})

    def evaluate(self, model, context, split):
        return Evaluation({"score": float("nan")})


class Piped(ExecutorWorker):
    """A worker that is lost with its machine as soon as it has said a word."""

    def __init__(self, command, hear, loses_at):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.hear, self.loses_at = hear, loses_at
        threading.Thread(target=self.listen, daemon=True).start()

    def send(self, message):
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass

    def stop(self):
        self.process.terminate()

    def kill(self):
        self.process.kill()

    def listen(self):
        for line in self.process.stdout:
            event = json.loads(line)
            self.hear(event)
            if event["event"] == self.loses_at:
                self.process.kill()
                break
        self.process.wait()
        self.hear({"event": "ended", "why": "the cloud drifted away", "state": "lost", "machine_lost": True})


@dataclass(frozen=True)
class CloudConfig(MethodConfig):
    address: str = setting("nowhere", "Where the cloud is.")
    losses: int = setting(0, "How many of its machines are lost at a trial's first step.", minimum=0)


class Cloud(Executor):
    name = "cloud"
    title = "Another machine, as far as the harness knows"
    Config = CloudConfig

    def __init__(self, config=None):
        super().__init__(config)
        self.left, self.closed, self.launched = self.config.losses, False, []

    def devices(self, device, workers):
        return ("cpu",) * (workers or 1), 1

    def launch(self, number, hear):
        self.left -= 1
        self.launched.append(number)
        return Piped(LocalExecutor().command(number), hear, "progress" if self.left >= 0 else None)

    def close(self):
        self.closed = True


@hookimpl
def harness_register_executors():
    return [Cloud]


@hookimpl
def harness_register_methods():
    return [Quick, Slow, Diverging, Raising, Breaking, Exiting, Killed, OneRaising, OneKilled, Miscounting]


@hookimpl
def harness_register_tasks():
    return [Toy]


def note(**what):
    if path := os.environ.get("TROUBLE_LOG"):
        with Path(path).open("a") as file:
            file.write(json.dumps(what) + "\n")
    if os.environ.get("TROUBLE_RAISE") == what["hook"]:
        raise RuntimeError("the observer raised on purpose")


@hookimpl
def harness_trial_started(trial, environment):
    note(hook="started", trial=trial.id, label=trial.label, sweep=environment["sweep"])


@hookimpl
def harness_trial_progress(trial, step, metrics):
    note(hook="progress", trial=trial.id, step=step, metrics=dict(metrics))


@hookimpl
def harness_trial_finished(trial, record):
    note(hook="finished", trial=trial.id, state=record.state.value)


@hookimpl
def harness_sweep_finished():
    note(hook="sweep finished")


@hookimpl
def harness_summarize(records):
    return f"trouble: {len(records)} records"
