"""From what a user asks for to a suite: a suite's file and changes to it, or plain values; tasks, or data of their own.

The command line and the Python functions both end here, so that they mean the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.planning.own_data import suite_values
from harness.planning.registry import Registry
from harness.planning.suite import Suite, Words, build_suite, read_suite

USUAL_SEEDS = (0, 1, 2)  # where no suite says how many: the fewest that make an interval worth having


@dataclass(frozen=True, kw_only=True)
class OwnRequest:
    """What a user says of data of their own; see ``own_data.suite_values``."""

    where: str = ""
    columns: str = ""
    kind: str = ""
    labels: str = ""
    metric: str = ""
    lower_is_better: bool = False


def build_request(
    registry: Registry, given: Mapping[str, Any], recipe: Mapping[str, Any], suite_name: str = "",
    data_dir: Path | None = None, own: OwnRequest | None = None, words: Words | None = None,
) -> tuple[Suite, Path | None]:  # fmt: skip
    """Return the suite that a user asks for, and the folder of its local tables.

    Args:
        registry: Knows suites, tasks and families of tasks.
        given: Fields of a suite.
        recipe: Fields of the tasks' recipes; they win over a suite's.
        suite_name: A registered suite, or a file, to be overridden by ``given``.
        data_dir: Local tables.
        own: The user's own data, instead of tasks, a suite and a data folder.
        words: What messages call the fields of a suite.
    """
    own = own or OwnRequest()
    if own.where:
        for name, value in (("tasks", given.get("tasks")), ("suite", suite_name), ("data-dir", data_dir)):
            if value:
                raise UsageError(f"--data is a task of its own; leave --{name} out")
        values, data_dir = suite_values(
            registry, own.where, own.columns, own.kind, own.labels, own.metric, own.lower_is_better
        )
        given, recipe = {**values, **given}, {**values["recipe"], **recipe}
    elif own != OwnRequest():
        names = ("columns", "kind", "labels", "metric", "lower_is_better")
        said = next(name for name in names if getattr(own, name)).replace("kind", "data-kind").replace("_", "-")
        raise UsageError(f"--{said} is about --data; give it too")
    if suite_name:
        path = registry.suite(suite_name)
        suite = read_suite(path, given, words)
        suite = replace(suite, title=suite.title or path.stem, recipe={**suite.recipe, **recipe})
    else:
        suite = build_suite({"seeds": USUAL_SEEDS, **given, "recipe": dict(recipe)}, words=words)
    return replace(suite, tasks=tuple(expand_tasks(suite.tasks, registry))), data_dir


def expand_tasks(names: Sequence[str], registry: Registry) -> list[str]:
    """Return task names; a family name like ``glue`` stands for every ``glue/...``."""
    return list(dict.fromkeys(each for name in names for each in family(name, registry) or [registry.task(name).name]))


def family(name: str, registry: Registry) -> list[str]:
    """Return the tasks ``name/...``; none where one task has the name itself."""
    return [] if name in registry.tasks else [each for each in registry.tasks if each.startswith(f"{name}/")]
