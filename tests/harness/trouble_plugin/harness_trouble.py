"""A stranger's plugin that makes all the trouble a plugin can make, and an observer that notes what it is told.

Every method trains one number per output, so ``--budget quick`` fits them all. ``TROUBLE_SECONDS``, ``TROUBLE_RAISE``
and ``TROUBLE_LOG`` in the environment say how long ``slow`` sleeps, whether the observer raises, and where it writes.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from harness import Adapter, Evaluation, Example, Method, MethodTraits, Metric, Recipe, Task, TaskData, hookimpl

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


class Exiting(Quick):
    name = "exiting"

    def after_step(self, info):
        print("last words", flush=True)
        os._exit(3)


class Killed(Quick):
    name = "killed"

    def after_step(self, info):
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


@hookimpl
def harness_register_methods():
    return [Quick, Slow, Diverging, Raising, Exiting, Killed, Miscounting]


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
