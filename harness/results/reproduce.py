"""The command that makes a trial again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.contract.trial import Trial


# What a recipe must say of a user's own data, which ``--data`` and its options fill in.
OWN = ("splits", "hub_id", "hub_config", "hub_revision", "columns", "labels", "metric_source")


def command(trial: Trial, knob: str | None = "") -> str:
    """Return the command whose reported trial is this one, with the same packages and data.

    A user's own data is named as seen from the folder that holds it: where that is, no trial says.

    A trial that only chose a learning rate is made as a reported one, on the same seed and rate: it trains the same,
    and is scored on test instead of validation.

    Args:
        trial: Which.
        knob: The setting that the budget solves, so that it is not given as well; empty: not known, so every
            setting is given where there is no budget, and none where there is one.
    """
    is_own = set(OWN) <= set(trial.recipe)
    words = ["harness", "run", "--methods", _method(trial, knob)]
    words += [*(_own_data(trial) if is_own else ["--task", trial.task]), "--scale", trial.scale]
    if not trial.model.startswith("from-scratch/"):  # which is the task's own
        words += ["--model", trial.model]
    if re.fullmatch("[0-9a-f]{40}", trial.model_revision):  # a commit of the hub's; others are hashes of what is there
        words += ["--revision", trial.model_revision]
    if trial.budget:
        words += ["--budget", trial.budget]
        if trial.budget_parameters and not trial.largest:
            deviation = abs(trial.matched_parameters / trial.budget_parameters - 1)
            words += ["--tolerance", f"{deviation + 1e-6:.2g}"] if deviation > 0.01 else []
    words += ["--lr", repr(trial.learning_rate), "--seeds", f"{trial.seed},", "--precision", trial.precision]
    words += ["--quantize", trial.quantize.removesuffix("-double")] if trial.quantize else []
    words += ["--double-quantize"] if trial.quantize.endswith("-double") else []
    if trial.targets:
        words += ["--targets", ",".join(trial.targets)]
    for name, value in sorted(trial.recipe.items()):
        if is_own and name in OWN:
            continue
        words += ["--set", f"{name}={_text(value)}"]
    return shlex.join(words)


def _own_data(trial: Trial) -> list[str]:
    """Return the options that say which data a trial on a user's own is about."""
    recipe = trial.recipe
    kind, _, rest = trial.task.partition("/")
    metric, _, direction = rest.partition("@")[2].partition(":")  # as ``DataTask.name_for`` writes it
    if recipe["hub_id"]:
        configuration = f":{recipe['hub_config']}" if recipe["hub_config"] else ""
        where = f"{recipe['hub_id']}@{recipe['hub_revision']}{configuration}"
    else:
        where = recipe["splits"][0].partition("=")[2].partition("/")[0]
    words = ["--data", where, "--data-kind", kind]
    for option, values in (("--columns", recipe["columns"]), ("--labels", recipe["labels"])):
        if values and not any("," in each for each in values):  # which cannot be typed, and were found
            words += [option, ",".join(values)]
    if metric:
        words += ["--metric", recipe["metric_source"] or metric]
        words += ["--lower-is-better"] if direction and recipe["metric_source"] else []
    return words


def _method(trial: Trial, knob: str | None) -> str:
    given: Mapping[str, Any] = {} if knob == "" and trial.is_matched else trial.config
    settings = [
        f"{name}={_text(value)}"
        for name, value in sorted(given.items())
        if value is not None and not (trial.is_matched and name == knob)
    ]
    return f"{trial.method}:{','.join(settings)}" if settings else trial.method


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "+".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
