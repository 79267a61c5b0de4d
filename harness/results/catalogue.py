"""What the methods and tasks of a result root are, in words, kept beside the records.

<root>/catalogue/methods/<name>.json, <root>/catalogue/tasks/<name with -- for />.json

A record says what was run; what a method is (its formula, its paper, what its settings mean) its plugin says, which a
reader of records may not have. So a run leaves a description of whatever it runs. A later run replaces it.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.contract.method import Method
    from harness.contract.task import Task
    from harness.contract.trial import Trial
    from harness.planning.registry import Registry
    from harness.results.store import Store

FOLDER = "catalogue"
log = logging.getLogger(__name__)

Catalogue = dict[str, dict[str, Mapping[str, Any]]]  # "methods" or "tasks", then by name


def write_catalogue(store: Store, registry: Registry, trials: Iterable[Trial]) -> None:
    """Describe the methods and tasks of some trials, those that the registry knows."""
    seen = list(trials)
    for name in sorted({trial.method for trial in seen} & set(registry.every_method)):
        content = {**describe_method(registry.method(name)), "plugin": registry.origins["method", name].pin}
        _write(store, "methods", name, content)
    for name in sorted({trial.task for trial in seen} & set(registry.tasks)):
        content = {**describe_task(registry.task(name)), "plugin": registry.origins["task", name].pin}
        _write(store, "tasks", name, content)


def read_catalogue(store: Store) -> Catalogue:
    """Return the descriptions of a result root; none where there are none. What is no description is warned of."""
    found: Catalogue = {"methods": {}, "tasks": {}}
    for kind, by_name in found.items():
        for name in store.artifacts(f"{FOLDER}/{kind}"):
            try:
                content = json.loads(store.read_artifact(name))
                by_name[str(content["name"])] = content
            except (ValueError, KeyError, TypeError) as error:
                log.warning(
                    "passed over: %s/%s: no description (%s: %s); `harness results describe` writes it again",
                    store.root, name, type(error).__name__, error,
                )  # fmt: skip
    return found


def describe_method(method: type[Method]) -> dict[str, Any]:
    """Return what a method says about itself, as plain JSON types."""
    from harness.contract.setting import describe_range

    config = method.Config()
    settings = [
        {
            "name": each.name,
            "default": _plain(getattr(config, each.name)),
            "allowed": describe_range(each),
            "help": str(each.metadata.get("help", "")),
        }
        for each in dataclasses.fields(method.Config)
    ]
    traits = method.traits
    return {
        "name": method.name,
        "title": method.title or method.name,
        "text": inspect.cleandoc(method.__doc__ or ""),
        "paper": method.paper,
        "citation": method.citation,
        "formula": method.formula,
        "budget_knob": traits.budget_knob,
        "reference": traits.reference,
        "mergeable": traits.mergeable,
        "learning_rate_factor": traits.learning_rate_factor,
        "settings": settings,
    }


def describe_task(task: type[Task]) -> dict[str, Any]:
    """Return what a task says about itself, as plain JSON types."""
    tables = [table for recipe in task.recipes.values() for table in task().tables(recipe)]
    sources = [dataclasses.asdict(each) for each in dict.fromkeys(table.source for table in tables)]
    if not sources:
        sources = [dataclasses.asdict(task.source)]
    return {
        "name": task.name,
        "title": task.title or task.name,
        "text": inspect.cleandoc(task.__doc__ or ""),
        "paper": task.paper,
        "note": task.source.note,
        "model": task.model,
        "model_kind": task.model_kind.value,
        "main_metric": task.main_metric,
        "metrics": {name: dataclasses.asdict(metric) for name, metric in task.metrics.items()},
        "sources": sources,
        "recipes": {
            scale: {name: _plain(value) for name, value in dataclasses.asdict(recipe).items()}
            for scale, recipe in task.recipes.items()
        },
    }


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _write(store: Store, kind: str, name: str, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    store.write_artifact(f"{FOLDER}/{kind}/{name.replace('/', '--')}.json", text.encode())
