"""What a suite says of a paper: its numbers, and the recipe behind them, for the records of a run to carry.

A number belongs to one method with its settings at one budget, not to a method's name: it goes only into the records of
trials with these settings. How it is shown is the leaderboard's business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from harness.contract.method import Method, TrialContext
from harness.contract.task import Task
from harness.contract.trial import OWN, Trial
from harness.errors import ConfigError, UsageError
from harness.planning.choices import read_choices
from harness.planning.plan import resolve_recipe, trial_context
from harness.planning.registry import Registry
from harness.planning.suite import Suite

PAPER = "paper"  # the scale whose recipe is the paper's
KEYS: Mapping[str, type | tuple[type, ...]] = {
    "method": str, "budget": str, "metric": str, "value": (int, float), "unit": str, "model": str, "source": str,
}  # fmt: skip
OPTIONAL_KEYS: Mapping[str, type | tuple[type, ...]] = {"step": int, "confidence": str, "caveat": str}


@dataclass(frozen=True)
class Quote:
    """A published number and what it is of.

    Attributes:
        task: The task.
        method: The method.
        configs: Its settings, of which the paper may have chosen one; a budget decides the knob.
        entry: As the suite writes it.
    """

    task: type[Task]
    method: type[Method]
    configs: Sequence[Any]
    entry: Mapping[str, Any]

    def is_of(self, trial: Trial) -> bool:
        """Return whether a trial has the number's task, method, settings and budget."""
        if (trial.task, trial.method, trial.budget) != (self.task.name, self.method.name, self.entry["budget"]):
            return False
        context = trial_context(self.task, trial.build_recipe(self.task()))
        return any(self._is_with(config, trial, context) for config in self.configs)

    def _is_with(self, config: Any, trial: Trial, context: TrialContext) -> bool:
        knob = self.method.traits.budget_knob
        try:
            config = replace(config, **{knob: trial.config[knob]}) if knob and trial.is_matched else config
        except ConfigError:  # the trial has other settings, with which its knob goes
            return False
        return bool(_as_json(asdict(self.method.resolve(config, context))) == _as_json(trial.settings))


@dataclass(frozen=True)
class Published:
    """What a suite says of a paper.

    Attributes:
        quotes: Its numbers.
        recipes: By task, the recipe that the numbers belong to: the task's at the paper scale, with what the suite
            sets there. A task without that scale is not in it.
    """

    quotes: Sequence[Quote] = ()
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def beside(self, trial: Trial) -> list[Mapping[str, Any]]:
        """Return the numbers to show beside a trial."""
        return [quote.entry for quote in self.quotes if quote.is_of(trial)]


def read_published(suite: Suite, registry: Registry) -> Published:
    """Return what a suite says of a paper.

    Raises:
        UsageError: An entry names something that does not exist, lacks a key or has one too many, or its unit is not
            the metric's.
    """
    quotes = [
        _quote(task_name, entry, registry)
        for task_name, entries in suite.published.items()
        for entry in _entries(task_name, entries)
    ]
    recipes: dict[str, Mapping[str, Any]] = {}
    for name in suite.tasks:
        task = registry.task(name)()
        if PAPER in task.recipes:
            paper = replace(suite, scale=PAPER, recipe={PAPER: suite.recipe.get(PAPER, {})})
            recipes[name] = json.loads(json.dumps(asdict(resolve_recipe(task, paper))))
    return Published(quotes, recipes)


def _entries(task_name: str, entries: Any) -> Sequence[Mapping[str, Any]]:
    if isinstance(entries, list | tuple) and all(isinstance(each, Mapping) for each in entries):
        return entries
    raise UsageError(f"published: {task_name!r} must be a list of tables, each with {', '.join(KEYS)}")


def _quote(task_name: str, entry: Mapping[str, Any], registry: Registry) -> Quote:
    where, known = f"published: {task_name!r}: {dict(entry)}", {**KEYS, **OPTIONAL_KEYS}
    for name in (*KEYS, *entry):
        if name not in known:
            raise UsageError(f"{where}: unknown key {name!r}; known: {', '.join(known)}")
        if name not in entry:
            raise UsageError(f"{where} has no {name!r}; needed: {', '.join(KEYS)}")
        if isinstance(entry[name], bool) or not isinstance(entry[name], known[name]):
            raise UsageError(f"{where}: {name}={entry[name]!r} is not of the right type")
    task, (name, settings) = registry.task(task_name), registry.split_method(entry["method"])
    if entry["metric"] not in task.metrics:
        raise UsageError(f"{where}: the task has no metric {entry['metric']!r}; it has {', '.join(task.metrics)}")
    if entry["unit"] != (unit := task.metrics[entry["metric"]].unit):
        raise UsageError(f"{where}: unit={entry['unit']!r}, but the metric's is {unit!r}; write the value in it")
    method = registry.method(name)
    return Quote(task, method, read_choices(settings, method, entry["budget"] == OWN), entry)


def _as_json(config: Mapping[str, Any]) -> Any:
    """Return settings as plain JSON types."""
    return json.loads(json.dumps(config))
